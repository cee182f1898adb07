"""Reads calls without their delimiters, as small models write them more often than not.

Of 30 answers that should be calls, Qwen2.5-Coder 1.5B writes 15 as blocks of code and 5 bare, the
0.5B 5 and 15. They are taken for calls only where no other reading is left: one begins a line,
holds nothing but the name of a tool that was given and an object of arguments, and nothing follows
but more of them. Until that is certain the text is held back; if it proves wrong, it is content.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.jsoncalls import FENCE, read_known_call
from dure.chat.dialects.stream_reader import Parser, StreamReader

BRACE, LIST, LIST_END = "{", "<tools>", "</tools>"
_ENDS = {FENCE: FENCE, LIST: LIST_END, BRACE: ""}


@dataclass(frozen=True)
class GuessedCalls:
    """{"name": …, "arguments": {…}} at the end of an answer: bare, in ```json⏎…⏎```, in <tools>."""

    start_markers: tuple[str, ...] = (FENCE, LIST, BRACE)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read a call and nothing but calls after it; return whether that is all that followed."""
        calls = []
        while True:
            if mark == FENCE:
                yield from reader.expect("json")
            call = yield from read_known_call(reader, opened=mark == BRACE)
            if call is None:
                return False
            calls.append(call)
            yield from reader.space()
            yield from reader.expect(_ENDS[mark])
            yield from reader.space()
            if (yield from reader.peek()) == "":
                break
            mark = ""
            for begin in self.start_markers:
                if not mark and (yield from reader.expect(begin)):
                    mark = begin
            if not mark:
                return False
        for name, arguments in calls:
            reader.begin_call(name)
            reader.arguments(arguments)
        return True
