"""Hunyuan A13B and the small dense ones: calls in a list, the answer between delimiters.

Their published templates ask for a name and its arguments in a code block, as R1 does; the one for
A13B that vLLM ships, written by its makers, for a JSON array. Either is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from dure.chat.dialects.dialect import CallFormat, Delimiters, Dialect, HasToken, Schemas
from dure.chat.dialects.jsoncalls import FENCE, ArrayCalls, arguments_rule, read_fenced
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

CALLS, CALLS_END = "<tool_calls>", "</tool_calls>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
ARRAY = ArrayCalls(CALLS, CALLS_END)


@dataclass(frozen=True)
class HunyuanCalls:
    """<tool_calls><tool_call>f⏎```json⏎{…}⏎```</tool_call>⏎…</tool_calls>, or an array.

    arrays: it is an array that the template asks for.
    """

    arrays: bool = False
    start_markers: tuple[str, ...] = (CALLS, CALL)
    marks: tuple[str, ...] = (CALLS, CALLS_END, CALL, CALL_END)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiters may be missing."""
        yield from reader.space()
        if mark == CALLS and (yield from reader.peek()) != "<":
            return (yield from ARRAY.parse(reader, mark))
        count = yield from reader.listed(mark, CALL, self._call)
        if count is not None:
            yield from reader.expect(CALLS_END)
        return bool(count)

    def _call(self, reader: StreamReader) -> Parser[bool]:
        name = yield from reader.word("\n{`<")
        if not (yield from read_fenced(reader, name.strip())):
            return False
        return (yield from reader.expect(CALL_END)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls between the delimiters of all of them."""
        if self.arrays:
            return ARRAY.grammar(tools, rules, several=several)
        calls = []
        for name, schema in tools.items():
            head = rules.literal(f"{CALL}{name}\n{FENCE}json\n")
            tail = rules.literal(f"\n{FENCE}{CALL_END}")
            calls.append(f"{head} {arguments_rule(name, schema, rules)} {tail}")
        listed = some_of(rules.add(one_of(calls)), quoted("\n"), several=several)
        return f"{rules.literal(CALLS)} {listed} {rules.literal(CALLS_END)}"


# In their vocabularies these delimiters are ordinary text of several tokens.
THINK = Delimiters("<think>", "</think>", "\n</think>\n")
WRAPPER = ("<answer>", "</answer>")
FORM = CallFormat(CALLS + CALL, f"\n{FENCE}json\n", f"\n{FENCE}{CALL_END}{CALLS_END}")
HUNYUAN = Dialect("Hunyuan", THINK, HunyuanCalls(), wrapper=WRAPPER, call_format=FORM)
ARRAY_FORM = CallFormat(f'{CALLS}[{{"name": "', '", "arguments": ', f"}}]{CALLS_END}")
ARRAYS = Dialect(
    "Hunyuan", THINK, HunyuanCalls(arrays=True), wrapper=WRAPPER, call_format=ARRAY_FORM
)
_TURNS = ("<｜hy_User｜>", "<|hy_User|>", "<|extra_4|>")


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template with Hunyuan's turns, or None."""
    if not any(mark in template for mark in _TURNS):
        return None
    return ARRAYS if f"{CALLS}[" in template else HUNYUAN
