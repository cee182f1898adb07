"""StreamParser: splits a model's text, as it comes, into reasoning, content and tool calls.

One class serves every dialect; a CallSyntax reads what stands between the delimiters of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dure.chat.dialects.event import Event, EventKind
from dure.chat.dialects.stream_reader import Parser, StreamReader, new_id

if TYPE_CHECKING:
    from dure.chat.dialects.dialect import CallReader, Dialect, MessageForm

_LONGEST_HEAD = 512  # characters of a message's head


class StreamParser(StreamReader):
    """Turns one answer into events. `push` its text in any pieces, then `finish`; neither raises.

    Joined, the events do not depend on how the text was cut. `thinking`: the text so far ends
    within reasoning. `unparsed`: how many calls began but could not be read.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        tools: Mapping[str, Mapping[str, Any]] | None = None,
        starts_in_reasoning: bool = False,
        make_id: Callable[[], str] = new_id,
    ) -> None:
        """Start to parse an answer.

        tools: the schema of each tool's arguments; without any, no text is taken for a call.
        starts_in_reasoning: the prompt ends within reasoning.
        """
        super().__init__(tools, make_id)
        self.thinking = starts_in_reasoning and dialect.think is not None
        self.unparsed = 0
        self._dialect = dialect
        self._syntax = dialect.calls if self.tools else None
        self._fallback = dialect.fallback_parser if self.tools else None
        self._fresh = False  # just after a delimiter: drop the space that follows
        self._stray = ""  # a delimiter that comes too late and is skipped
        self._line_begins = True  # the content so far ends with a line end
        self._parser: Parser[None] = self._parse()
        self._over = False

    @property
    def pending(self) -> int:
        """The number of characters at the end of the text that no event holds yet."""
        return len(self._buffer) + len(self._space)

    def push(self, text: str) -> list[Event]:
        """Read `text`; return the events it adds."""
        self._buffer += text
        return self._run()

    def finish(self) -> list[Event]:
        """Return the events that were held back. No text may be pushed afterwards."""
        self._ended = True
        return self._run()

    def _run(self) -> list[Event]:
        if not self._over:
            self._over = next(self._parser, True) is True
        events, self._events = self._events, []
        return events

    # --- the grammar of an answer -----------------------------------------------------------------

    def _parse(self) -> Parser[None]:
        if self._dialect.messages is not None:
            yield from self._messages(self._dialect.messages)
            return
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
                # A model that chose not to reason may write the end delimiter alone.
                self._fresh = yield from self.skip_to(think.close)
                return
        self._fresh = True
        start_markers = (
            self._syntax.start_markers if self._syntax and self._dialect.call_ends_thinking else ()
        )
        mark = yield from self.until((think.close, *start_markers), self._reason)
        if mark is None:
            return
        self.thinking = False
        self._drop_space()
        if mark != think.close:  # a call that forgot to end the reasoning
            self._stray = think.close
            self.unread(mark)

    # --- answers that are messages ----------------------------------------------------------------

    def _messages(self, form: MessageForm) -> Parser[None]:
        """Read messages to the end: thoughts, content and calls, by their heads."""
        head: str | None = form.channel + form.thoughts if self.thinking else ""
        last: EventKind | None = None
        while True:
            if head == "":
                head = yield from self._head(form)
            written = (head or "").replace(" ", "")
            kind: EventKind = "reasoning" if form.channel + form.thoughts in written else "content"
            if head is not None and form.recipient in head and self._syntax is not None:
                yield from self._call(head + form.body, self._syntax)
                kind = "call"
            elif kind == last:
                self._space = "\n\n"  # between two messages of one kind
            self.thinking = kind == "reasoning"
            # A channel's mark that begins no head is text.
            marks = (*form.ends, form.start, *(() if head is None else form.begins))
            mark = yield from self.until(marks, self._reason if self.thinking else self._say)
            if mark is None:
                if not self._fresh:  # else the message is empty, and its space stands before none
                    self._release(None)
                return
            self.thinking, last, head = False, kind, ""
            self._drop_space()
            if mark in form.begins:
                self.unread(mark)
            elif mark != form.start:
                yield from self.skip_to(form.start)

    def _head(self, form: MessageForm) -> Parser[str | None]:
        """Read a message's head; return None, and read nothing, where the text has none."""
        choices = (*form.begins, form.recipient, form.role)
        found, _ = yield from self.ahead(0, choices)
        if not found:
            return None
        while True:
            at = self._buffer.find(form.body)
            if 0 <= at <= _LONGEST_HEAD:
                head = self._take(at)
                self._take(len(form.body))
                self._fresh = True
                return head or form.role
            if at > 0 or self._ended or len(self._buffer) > _LONGEST_HEAD + len(form.body):
                return None
            yield

    def _answer(self, ends: Sequence[str]) -> Parser[str | None]:
        """Read content and calls; return the one of `ends` that came, None at the end."""
        start_markers = self._syntax.start_markers if self._syntax else ()
        guesses = self._fallback.start_markers if self._fallback else ()
        names: tuple[str, ...] = ()
        if self._syntax and self._dialect.names_begin_calls:
            names = tuple(
                f"{name}{line_end}{{" for name in self.tools for line_end in ("\n", " \n")
            )
        while True:
            strays = (self._stray,) if self._stray else ()
            marks = (*ends, *start_markers, *strays, *guesses, *names)
            mark = yield from self.until(marks, self._say)
            if mark is None or mark in ends:
                self._release(mark)
                return mark
            if mark in strays:
                self._stray = ""
                self._drop_space()
            elif mark in start_markers and self._syntax:
                yield from self._call(mark, self._syntax)
            elif mark in names and self._syntax and self._line_begins:
                self.unread(mark)
                yield from self._call("", self._syntax)
            elif mark in guesses and self._fallback and self._line_begins:
                yield from self._call(mark, self._fallback)
            else:
                self._say(mark)

    def _call(self, mark: str, syntax: CallReader) -> Parser[None]:
        space = self._space
        self._space = ""
        self._raw = [mark]
        discard_raw = self.calls
        well = yield from syntax.parse(self, mark)
        self.end_call()
        raw, self._raw = self._raw, None
        if well:
            self._fresh = self._line_begins = True
            return
        self.unparsed += syntax is self._syntax
        if self.calls == discard_raw:  # not a call after all: the space before it is content
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
        """Emit `text` without space at its end, and at its beginning after a delimiter."""
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
        """Emit the space held back, if the text ended there."""
        if mark is None and self._space and not self.thinking:
            if not self.calls:
                self._events.append(Event("content", self._space))
            self._space = ""
