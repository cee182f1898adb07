"""Hunyuan 3: keys and values between marks, all of which carry a suffix that the file names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dure.text.dialects.automaton import Automaton, Parser
from dure.text.dialects.dialect import Dialect, HasToken, Marks, Schemas
from dure.text.dialects.values import Members, members_rule
from dure.text.lark import Rules, one_of, some_of

_SUFFIX = re.compile(r"set HYTK = '([^'{}<>\s]*)'")


@dataclass(frozen=True)
class KeyCalls:
    """<tool_calls>⏎<tool_call>f<tool_sep>⏎<arg_key>k</arg_key>⏎<arg_value>v</arg_value>⏎</tool_call>…

    Each mark's name ends in the suffix.
    """

    suffix: str

    @property
    def begins(self) -> tuple[str, ...]:
        """The mark around all calls, and the one of a single call."""
        return (self.mark("tool_calls"), self.mark("tool_call"))

    @property
    def marks(self) -> tuple[str, ...]:
        """Every mark."""
        paired = ("tool_calls", "tool_call", "arg_key", "arg_value")
        both = [mark for name in paired for mark in (self.mark(name), self.mark(f"/{name}"))]
        return (*both, self.mark("tool_sep"))

    def mark(self, name: str) -> str:
        """The mark called `name`."""
        return f"<{name}{self.suffix}>"

    def parse(self, automaton: Automaton, mark: str) -> Parser[bool]:
        """Whether calls came; the mark after the last may be missing."""
        count = 0
        while True:
            yield from automaton.space()
            if mark == self.begins[1] or (yield from automaton.expect(self.begins[1])):
                mark = ""
                if not (yield from self._call(automaton)):
                    return False
                count += 1
                continue
            yield from automaton.expect(self.mark("/tool_calls"))
            return count > 0

    def _call(self, automaton: Automaton) -> Parser[bool]:
        name = (yield from automaton.word("<\n")).strip()
        if not name:
            return False
        yield from automaton.space()
        if not (yield from automaton.expect(self.mark("tool_sep"))):
            return False
        automaton.begin_call(name)
        members = Members(automaton, automaton.tools.get(name, {}))
        while True:
            yield from automaton.space()
            if (yield from automaton.expect(self.mark("/tool_call"))):
                break
            if not (yield from automaton.expect(self.mark("arg_key"))):
                return False
            key: list[str] = []
            if (yield from automaton.until((self.mark("/arg_key"),), key.append)) is None:
                return False
            yield from automaton.space()
            if not (yield from automaton.expect(self.mark("arg_value"))):
                return False
            ends = (self.mark("/arg_value"),)
            if (yield from members.read("".join(key).strip(), ends)) is None:
                return False
        members.close()
        automaton.end_call()
        return True

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """What says calls within the mark around all."""

        def around(name: str, _kind: str) -> tuple[str, str]:
            key = f"{self.mark('arg_key')}{name}{self.mark('/arg_key')}\n"
            return key + self.mark("arg_value"), self.mark("/arg_value") + "\n"

        calls = []
        for name, schema in tools.items():
            head = rules.literal(f"{self.mark('tool_call')}{name}{self.mark('tool_sep')}\n")
            tail = rules.literal(self.mark("/tool_call") + "\n")
            calls.append(f"{head} {members_rule(schema, rules, around)} {tail}")
        listed = some_of(rules.add(one_of(calls)), "", several=several)
        begin, end = self.mark("tool_calls") + "\n", self.mark("/tool_calls")
        return f"{rules.literal(begin)} {listed} {rules.literal(end)}"


def dialect(suffix: str) -> Dialect:
    """The dialect whose marks carry `suffix`."""
    close = f"</think{suffix}>"
    think = Marks(f"<think{suffix}>", close, close)
    return Dialect("Hunyuan 3", think, KeyCalls(suffix), call_ends_thinking=True)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """The dialect of Hunyuan 3's template, or None."""
    if "arg_key" not in template or "tool_sep" not in template:
        return None
    found = _SUFFIX.search(template)
    return dialect(found.group(1) if found else "")
