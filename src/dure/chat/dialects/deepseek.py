"""DeepSeek R1, V3 and V3.1: delimiters of their own around a name and JSON arguments."""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import THINK, CallFormat, Dialect, HasToken, Schemas, think_in
from dure.chat.dialects.jsoncalls import FENCE, arguments_rule, read_fenced
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
FORM = CallFormat(CALLS + CALL, SEPARATOR, CALL_END + CALLS_END)
FENCED_FORM = CallFormat(
    f"{CALLS}{CALL}function{SEPARATOR}", f"\n{FENCE}json\n", f"\n{FENCE}{CALL_END}{CALLS_END}"
)


@dataclass(frozen=True)
class DeepSeekCalls:
    """<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>, one after the other.

    fenced: R1 and V3 write "function", the separator, the name, and the arguments as a code block.
    """

    fenced: bool
    start_markers: tuple[str, ...] = (CALLS, CALL)
    marks: tuple[str, ...] = (CALLS, CALLS_END, CALL, CALL_END, SEPARATOR)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiters may be missing."""
        count = yield from reader.listed(mark, CALL, self._call)
        if count is not None:
            yield from reader.expect(CALLS_END)
        return bool(count)

    def _call(self, reader: StreamReader) -> Parser[bool]:
        name = yield from reader.word("<\n{")
        if not (yield from reader.expect(SEPARATOR)):
            return False
        # Either model is known to write as the other does.
        if self.fenced or name == "function":
            after = yield from reader.word("\n{`")
            name = after or name
        if not (yield from read_fenced(reader, name.strip())):
            return False
        return (yield from reader.expect(CALL_END)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls between the delimiters of all of them."""
        calls = []
        for name, schema in tools.items():
            arguments = arguments_rule(name, schema, rules)
            head = f"function{SEPARATOR}{name}\n{FENCE}json\n" if self.fenced else name + SEPARATOR
            tail = f"\n{FENCE}{CALL_END}" if self.fenced else CALL_END
            calls.append(f"{rules.literal(CALL + head)} {arguments} {rules.literal(tail)}")
        separator = quoted("\n") if self.fenced else ""
        listed = some_of(rules.add(one_of(calls)), separator, several=several)
        return f"{rules.literal(CALLS)} {listed} {rules.literal(CALLS_END)}"


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template, or of a distilled model's, that shows calls so; or None."""
    if CALL not in template:
        return None
    fenced = FENCE in template
    thinks = think_in(template, has_token)
    return Dialect(
        "DeepSeek R1/V3" if fenced else "DeepSeek V3.1",
        think=THINK if thinks else None,
        calls=DeepSeekCalls(fenced),
        call_format=FENCED_FORM if fenced else FORM,
    )
