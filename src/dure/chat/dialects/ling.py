"""Ling and Ring: thoughts between marks, and calls that are JSON (2.0) or keys and values (3.0)."""

from __future__ import annotations

from dataclasses import replace

from dure.chat.dialects import hermes
from dure.chat.dialects.dialect import THINK, Dialect, HasToken
from dure.chat.dialects.keyvalue import KeyCalls

TURN = "<role>ASSISTANT</role>"
LING_3 = Dialect("Ling 3.0", THINK, KeyCalls(), call_ends_thinking=True)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows turns so, or None."""
    if TURN not in template:
        return None
    if "<arg_key>" in template:
        return LING_3
    found = hermes.find(template, has_token)
    return None if found is None else replace(found, name="Ling 2.0")
