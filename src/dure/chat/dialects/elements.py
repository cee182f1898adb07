"""Functions invoked with an element a parameter, and elements within for objects and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.json_schema import resolved, types_of
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Ends, Members, as_json, property_schema
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
        root = reader.tools.get(tool, {})
        schema = property_schema(root, key)
        if schema is not None and types_of(schema, root) == {"string"}:
            end = yield from members.read(key, self._ends(key), string=True)
            return end is not None
        value = yield from self._value(reader, key, schema, root, MAX_DEPTH)
        if value is not None:
            members.add_json(key, value)
        return value is not None

    def _ends(self, key: str) -> Ends:
        invoke = f"{self.prefix}<{INVOKE}"
        return Ends(
            self.mark(f"/{key}"),
            (f"{self.prefix}<", ">"),
            self.mark(f"/{INVOKE}"),
            after=(invoke, self.mark(f"/{BLOCK}")),
            any_name=True,
        )

    def _value(
        self, reader: StreamReader, key: str, schema: Any, root: Any, depth: int
    ) -> Parser[str | None]:
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
                raw = "".join(text)
                return _json(inner, schema, root) if inner else _scalar(raw, schema, root)
            if depth == 0:
                return None
            within = _within(schema, name, root)
            value = yield from self._value(reader, name, within, root, depth - 1)
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
            members = members_rule(name, schema, rules, around, marks=(self.prefix,))
            invocations.append(f"{head} {members} {tail}")
        listed = some_of(rules.add(one_of(invocations)), "", several=several)
        block = rules.literal(self.mark(BLOCK) + "\n"), rules.literal(self.mark(f"/{BLOCK}"))
        return f"{block[0]} {listed} {block[1]}"


def _json(inner: list[tuple[str, str]], schema: Any, root: Any) -> str:
    """Return the JSON of nested elements: an array if all are items, else an object."""
    types = types_of(schema, root)
    items = all(name == ITEM for name, _ in inner)
    if items and ("array" in types or "object" not in types):
        return f"[{', '.join(value for _, value in inner)}]"
    members = [f"{json.dumps(name, ensure_ascii=False)}: {value}" for name, value in inner]
    return f"{{{', '.join(members)}}}"


def _scalar(text: str, schema: Any, root: Any) -> str:
    """Convert a text by its schema; no text is an empty array or object where one is meant."""
    empty = {frozenset({"array"}): "[]", frozenset({"object"}): "{}"}
    types = types_of(schema, root)
    return empty[types] if not text.strip() and types in empty else as_json(text, schema, root)


def _within(schema: Any, name: str, root: Any) -> Any:
    """Return the schema of the element `name` within one of `schema`, or None."""
    found = property_schema(schema, name, root)
    if found is not None or name != ITEM:
        return found
    schema = resolved(schema, root)
    choices: list[Any] = [schema]
    for key in ("anyOf", "oneOf", "allOf"):
        given = schema.get(key) if isinstance(schema, Mapping) else None
        choices += given if isinstance(given, Sequence) else ()
    listed = [resolved(choice, root) for choice in choices]
    return next(
        (each["items"] for each in listed if isinstance(each, Mapping) and "items" in each), None
    )
