"""Automaton: reads a model's text as it comes and says what is reasoning, content and calls.

One for every dialect; what a family writes between the marks of a call is its CallSyntax. Parsers
are generators: they yield where they need more text, so that each reads as if it had it all.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dure.chat.dialects.event import Event, EventKind
from dure.chat.dialects.jsontext import JsonText

if TYPE_CHECKING:
    from dure.chat.dialects.dialect import CallReader, Dialect

T = TypeVar("T")
Parser = Generator[None, None, T]
"""A step of parsing: yields for more text, returns a T."""

Sink = Callable[[str], None]
MAX_NAME = 256


def new_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


class Automaton:
    """One answer's events. `push` its text in any pieces, then `finish`; neither ever raises.

    Joined, events of one kind that follow each other are the same however the text was cut.
    `thinking` says whether the text so far ends within thoughts; `unparsed` counts the calls that
    were begun and could not be read.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        tools: Mapping[str, Mapping[str, Any]] | None = None,
        opened: bool = False,
        make_id: Callable[[], str] = new_id,
    ) -> None:
        """tools: the schema of each tool's arguments; without any, no text is taken for a call.
        opened: the prompt ends within thoughts."""
        self.tools = tools or {}
        self.thinking = opened and dialect.think is not None
        self.unparsed = 0
        self.calls = 0
        self._dialect = dialect
        self._syntax = dialect.calls if self.tools else None
        self._guess = dialect.guess if self.tools else None
        self._make_id = make_id
        self._buffer = ""
        self._ended = False
        self._events: list[Event] = []
        self._space = ""  # at the end of what was said: dropped if a mark follows
        self._fresh = False  # a mark has just ended: space that follows is dropped
        self._raw: list[str] | None = None  # of a call, what no event has told yet
        self._stray = ""  # a mark that comes too late, and is passed over
        self._line_begins = True  # what was said ends with a line
        self._open_call = False
        self._parser: Parser[None] = self._parse()
        self._over = False

    def push(self, text: str) -> list[Event]:
        """What `text` adds."""
        self._buffer += text
        return self._run()

    def finish(self) -> list[Event]:
        """What was held back. Nothing may be pushed afterwards."""
        self._ended = True
        return self._run()

    def _run(self) -> list[Event]:
        if not self._over:
            self._over = next(self._parser, True) is True
        events, self._events = self._events, []
        return events

    # --- what the text says -------------------------------------------------------------------

    def _parse(self) -> Parser[None]:
        yield from self._think()
        wrapper = self._dialect.wrapper
        if wrapper is not None and (yield from self.skip_to(wrapper[0])):
            self._fresh = True
            if (yield from self._answer((wrapper[1],))) is not None:
                self._drop_space()
        if self._syntax and self._dialect.bare_calls and (yield from self.skip_to("{")):
            self.unread("{")
            yield from self._call("", self._syntax)
        yield from self._answer(())

    def _think(self) -> Parser[None]:
        think = self._dialect.think
        if think is None:
            return
        if not self.thinking:
            self.thinking = yield from self.skip_to(think.open)
            if not self.thinking:
                # A model that chose not to think may say so by the closing mark alone.
                self._fresh = yield from self.skip_to(think.close)
                return
        self._fresh = True
        begins = self._syntax.begins if self._syntax and self._dialect.call_ends_thinking else ()
        mark = yield from self.until((think.close, *begins), self._reason)
        if mark is None:
            return
        self.thinking = False
        self._drop_space()
        if mark != think.close:  # a call that forgot to end the thoughts
            self._stray = think.close
            self.unread(mark)

    def _answer(self, ends: Sequence[str]) -> Parser[str | None]:
        """The mark of `ends` that ended the answer, or None at the end of the text."""
        begins = self._syntax.begins if self._syntax else ()
        guesses = self._guess.begins if self._guess else ()
        while True:
            strays = (self._stray,) if self._stray else ()
            marks = (*ends, *begins, *strays, *guesses)
            mark = yield from self.until(marks, self._say)
            if mark is None or mark in ends:
                self._release(mark)
                return mark
            if mark in strays:
                self._stray = ""
                self._drop_space()
            elif mark in begins and self._syntax:
                yield from self._call(mark, self._syntax)
            elif self._guess and self._line_begins:
                yield from self._call(mark, self._guess)
            else:
                self._say(mark)

    def _call(self, mark: str, syntax: CallReader) -> Parser[None]:
        space = self._space
        self._space = ""
        self._raw = [mark]
        told = self.calls
        well = yield from syntax.parse(self, mark)
        self.end_call()
        raw, self._raw = self._raw, None
        if well:
            self._fresh = self._line_begins = True
            return
        self.unparsed += syntax is self._syntax
        if self.calls == told:  # no call after all: the space before it was content
            self._space = space
        else:
            self._fresh = True
        self._say("".join(raw))

    def _say(self, text: str) -> None:
        self._line_begins = text.endswith("\n")
        self._emit("content", text, " \t\r\n" if self._syntax else "\n")

    def _reason(self, text: str) -> None:
        self._emit("reasoning", text, "\n")

    def _emit(self, kind: EventKind, text: str, space: str) -> None:
        """Nothing; `text` is told, but for space at its end, and at its beginning after a mark."""
        if self._fresh:
            text = text.lstrip(space if self.calls else "\n")
            if not text:
                return
            self._fresh = False
        shown = self._space + text
        said = shown.rstrip(space)
        if kind == "content" and not self._holds_space:
            said = shown
        self._space = shown[len(said) :]
        if said:
            self._events.append(Event(kind, said))

    @property
    def _holds_space(self) -> bool:
        return self._syntax is not None or self._dialect.wrapper is not None

    def _drop_space(self) -> None:
        self._space, self._fresh = "", True

    def _release(self, mark: str | None) -> None:
        """Nothing; at the end of the text the space before it is told after all."""
        if mark is None and self._space and not self.thinking:
            if not self.calls:
                self._events.append(Event("content", self._space))
            self._space = ""

    # --- what a syntax tells ------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        """Nothing; a call of `name` begins."""
        self.end_call()
        self._events.append(Event("call", index=self.calls, id=self._make_id(), name=name))
        self.calls += 1
        self._open_call = True
        self._space = ""
        self._raw = []

    def arguments(self, text: str) -> None:
        """Nothing; `text` is added to the arguments of the call that is open."""
        self._raw = []
        if text:
            self._events.append(Event("arguments", text, index=self.calls - 1))

    def end_call(self) -> None:
        """Nothing; the call that is open, if one is, ends."""
        if self._open_call:
            self._events.append(Event("call_end", index=self.calls - 1))
            self._open_call = False

    def told(self) -> None:
        """Nothing; the text read so far needs no telling: it was syntax."""
        self._raw = []

    # --- reading ------------------------------------------------------------------------------

    def until(self, marks: Sequence[str], sink: Sink) -> Parser[str | None]:
        """The first of `marks`, which is read over; None at the end. What is before goes to `sink`.

        What may yet become a mark is held back.
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
        self, mark: str, begin: str, read: Callable[[Automaton], Parser[bool]]
    ) -> Parser[int | None]:
        """How many calls that `begin` so were read one after the other, the first's beginning being
        `mark` if that was seen already; None if one of them could not be read."""
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
        """Whether `text` comes next; it is read over if it does."""
        while len(self._buffer) < len(text) and text.startswith(self._buffer) and not self._ended:
            yield
        if not self._buffer.startswith(text):
            return False
        self._take(len(text))
        return True

    def space(self) -> Parser[None]:
        """Nothing; spaces and line ends are read over."""
        while True:
            rest = self._buffer.lstrip()
            self._take(len(self._buffer) - len(rest))
            if rest or self._ended:
                return
            yield

    def peek(self) -> Parser[str]:
        """The next character, not read over; empty at the end."""
        while not self._buffer and not self._ended:
            yield
        return self._buffer[:1]

    def skip_to(self, mark: str) -> Parser[bool]:
        """Whether `mark` comes next, after space; both are read over if it does, else neither."""
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
        """What comes before any of the characters `ends`; empty if it is longer than a name is."""
        while True:
            at = min((i for end in ends if (i := self._buffer.find(end)) >= 0), default=-1)
            if at > MAX_NAME or (at < 0 and (self._ended or len(self._buffer) > MAX_NAME)):
                return ""
            if at >= 0:
                word = self._take(at)
                return word if word.isprintable() else ""
            yield

    def json(self, sink: Sink) -> Parser[bool]:
        """Whether a whole JSON value came; its text goes to `sink` as it does."""
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
        """Nothing; `text`, just read, is to be read again."""
        self._buffer = text + self._buffer


def _begun(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest
