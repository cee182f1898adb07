"""Functions as XML, as Qwen3-Coder, Qwen3.5 and MiMo-V2 write them. Values are bare text."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import partial

from dure.chat.dialects.dialect import THINK, Dialect, HasToken, Schemas
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Ends, Members
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
ENDS = Ends(
    "</parameter>", (PARAMETER, ">"), "</function>", after=(CLOSE, OPEN, FUNCTION), missing=True
)


@dataclass(frozen=True)
class XmlCalls:
    """<tool_call>⏎<function=f>⏎<parameter=p>⏎value⏎</parameter>⏎</function>⏎</tool_call>.

    The start delimiter is sometimes left out. escaped: values are HTML-escaped, without line ends
    around them (MiMo-V2).
    """

    start_markers: tuple[str, ...] = (OPEN, FUNCTION)
    marks: tuple[str, ...] = (OPEN, CLOSE)
    escaped: bool = False

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read a function and its parameters; the end delimiter may be missing."""
        if mark == OPEN:
            yield from reader.space()
            if not (yield from reader.expect(FUNCTION)):
                return False
        name = yield from reader.word(">\n")
        if not name or not (yield from reader.expect(">")):
            return False
        reader.begin_call(name)
        members = Members(reader, reader.tools.get(name, {}))
        while True:
            yield from reader.space()
            if (yield from reader.expect("</function>")):
                break
            if not (yield from self._parameter(reader, members)):
                return False
        members.close()
        reader.end_call()
        yield from reader.space()
        # A missing delimiter after a whole function does no harm.
        yield from reader.expect(CLOSE)
        return True

    def _parameter(self, reader: StreamReader, members: Members) -> Parser[bool]:
        if not (yield from reader.expect(PARAMETER)):
            return False
        name = yield from reader.word(">\n")
        if not name or not (yield from reader.expect(">")):
            return False
        if not self.escaped:
            # Without its closing mark a value ends where the next begins.
            end = yield from members.read(name, ENDS, padded=True)
            if end not in (None, ENDS.mark):
                reader.unread(end.removeprefix("\n"))
            return end is not None
        parts: list[str] = []
        end = yield from members.until(name, ENDS, parts.append)
        if end is not None:
            members.add(name, html.unescape("".join(parts)))
        return end is not None

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of functions, each between the delimiters."""
        pad = "" if self.escaped else "\n"
        write = partial(html.escape, quote=False) if self.escaped else str

        def around(name: str, _kind: str) -> tuple[str, str]:
            return f"{PARAMETER}{name}>{pad}", f"{pad}</parameter>{pad}"

        functions = []
        for name, schema in tools.items():
            head = rules.literal(f"{OPEN}\n{FUNCTION}{name}>{pad}")
            tail = rules.literal(f"</function>\n{CLOSE}")
            members = members_rule(name, schema, rules, around, marks=ENDS.marks, write=write)
            functions.append(f"{head} {members} {tail}")
        return some_of(rules.add(one_of(functions)), quoted("\n"), several=several)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows functions so, or None."""
    if FUNCTION not in template:
        return None
    inline = f"{PARAMETER}' + " in template.replace('"', "'") and "</parameter>\\n" not in template
    thinks = THINK.close in template or has_token(THINK.close)
    name = "MiMo XML" if inline and "MiMo" in template else "Qwen XML"
    calls = XmlCalls(escaped=name == "MiMo XML")
    think = THINK if thinks else None
    return Dialect(name, think=think, calls=calls, call_ends_thinking=True)
