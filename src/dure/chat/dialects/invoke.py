"""Invoked functions as XML: <invoke name="f"><parameter name="p">value</parameter></invoke>."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.json_schema import types_of
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Ends, Members, property_schema
from dure.chat.grammar_rules import Rules, one_of, some_of


@dataclass(frozen=True)
class InvokeCalls:
    """<block>⏎<invoke name="f">⏎<parameter name="p">value</parameter>⏎</invoke>⏎</block>.

    prefix: what stands before the names of the inner delimiters. typed: each parameter says whether
    it is a string (string="true") or JSON.
    """

    block: str
    prefix: str = ""
    typed: bool = False

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiter of all calls; also that of a single one where it cannot be mere text."""
        return (f"<{self.block}>", self._mark("invoke")) if self.prefix else (f"<{self.block}>",)

    @property
    def marks(self) -> tuple[str, ...]:
        """The block's delimiters, and the prefix, which is a token by itself."""
        inner = (self.prefix,) if self.prefix else ()
        return (f"<{self.block}>", f"</{self.block}>", *inner)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiter may be missing."""
        invoke = self._mark("invoke")
        count = yield from reader.listed(mark, invoke, self._invoke)
        if not count:
            return False
        return (yield from reader.expect(f"</{self.block}>")) or not (yield from reader.peek())

    def _mark(self, name: str, *, end: bool = False) -> str:
        return f"</{self.prefix}{name}>" if end else f"<{self.prefix}{name}"

    def _invoke(self, reader: StreamReader) -> Parser[bool]:
        name = yield from _attribute(reader, "name")
        if not name or not (yield from reader.expect(">")):
            return False
        reader.begin_call(name)
        members = Members(reader, reader.tools.get(name, {}))
        while True:
            yield from reader.space()
            if (yield from reader.expect(self._mark("invoke", end=True))):
                break
            if not (yield from self._parameter(reader, members, name)):
                return False
        members.close()
        reader.end_call()
        return True

    def _parameter(self, reader: StreamReader, members: Members, tool: str) -> Parser[bool]:
        if not (yield from reader.expect(self._mark("parameter"))):
            return False
        name = yield from _attribute(reader, "name")
        kind = (yield from _attribute(reader, "string")) if self.typed else None
        if not name or not (yield from reader.expect(">")):
            return False
        ends = self._ends
        if kind != "false":
            string = kind == "true"
            return (yield from members.read(name, ends, string=string)) is not None
        return (yield from _json_member(reader, members, name, ends, tool))

    @property
    def _ends(self) -> Ends:
        invoke = self._mark("invoke")
        return Ends(
            self._mark("parameter", end=True),
            (f'{self._mark("parameter")} name="', '"'),
            self._mark("invoke", end=True),
            after=(invoke, f"</{self.block}>"),
        )

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of invocations within the block."""

        def around(name: str, kind: str) -> tuple[str, str]:
            typed = f' string="{str(kind == "string").lower()}"' if self.typed else ""
            before = f'{self._mark("parameter")} name="{name}"{typed}>'
            return before, self._mark("parameter", end=True) + "\n"

        invocations = []
        for name, schema in tools.items():
            head = rules.literal(f'{self._mark("invoke")} name="{name}">\n')
            tail = rules.literal(self._mark("invoke", end=True) + "\n")
            members = members_rule(
                name, schema, rules, around, marks=self._ends.marks, typed=self.typed
            )
            invocations.append(f"{head} {members} {tail}")
        listed = some_of(rules.add(one_of(invocations)), "", several=several)
        block = rules.literal(f"<{self.block}>\n"), rules.literal(f"</{self.block}>")
        return f"{block[0]} {listed} {block[1]}"


def _json_member(
    reader: StreamReader, members: Members, name: str, ends: Ends, tool: str
) -> Parser[bool]:
    """Read a value that is declared to be JSON; return whether it ended."""
    parts: list[str] = []
    if (yield from members.until(name, ends, parts.append)) is None:
        return False
    root = reader.tools.get(tool, {})
    schema = property_schema(root, name)
    if schema is None or types_of(schema, root) == {"string"}:
        members.add_json(name, "".join(parts))
    else:
        members.add(name, "".join(parts))
    return True


def _attribute(reader: StreamReader, name: str) -> Parser[str | None]:
    """Read ` name="…"`; return its value, or None if it does not come next."""
    yield from reader.space()
    if not (yield from reader.expect(f'{name}="')):
        return None
    value = yield from reader.word('"\n')
    return value if (yield from reader.expect('"')) else None
