"""Dialects: how each family of models writes reasoning and tool calls, and how to parse them.

`dialect_of` finds a model's dialect; `StreamParser` turns its text into `Event`s.
"""

from __future__ import annotations

from dure.chat.dialects import (
    deepseek,
    dsml,
    ernie,
    gemma,
    glm,
    harmony,
    hermes,
    hunyuan,
    hy3,
    kimi,
    ling,
    llama3,
    minimax,
    mistral,
    pangu,
    plain,
    pythonic,
    qwenxml,
    solar,
    toolcall,
)
from dure.chat.dialects.dialect import Delimiters, Dialect, HasToken
from dure.chat.dialects.event import Event
from dure.chat.dialects.plain import PLAIN
from dure.chat.dialects.stream_parser import StreamParser

__all__ = ["PLAIN", "Delimiters", "Dialect", "Event", "HasToken", "StreamParser", "dialect_of"]

_FAMILIES = (
    harmony.find,
    solar.find,
    dsml.find,
    deepseek.find,
    kimi.find,
    gemma.find,
    ling.find,
    minimax.find,
    hy3.find,
    glm.find,
    hunyuan.find,
    pangu.find,
    pythonic.find,
    ernie.find,
    mistral.find,
    toolcall.find,
    qwenxml.find,
    hermes.find,
    llama3.find,
    plain.find,
)
"""The first match decides: families with delimiters of their own come first."""


def dialect_of(template: str, has_token: HasToken) -> Dialect:
    """Return a model's dialect, by its chat template's source and its vocabulary."""
    return next(found for find in _FAMILIES if (found := find(template, has_token)))
