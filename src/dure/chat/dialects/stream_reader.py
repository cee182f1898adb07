"""StreamReader: how a call syntax reads a model's text and emits calls.

Parsers are generators: they yield where they need more text, and read as if they had it all.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from dure.chat.dialects.event import Event
from dure.chat.dialects.jsontext import JsonText

T = TypeVar("T")
Parser = Generator[None, None, T]
"""A step of parsing: yields for more text, returns a T."""

Sink = Callable[[str], None]
MAX_NAME = 256


def new_id() -> str:
    """Return a new call id in OpenAI's form."""
    return f"call_{secrets.token_hex(12)}"


class StreamReader:
    """Reads text that comes in pieces, and emits the calls found in it.

    tools: the schema of each tool's arguments, by name. calls: how many calls began so far.
    """

    def __init__(
        self, tools: Mapping[str, Mapping[str, Any]] | None, make_id: Callable[[], str]
    ) -> None:
        self.tools = tools or {}
        self.calls = 0
        self._make_id = make_id
        self._buffer = ""
        self._ended = False
        self._events: list[Event] = []
        self._space = ""  # at the end of the content: dropped if a delimiter follows
        self._raw: list[str] | None = None  # the text of a call that no event holds yet
        self._open_call = False

    # --- emitting calls ------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        """Begin a call of `name`."""
        self.end_call()
        self._events.append(Event("call", index=self.calls, id=self._make_id(), name=name))
        self.calls += 1
        self._open_call = True
        self._space = ""
        self._raw = []

    def arguments(self, text: str) -> None:
        """Add `text` to the arguments of the open call."""
        self._raw = []
        if text:
            self._events.append(Event("arguments", text, index=self.calls - 1))

    def end_call(self) -> None:
        """End the open call, if there is one."""
        if self._open_call:
            self._events.append(Event("call_end", index=self.calls - 1))
            self._open_call = False

    def discard_raw(self) -> None:
        """Discard the raw text read so far: it was syntax, never content."""
        self._raw = []

    # --- reading ------------------------------------------------------------------------------

    def until(self, marks: Sequence[str], sink: Sink) -> Parser[str | None]:
        """Read up to the first of `marks`, which is skipped; return it, or None at the end.

        The text before it goes to `sink`. What may yet become a mark is held back.
        """
        while True:
            found = [(at, mark) for mark in marks if (at := self._buffer.find(mark)) >= 0]
            if found:
                at, mark = min(found)
                if at:
                    sink(self._take(at))
                self._take(len(mark))
                return mark
            keep = 0 if self._ended else _begun(self._buffer, marks)
            if len(self._buffer) > keep:
                sink(self._take(len(self._buffer) - keep))
            if self._ended:
                return None
            yield

    def listed(
        self, mark: str, begin: str, read: Callable[[StreamReader], Parser[bool]]
    ) -> Parser[int | None]:
        """Read calls that start with `begin`, one after the other; return how many.

        mark: the delimiter read before; equal to `begin`, the first call has started. Returns
        None if a call could not be read.
        """
        count = 0
        while True:
            yield from self.space()
            if mark != begin and not (yield from self.expect(begin)):
                return count
            mark = ""
            if not (yield from read(self)):
                return None
            count += 1

    def expect(self, text: str) -> Parser[bool]:
        """Skip `text` if it comes next; return whether it did."""
        while len(self._buffer) < len(text) and text.startswith(self._buffer) and not self._ended:
            yield
        if not self._buffer.startswith(text):
            return False
        self._take(len(text))
        return True

    def space(self) -> Parser[None]:
        """Skip spaces and line ends."""
        while True:
            rest = self._buffer.lstrip()
            self._take(len(self._buffer) - len(rest))
            if rest or self._ended:
                return
            yield

    def peek(self) -> Parser[str]:
        """Return the next character without reading it; empty at the end."""
        while not self._buffer and not self._ended:
            yield
        return self._buffer[:1]

    def ahead(self, at: int, choices: Sequence[str]) -> Parser[tuple[str | None, int]]:
        """Look ahead over space from `at`; return which of `choices` comes, and where it ends.

        Returns an empty text at the end of the text, None for anything else. Nothing is read.
        """
        while True:
            rest = self._buffer[at:].lstrip()
            open_ = [each for each in choices if each.startswith(rest) and each != rest]
            if not open_ or self._ended:
                found = max(filter(rest.startswith, choices), key=len, default=None)
                if found is None and not rest and self._ended:
                    found = ""
                return found, len(self._buffer) - len(rest) + len(found or "")
            yield

    def word_ahead(self, at: int, end: str) -> Parser[str | None]:
        """Look ahead for a name that stands between `at` and `end`; None if there is none."""
        while True:
            stop = self._buffer.find(end, at)
            if stop >= 0:
                word = self._buffer[at:stop]
                return word if len(word) <= MAX_NAME and word.strip().isprintable() else None
            if self._ended or len(self._buffer) - at > MAX_NAME + len(end):
                return None
            yield

    def skip_to(self, mark: str) -> Parser[bool]:
        """Skip space and `mark` if they come next, else neither; return whether they did."""
        while not self._ended:
            rest = self._buffer.lstrip()
            if len(rest) >= len(mark) or not mark.startswith(rest):
                break
            yield
        rest = self._buffer.lstrip()
        if not rest.startswith(mark):
            return False
        self._take(len(self._buffer) - len(rest) + len(mark))
        return True

    def word(self, ends: str) -> Parser[str]:
        """Read up to any of the characters `ends`; empty if that is longer than a name may be."""
        while True:
            at = min((i for end in ends if (i := self._buffer.find(end)) >= 0), default=-1)
            if at > MAX_NAME or (at < 0 and (self._ended or len(self._buffer) > MAX_NAME)):
                return ""
            if at >= 0:
                word = self._take(at)
                return word if word.isprintable() else ""
            yield

    def json(self, sink: Sink) -> Parser[bool]:
        """Read one JSON value, its text into `sink`; return whether it was whole."""
        value = JsonText()
        while True:
            text, count = [], 0
            for character in self._buffer:
                added = value.offer(character)
                if added is None:
                    break
                text.append(added)
                count += 1
                if value.done:
                    break
            self._take(count)
            if text:
                sink("".join(text))
            if value.done or value.failed:
                return value.done
            if self._ended:
                value.end()
                return value.done
            yield

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def unread(self, text: str) -> None:
        """Put back `text`, which was just read."""
        self._buffer = text + self._buffer


def _begun(text: str, marks: Sequence[str]) -> int:
    """Count the characters at the end of `text` that may begin one of `marks`."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest
