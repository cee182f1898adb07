"""Hermes: <tool_call> around a JSON object, one a call. Qwen2.5, QwQ, Qwen3, MiMo, ERNIE 4.5."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import THINK, CallFormat, Dialect, HasToken, Schemas, think_in
from dure.chat.dialects.guessed import GuessedCalls
from dure.chat.dialects.jsoncalls import call_rule, read_call
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, quoted, some_of

OPEN, CLOSE, NEWLINE = "<tool_call>", "</tool_call>", "\n"
FORM = CallFormat(f'{OPEN}\n{{"name": "', '", "arguments": ', f"}}\n{CLOSE}")


@dataclass(frozen=True)
class HermesCalls:
    """<tool_call>⏎{"name": …, "arguments": {…}}⏎</tool_call>."""

    start_markers: tuple[str, ...] = (OPEN,)
    marks: tuple[str, ...] = (OPEN, CLOSE)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read one call; the end delimiter may be missing at the end of the text."""
        if not (yield from read_call(reader)):
            return False
        yield from reader.space()
        return (yield from reader.expect(CLOSE)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls, each between its delimiters."""
        call = call_rule(tools, rules)
        between = rules.add(
            f"{rules.literal(OPEN + NEWLINE)} {call} {rules.literal(NEWLINE + CLOSE)}"
        )
        return some_of(between, quoted(NEWLINE), several=several)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows calls so, or None."""
    if OPEN not in template or "arguments" not in template:
        return None
    thinks = think_in(template, has_token)
    think = THINK if thinks else None
    return Dialect(
        "Hermes",
        think=think,
        calls=HermesCalls(),
        call_ends_thinking=True,
        fallback_parser=GuessedCalls(),
        call_format=FORM,
    )
