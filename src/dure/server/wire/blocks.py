"""The content blocks of a response: reasoning, text and tool calls, each opened and closed.

The APIs that number their blocks (Anthropic's, OpenAI's Responses) are written from these.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dure.chat.dialects import Event

Kind = Literal["reasoning", "content", "call"]


@dataclass
class ContentBlock:
    """One content block. The text of a call is its arguments: JSON, if it is complete."""

    kind: Kind
    index: int  # among all blocks of the response
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text of the block so far."""
        return "".join(self.parts)


@dataclass(frozen=True)
class BlockDelta:
    """A block opens, gets more text, or closes."""

    what: Literal["open", "more", "close"]
    piece: ContentBlock
    text: str = ""


class ContentBlocks:
    """Turns the parser's events of one response, in order, into changes of content blocks."""

    def __init__(self) -> None:
        self.all: list[ContentBlock] = []
        self._open: ContentBlock | None = None
        self._blank = ""  # white space that is text only if text follows

    def push(self, event: Event) -> Iterator[BlockDelta]:
        """Yield what `event` changes."""
        if event.kind == "call":
            yield from self._begin("call", event.id, event.name)
        elif event.kind == "call_end":
            yield from self.finish()
        elif event.kind == "arguments":
            if self._open is not None and self._open.kind == "call":
                yield self._more(self._open, event.text)
        else:
            yield from self._said("content" if event.kind == "content" else "reasoning", event.text)

    def finish(self) -> Iterator[BlockDelta]:
        """Close the block that is open, if any."""
        self._blank = ""
        if self._open is not None:
            yield BlockDelta("close", self._open)
            self._open = None

    def _said(self, kind: Kind, text: str) -> Iterator[BlockDelta]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            # Line breaks alone, between reasoning and a call, make no block.
            text = self._blank + text
            if not text.strip():
                self._blank = text
                return
            yield from self._begin(kind)
        assert self._open is not None
        yield self._more(self._open, text)

    def _begin(self, kind: Kind, identity: str = "", name: str = "") -> Iterator[BlockDelta]:
        yield from self.finish()
        self._open = ContentBlock(kind, len(self.all), identity, name)
        self.all.append(self._open)
        yield BlockDelta("open", self._open)

    @staticmethod
    def _more(piece: ContentBlock, text: str) -> BlockDelta:
        piece.parts.append(text)
        return BlockDelta("more", piece, text)


def new_id(prefix: str, digits: str | None = None) -> str:
    """Return `prefix` and 24 hexadecimal digits, random if not given."""
    return f"{prefix}_{digits or secrets.token_hex(12)}"


def arguments_of(text: str) -> dict[str, Any] | None:
    """Parse a call's arguments; return None if the text is not (yet) a JSON object."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
