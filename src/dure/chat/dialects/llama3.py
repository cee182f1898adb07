"""Llama 3: a call is the whole answer, a JSON object with no delimiter before it but a rare one."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import Dialect, HasToken, Schemas
from dure.chat.dialects.jsoncalls import call_rule, read_call
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules

TAG = "<|python_tag|>"


@dataclass(frozen=True)
class BareCalls:
    """{"name": …, "parameters": {…}}, where the answer begins; more follow a semicolon."""

    start_markers: tuple[str, ...] = (TAG,)
    marks: tuple[str, ...] = (TAG,)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read calls of known tools; return whether they came."""
        while True:
            if not (yield from read_call(reader, known=True)):
                return False
            reader.end_call()
            yield from reader.space()
            if not (yield from reader.expect(";")):
                return True

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return what says one call: the template takes no more in a turn."""
        return call_rule(tools, rules, key="parameters")


LLAMA3 = Dialect("Llama 3", calls=BareCalls(), bare_calls=True)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of Llama 3's templates, or None."""
    found = "<|start_header_id|>" in template and '"parameters"' in template
    return LLAMA3 if found else None
