"""Solar-Open: answers are messages, whose heads are one token: thoughts, content, or calls.

A template that is asked for little or no effort ends the thoughts before they begin.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import Delimiters, Dialect, HasToken, MessageForm, Schemas
from dure.chat.dialects.jsoncalls import arguments_rule, read_arguments
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, some_of

THOUGHTS, CONTENT, CALLS = "<|think|>", "<|content|>", "<|tool_calls|>"
CALL, NAME, ARGUMENTS, CALL_END = (
    "<|tool_call:begin|>",
    "<|tool_call:name|>",
    "<|tool_call:args|>",
    "<|tool_call:end|>",
)

FORM = MessageForm(
    start="<|begin|>",
    role="assistant",
    channel="<|",
    body="|>",
    ends=("<|end|>", "<|calls|>"),
    thoughts="think",
    answer=CONTENT,
    recipient="tool_calls",
    heads=(THOUGHTS, CONTENT, CALLS),
)


@dataclass(frozen=True)
class SolarCalls:
    """<|tool_call:begin|>ID<|tool_call:name|>f<|tool_call:args|>{…}<|tool_call:end|>, and more."""

    start_markers: tuple[str, ...] = (CALLS,)
    marks: tuple[str, ...] = (CALLS, CALL, NAME, ARGUMENTS, CALL_END)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls of the message whose head is `mark`."""
        return bool((yield from reader.listed(CALLS, CALL, self._call)))

    def _call(self, reader: StreamReader) -> Parser[bool]:
        yield from reader.word("<{")  # its id, which the model makes up
        if not (yield from reader.expect(NAME)):
            return False
        name = (yield from reader.word("<{")).strip()
        if not (yield from reader.expect(ARGUMENTS)):
            return False
        if not (yield from read_arguments(reader, name)):
            return False
        yield from reader.space()
        return (yield from reader.expect(CALL_END)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of a message of calls, whose end is the turn's."""
        calls = []
        for name, schema in tools.items():
            head, tail = rules.literal(NAME + name + ARGUMENTS), rules.literal(CALL_END)
            arguments = arguments_rule(name, schema, rules)
            calls.append(f"{rules.literal(CALL)} /[a-z0-9]{{10}}/ {head} {arguments} {tail}")
        return f"{rules.literal(CALLS)} {some_of(rules.add(one_of(calls)), '', several=several)}"


SOLAR = Dialect(
    "Solar-Open",
    Delimiters(THOUGHTS, "<|end|>", f"<|end|>{FORM.start}{FORM.role}{CONTENT}"),
    SolarCalls(),
    messages=FORM,
)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows thoughts and content so, or None."""
    return SOLAR if f"assistant{THOUGHTS}" in template and CONTENT in template else None
