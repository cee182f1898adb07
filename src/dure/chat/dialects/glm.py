"""GLM: a call is a name, and keys and values between delimiters; in GLM-4 a name, and JSON."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import THINK, CallFormat, Dialect, HasToken, Schemas, think_in
from dure.chat.dialects.jsoncalls import arguments_rule, read_arguments
from dure.chat.dialects.keyvalue import KeyCalls
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

GLM = Dialect("GLM", THINK, KeyCalls(), call_ends_thinking=True)


@dataclass(frozen=True)
class NamedCalls:
    """f⏎{…} at the beginning of a line, where f is the name of a tool that was given."""

    start_markers: tuple[str, ...] = ()  # the tools' names are: Dialect.names_begin_calls
    marks: tuple[str, ...] = ()

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read calls, one after the other; return whether the first was one."""
        name: str | None = (yield from reader.word("\n{")).strip()
        while True:
            yield from reader.space()
            if not (yield from read_arguments(reader, name or "")):
                return False
            reader.end_call()
            yield from reader.space()
            name = yield from reader.word_ahead(0, "\n")
            if name is None or name.strip() not in reader.tools:
                return True
            name = (yield from reader.word("\n")).strip()

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls, each of two lines."""
        calls = [
            f"{rules.literal(f'{name}{chr(10)}')} {arguments_rule(name, schema, rules)}"
            for name, schema in tools.items()
        ]
        return some_of(rules.add(one_of(calls)), quoted("\n"), several=several)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of GLM's template, or None."""
    if "[gMASK]" not in template:
        return None
    if "<arg_key>" in template:
        return GLM
    if "<|observation|>" not in template:
        return None
    return Dialect(
        "GLM-4",
        think=THINK if think_in(template, has_token) else None,
        calls=NamedCalls(),
        names_begin_calls=True,
        call_format=CallFormat("", "\n", ""),
    )
