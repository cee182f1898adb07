"""Calls in a block of code: what small Hermes models write in place of their marks.

Taken for calls only where no other reading is left: the block begins a line, holds nothing but the
name of a tool that was given and an object of arguments, and only more such blocks follow it.
Until that is certain its text is held back; if it proves wrong, the text is content as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.text.dialects.automaton import Automaton, Parser
from dure.text.dialects.jsoncalls import FENCE, read_known_call


@dataclass(frozen=True)
class FencedCalls:
    """```json⏎{"name": …, "arguments": {…}}⏎```, at the end of an answer."""

    begins: tuple[str, ...] = (FENCE,)

    def parse(self, automaton: Automaton, mark: str) -> Parser[bool]:
        """Whether a block that is a call followed, and after it nothing but others."""
        calls = []
        while mark or (yield from automaton.expect(FENCE)):
            mark = ""
            yield from automaton.expect("json")
            call = yield from read_known_call(automaton)
            if call is None:
                return False
            calls.append(call)
            yield from automaton.space()
            closed = yield from automaton.expect(FENCE)
            yield from automaton.space()
            if not closed:
                break
        if (yield from automaton.peek()):
            return False
        for name, arguments in calls:
            automaton.begin_call(name)
            automaton.arguments(arguments)
        return True
