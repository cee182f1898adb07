"""Keys and values between delimiters: the calls of Hunyuan 3 and of GLM."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Ends, Members
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of


@dataclass(frozen=True)
class KeyCalls:
    """<tool_call>f⏎<arg_key>k</arg_key>⏎<arg_value>v</arg_value>⏎</tool_call>…

    listed: with <tool_calls>⏎ around all, and <tool_sep> after each name. Each mark's name ends in
    the suffix.
    """

    suffix: str = ""
    listed: bool = False

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiter of all calls, if there is one, and that of a single call."""
        single = self.mark("tool_call")
        return (self.mark("tool_calls"), single) if self.listed else (single,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Every delimiter."""
        paired = ("tool_call", "arg_key", "arg_value", *(("tool_calls",) if self.listed else ()))
        both = [mark for name in paired for mark in (self.mark(name), self.mark(f"/{name}"))]
        return (*both, self.mark("tool_sep")) if self.listed else tuple(both)

    def mark(self, name: str) -> str:
        """Return the delimiter called `name`."""
        return f"<{name}{self.suffix}>"

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiter may be missing."""
        single = self.mark("tool_call")
        if not self.listed:
            return (yield from self._call(reader))
        count = 0
        while True:
            yield from reader.space()
            if mark == single or (yield from reader.expect(single)):
                mark = ""
                if not (yield from self._call(reader)):
                    return False
                count += 1
                continue
            yield from reader.expect(self.mark("/tool_calls"))
            return count > 0

    def _call(self, reader: StreamReader) -> Parser[bool]:
        name = (yield from reader.word("<\n")).strip()
        if not name:
            return False
        yield from reader.space()
        if self.listed and not (yield from reader.expect(self.mark("tool_sep"))):
            return False
        reader.begin_call(name)
        members = Members(reader, reader.tools.get(name, {}))
        while True:
            yield from reader.space()
            if (yield from reader.expect(self.mark("/tool_call"))):
                break
            if not (yield from reader.expect(self.mark("arg_key"))):
                return False
            key: list[str] = []
            if (yield from reader.until((self.mark("/arg_key"),), key.append)) is None:
                return False
            yield from reader.space()
            if not (yield from reader.expect(self.mark("arg_value"))):
                return False
            if (yield from members.read("".join(key).strip(), self._ends)) is None:
                return False
        members.close()
        reader.end_call()
        return True

    @property
    def _ends(self) -> Ends:
        key = (self.mark("arg_key"), self.mark("/arg_key"))
        after = (self.mark("tool_call"), self.mark("/tool_calls")) if self.listed else ()
        return Ends(self.mark("/arg_value"), key, self.mark("/tool_call"), after)

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls, within the delimiters of all if there are any."""

        def around(name: str, _kind: str) -> tuple[str, str]:
            key = f"{self.mark('arg_key')}{name}{self.mark('/arg_key')}\n"
            return key + self.mark("arg_value"), self.mark("/arg_value") + "\n"

        calls = []
        for name, schema in tools.items():
            separator = self.mark("tool_sep") if self.listed else ""
            head = rules.literal(f"{self.mark('tool_call')}{name}{separator}\n")
            tail = rules.literal(self.mark("/tool_call") + ("\n" if self.listed else ""))
            calls.append(
                f"{head} {members_rule(name, schema, rules, around, marks=self._ends.marks)} {tail}"
            )
        call = rules.add(one_of(calls))
        if not self.listed:
            return some_of(call, quoted("\n"), several=several)
        listed = some_of(call, "", several=several)
        before, after = self.mark("tool_calls") + "\n", self.mark("/tool_calls")
        return f"{rules.literal(before)} {listed} {rules.literal(after)}"
