"""Calls without the marks that are their own, as small models write them more often than not.

Of 30 answers that should be calls, Qwen2.5-Coder 1.5B writes 15 as blocks of code and 5 bare, the
0.5B 5 and 15. They are taken for calls only where no other reading is left: one begins a line,
holds nothing but the name of a tool that was given and an object of arguments, and nothing follows
but more of them. Until that is certain the text is held back; if it proves wrong, it is content.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.automaton import Automaton, Parser
from dure.chat.dialects.jsoncalls import FENCE, read_known_call

BRACE, LIST, LIST_END = "{", "<tools>", "</tools>"
_ENDS = {FENCE: FENCE, LIST: LIST_END, BRACE: ""}


@dataclass(frozen=True)
class GuessedCalls:
    """{"name": …, "arguments": {…}} at the end of an answer: bare, in ```json⏎…⏎```, in <tools>."""

    begins: tuple[str, ...] = (FENCE, LIST, BRACE)

    def parse(self, automaton: Automaton, mark: str) -> Parser[bool]:
        """Whether a call followed, and after it nothing but others."""
        calls = []
        while True:
            if mark == FENCE:
                yield from automaton.expect("json")
            call = yield from read_known_call(automaton, opened=mark == BRACE)
            if call is None:
                return False
            calls.append(call)
            yield from automaton.space()
            yield from automaton.expect(_ENDS[mark])
            yield from automaton.space()
            if (yield from automaton.peek()) == "":
                break
            mark = ""
            for begin in self.begins:
                if not mark and (yield from automaton.expect(begin)):
                    mark = begin
            if not mark:
                return False
        for name, arguments in calls:
            automaton.begin_call(name)
            automaton.arguments(arguments)
        return True
