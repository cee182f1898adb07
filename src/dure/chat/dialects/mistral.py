"""Mistral: [TOOL_CALLS] before an array of calls, or since 2025 before each call's name.

Mistral 7B v0.3, Nemo and Small 3 write arrays; Devstral, Small 3.2, Magistral and Ministral 3 write
[TOOL_CALLS]name[ARGS]{…}, once a call, and some a [CALL_ID] between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import CallFormat, Delimiters, Dialect, HasToken, Schemas
from dure.chat.dialects.jsoncalls import arguments_rule, call_rule, read_arguments, read_calls
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, some_of

CALLS, ARGUMENTS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
THINK = Delimiters("[THINK]", "[/THINK]", "[/THINK]")


@dataclass(frozen=True)
class MistralCalls:
    """[TOOL_CALLS][{"name": …, "arguments": {…}}, …], or named: [TOOL_CALLS]f[ARGS]{…}.

    Both are read, whichever the template shows.
    """

    named: bool
    start_markers: tuple[str, ...] = (CALLS,)
    marks: tuple[str, ...] = (CALLS, ARGUMENTS, ID)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read an array of calls, or one call by its name."""
        yield from reader.space()
        if (yield from reader.peek()) in ("[", "{"):
            return (yield from read_calls(reader))
        name = (yield from reader.word("[{\n")).strip()
        if (yield from reader.expect(ID)):
            yield from reader.word("[{\n")
        yield from reader.expect(ARGUMENTS)
        yield from reader.space()
        return (yield from read_arguments(reader, name))

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls in the template's form."""
        if not self.named:
            calls = some_of(call_rule(tools, rules), '", "', several=several)
            return f"{rules.literal(CALLS + '[')} {calls} {rules.literal(']')}"
        named = [
            f"{rules.literal(f'{CALLS}{name}{ARGUMENTS}')} {arguments_rule(name, schema, rules)}"
            for name, schema in tools.items()
        ]
        return some_of(rules.add(one_of(named)), "", several=several)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of Mistral's templates that have tools, or None."""
    if CALLS not in template:
        return None
    named = ARGUMENTS in template
    thinks = THINK.open in template or has_token(THINK.open)
    form = CallFormat(f'{CALLS}[{{"name": "', '", "arguments": ', "}]")
    return Dialect(
        "Mistral",
        think=THINK if thinks else None,
        calls=MistralCalls(named),
        call_ends_thinking=True,
        call_format=CallFormat(CALLS, ARGUMENTS, "") if named else form,
    )
