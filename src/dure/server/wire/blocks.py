"""What an answer is made of, piece by piece: thoughts, text and calls, each opened and closed.

Wire formats that number their blocks (Anthropic's, OpenAI's responses) are written from this.
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
    """One block of an answer. A call's text is that of its arguments: JSON, if it is whole."""

    kind: Kind
    index: int  # among all pieces of the answer
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All that was said in it so far."""
        return "".join(self.parts)


@dataclass(frozen=True)
class BlockDelta:
    """A piece begins, has more text, or is over."""

    what: Literal["open", "more", "close"]
    piece: ContentBlock
    text: str = ""


class ContentBlocks:
    """Reads the events of one answer in order, and says what each changes."""

    def __init__(self) -> None:
        self.all: list[ContentBlock] = []
        self._open: ContentBlock | None = None
        self._blank = ""  # white space that is text only if text follows

    def push(self, event: Event) -> Iterator[BlockDelta]:
        """What `event` changes."""
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
        """The end of the piece that is open, if any."""
        self._blank = ""
        if self._open is not None:
            yield BlockDelta("close", self._open)
            self._open = None

    def _said(self, kind: Kind, text: str) -> Iterator[BlockDelta]:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            # A block of nothing but line breaks, between thoughts and a call, is no block.
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
    """`prefix` and 24 hexadecimal digits, drawn at random if they are not given."""
    return f"{prefix}_{digits or secrets.token_hex(12)}"


def arguments_of(text: str) -> dict[str, Any] | None:
    """The arguments of a call as an object; None if the text is not (yet) JSON of one."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
