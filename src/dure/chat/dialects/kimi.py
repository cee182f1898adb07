"""Kimi K2 to K2.6: delimiters of their own around a numbered name and JSON arguments."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import (
    THINK,
    CallFormat,
    Delimiters,
    Dialect,
    HasToken,
    Schemas,
    think_in,
)
from dure.chat.dialects.jsoncalls import arguments_rule, read_arguments
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, some_of

CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_END, SEPARATOR = (
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
    "<|tool_call_argument_begin|>",
)
PREFIX = "functions."
FORM = CallFormat(f"{CALLS}{CALL}{PREFIX}", f":0{SEPARATOR}", CALL_END + CALLS_END)


@dataclass(frozen=True)
class KimiCalls:
    """<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>, and more.

    The number counts the calls of a conversation. Neither it nor "functions." is always written.
    """

    start_markers: tuple[str, ...] = (CALLS, CALL)
    marks: tuple[str, ...] = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiters may be missing."""
        count = yield from reader.listed(mark, CALL, self._call)
        if count is not None:
            yield from reader.expect(CALLS_END)
        return bool(count)

    def _call(self, reader: StreamReader) -> Parser[bool]:
        written = (yield from reader.word("<\n{")).strip()
        name, _, number = written.rpartition(":")
        name = (name if number.isdecimal() else written).removeprefix(PREFIX)
        yield from reader.space()
        if not (yield from reader.expect(SEPARATOR)):
            return False
        yield from reader.space()
        if not (yield from read_arguments(reader, name)):
            return False
        yield from reader.space()
        return (yield from reader.expect(CALL_END)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls between the delimiters of all of them."""
        calls = []
        for name, schema in tools.items():
            head = rules.literal(f"{CALL}{PREFIX}{name}:")
            arguments = arguments_rule(name, schema, rules)
            separator, end = rules.literal(SEPARATOR), rules.literal(CALL_END)
            calls.append(f"{head} /[0-9]{{1,4}}/ {separator} {arguments} {end}")
        listed = some_of(rules.add(one_of(calls)), "", several=several)
        return f"{rules.literal(CALLS)} {listed} {rules.literal(CALLS_END)}"


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows turns or calls so, or None."""
    if CALL not in template and "<|im_middle|>" not in template:
        return None
    thinks = think_in(template, has_token)
    return Dialect(
        "Kimi K2",
        think=Delimiters(THINK.open, THINK.close, THINK.close) if thinks else None,
        calls=KimiCalls(),
        call_ends_thinking=True,
        call_format=FORM,
    )
