"""Functions invoked with an element a parameter, and elements within for objects and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Members, as_json, members_rule, property_schema, types_of
from dure.chat.grammar_rules import Rules, one_of, some_of

BLOCK, INVOKE, ITEM = "tool_call", "invoke", "item"
MAX_DEPTH = 64


@dataclass(frozen=True)
class ElementCalls:
    """<tool_call>⏎<invoke name="f"><city>Oslo</city><near><item>…</item></near></invoke>⏎…

    Before every mark stands the prefix, a token that nothing else is written with. A value that is
    no text may also be JSON.
    """

    prefix: str

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiters of all calls, and of a single one."""
        return (self.mark(BLOCK), f"{self.prefix}<{INVOKE}")

    @property
    def marks(self) -> tuple[str, ...]:
        """The prefix, and the block's delimiters, which are tokens of their own after it."""
        return (self.prefix, f"<{BLOCK}>", f"</{BLOCK}>")

    def mark(self, name: str) -> str:
        """Return the delimiter called `name`."""
        return f"{self.prefix}<{name}>"

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiter may be missing."""
        invoke = f"{self.prefix}<{INVOKE}"
        count = yield from reader.listed(mark, invoke, self._invoke)
        if not count:
            return False
        return (yield from reader.expect(self.mark(f"/{BLOCK}"))) or not (yield from reader.peek())

    def _invoke(self, reader: StreamReader) -> Parser[bool]:
        yield from reader.space()
        if not (yield from reader.expect('name="')):
            return False
        name = yield from reader.word('"\n')
        if not name or not (yield from reader.expect('">')):
            return False
        reader.begin_call(name)
        members = Members(reader, reader.tools.get(name, {}))
        while True:
            yield from reader.space()
            if not (yield from reader.expect(f"{self.prefix}<")):
                return False
            key = yield from reader.word(">\n")
            if not key or not (yield from reader.expect(">")):
                return False
            if key == f"/{INVOKE}":
                break
            if not (yield from self._member(reader, members, key, name)):
                return False
        members.close()
        reader.end_call()
        return True

    def _member(self, reader: StreamReader, members: Members, key: str, tool: str) -> Parser[bool]:
        schema = property_schema(reader.tools.get(tool, {}), key)
        if schema is not None and types_of(schema) == {"string"}:
            end = yield from members.read(key, (self.mark(f"/{key}"),), string=True)
            return end is not None
        value = yield from self._value(reader, key, schema, MAX_DEPTH)
        if value is not None:
            members.add_json(key, value)
        return value is not None

    def _value(self, reader: StreamReader, key: str, schema: Any, depth: int) -> Parser[str | None]:
        """Return the JSON of the element `key`; None if it does not end, or is too deep."""
        text: list[str] = []
        inner: list[tuple[str, str]] = []
        while (yield from reader.until((self.prefix,), text.append)) is not None:
            if not (yield from reader.expect("<")):
                return None
            name = yield from reader.word(">\n")
            if not name or not (yield from reader.expect(">")):
                return None
            if name == f"/{key}":
                return _json(inner, schema) if inner else _scalar("".join(text), schema)
            if depth == 0:
                return None
            value = yield from self._value(reader, name, _within(schema, name), depth - 1)
            if value is None:
                return None
            inner.append((name, value))
        return None

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of invocations within the block; objects and arrays are JSON."""

        def around(name: str, _kind: str) -> tuple[str, str]:
            return self.mark(name), self.mark(f"/{name}")

        invocations = []
        for name, schema in tools.items():
            head = rules.literal(f'{self.prefix}<{INVOKE} name="{name}">')
            tail = rules.literal(self.mark(f"/{INVOKE}") + "\n")
            invocations.append(f"{head} {members_rule(schema, rules, around)} {tail}")
        listed = some_of(rules.add(one_of(invocations)), "", several=several)
        block = rules.literal(self.mark(BLOCK) + "\n"), rules.literal(self.mark(f"/{BLOCK}"))
        return f"{block[0]} {listed} {block[1]}"


def _json(inner: list[tuple[str, str]], schema: Any) -> str:
    """Return the JSON of nested elements: an array if all are items, else an object."""
    types = types_of(schema)
    items = all(name == ITEM for name, _ in inner)
    if items and ("array" in types or "object" not in types):
        return f"[{', '.join(value for _, value in inner)}]"
    members = [f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in inner]
    return f"{{{', '.join(members)}}}"


def _scalar(text: str, schema: Any) -> str:
    """Convert a text by its schema; no text is an empty array or object where one is meant."""
    empty = {frozenset({"array"}): "[]", frozenset({"object"}): "{}"}
    if not text.strip() and types_of(schema) in empty:
        return empty[types_of(schema)]
    return as_json(text, schema)


def _within(schema: Any, name: str) -> Any:
    """Return the schema of the element `name` within one of `schema`, or None."""
    if not isinstance(schema, Mapping):
        return None
    choices: list[Any] = [schema]
    for key in ("anyOf", "oneOf", "allOf"):
        listed = schema.get(key)
        choices += listed if isinstance(listed, Sequence) else ()
    for choice in choices:
        if not isinstance(choice, Mapping):
            continue
        found = property_schema(choice, name)
        if found is None and name == ITEM:
            found = choice.get("items")
        if found is not None:
            return found
    return None
