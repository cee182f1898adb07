"""Functions as XML, as Qwen3-Coder, Qwen3.5, MiMo-V2 and Seed-OSS write them; values are bare."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import partial

from dure.chat.dialects.dialect import THINK, Delimiters, Dialect, HasToken, Schemas, think_in
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.dialects.values import Ends, Members
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

FUNCTION, PARAMETER = "<function=", "<parameter="
SEED = "seed:"


@dataclass(frozen=True)
class XmlCalls:
    """<tool_call>⏎<function=f>⏎<parameter=p>⏎value⏎</parameter>⏎</function>⏎</tool_call>.

    The start delimiter is sometimes left out. escaped: values are HTML-escaped, without line ends
    around them (MiMo-V2). prefix: of the name tool_call; values have no line ends with one, either
    (Seed-OSS).
    """

    escaped: bool = False
    prefix: str = ""

    @property
    def start_markers(self) -> tuple[str, ...]:
        """What a call starts with."""
        return (self.marks[0], FUNCTION)

    @property
    def marks(self) -> tuple[str, ...]:
        """The delimiters of a call."""
        return (f"<{self.prefix}tool_call>", f"</{self.prefix}tool_call>")

    @property
    def _ends(self) -> Ends:
        opening, closing = self.marks
        after = (closing, opening, FUNCTION)
        return Ends("</parameter>", (PARAMETER, ">"), "</function>", after=after, missing=True)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read a function and its parameters; the end delimiter may be missing."""
        if mark == self.marks[0]:
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
        yield from reader.expect(self.marks[1])
        return True

    def _parameter(self, reader: StreamReader, members: Members) -> Parser[bool]:
        if not (yield from reader.expect(PARAMETER)):
            return False
        name = yield from reader.word(">\n")
        if not name or not (yield from reader.expect(">")):
            return False
        if not self.escaped:
            # Without its closing mark a value ends where the next begins.
            end = yield from members.read(name, self._ends, padded=not self.prefix)
            if end not in (None, self._ends.mark):
                reader.unread(end.removeprefix("\n"))
            return end is not None
        parts: list[str] = []
        end = yield from members.until(name, self._ends, parts.append)
        if end is not None:
            members.add(name, html.unescape("".join(parts)))
        return end is not None

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of functions, each between the delimiters."""
        pad, line = "" if self.escaped or self.prefix else "\n", "" if self.escaped else "\n"
        opening, closing = self.marks
        write = partial(html.escape, quote=False) if self.escaped else str

        def around(name: str, _kind: str) -> tuple[str, str]:
            return f"{PARAMETER}{name}>{pad}", f"{pad}</parameter>{line}"

        functions = []
        for name, schema in tools.items():
            head = rules.literal(f"{opening}\n{FUNCTION}{name}>{line}")
            tail = rules.literal(f"</function>\n{closing}")
            members = members_rule(name, schema, rules, around, marks=self._ends.marks, write=write)
            functions.append(f"{head} {members} {tail}")
        return some_of(rules.add(one_of(functions)), quoted("\n"), several=several)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows functions so, or None."""
    if FUNCTION not in template:
        return None
    if f"<{SEED}tool_call>" in template:
        marks = Delimiters(f"<{SEED}think>", f"</{SEED}think>", f"</{SEED}think>")
        seed = XmlCalls(prefix=SEED)
        return Dialect("Seed-OSS", think=marks, calls=seed, call_ends_thinking=True)
    inline = f"{PARAMETER}' + " in template.replace('"', "'") and "</parameter>\\n" not in template
    thinks = think_in(template, has_token)
    name = "MiMo XML" if inline and "MiMo" in template else "Qwen XML"
    calls = XmlCalls(escaped=name == "MiMo XML")
    think = THINK if thinks else None
    return Dialect(name, think=think, calls=calls, call_ends_thinking=True)
