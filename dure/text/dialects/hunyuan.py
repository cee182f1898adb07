"""Hunyuan A13B and the small dense ones: a JSON array of calls; the answer stands between marks."""

from __future__ import annotations

from dure.text.dialects.dialect import Dialect, HasToken, Marks
from dure.text.dialects.jsoncalls import ArrayCalls

HUNYUAN = Dialect(
    "Hunyuan",
    # In their vocabularies these marks are ordinary text of several tokens.
    Marks("<think>", "</think>", "\n</think>\n"),
    ArrayCalls("<tool_calls>", "</tool_calls>"),
    wrapper=("<answer>", "</answer>"),
)
_TURNS = ("<｜hy_User｜>", "<|hy_User|>", "<|extra_4|>")


def find(template: str, has_token: HasToken) -> Dialect | None:
    """The dialect of a template with Hunyuan's turns, or None."""
    return HUNYUAN if any(mark in template for mark in _TURNS) else None
