"""Event: one part of a model's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EventKind = Literal["reasoning", "content", "call", "arguments", "call_end"]


@dataclass(frozen=True)
class Event:
    """A piece of reasoning, of content or of a call's arguments, or a call's start or end.

    A call begins with its whole name and an id; its arguments follow in pieces that, joined, are
    JSON text, unless the model was cut short.
    """

    kind: EventKind
    text: str = ""
    index: int = 0  # of the call, counted from 0
    id: str = ""
    name: str = ""
