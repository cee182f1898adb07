"""LFM2 and OLMo 3: calls as Python writes them, between delimiters: f(city="Oslo", days=3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.dialect import THINK, CallFormat, Dialect, HasToken, Schemas, think_in
from dure.chat.dialects.json_schema import properties_of, required_of, resolved
from dure.chat.dialects.jsoncalls import read_calls
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, some_of
from dure.chat.schema.rewrite import rewritten

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
TOOL_LIST = "<|tool_list_start|>"
LFM_TOOLS = (TOOL_LIST, "List of tools: [")
OLMO_OPEN, OLMO_CLOSE = "<function_calls>", "</function_calls>"
MAX_DEPTH = 64  # of objects and lists in a call's arguments
_ENDS = (",", ")", "]", "}", ":", "<")  # what may stand behind a text
_LITERALS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "\n": ""}


@dataclass(frozen=True)
class PythonCalls:
    """[f(city="Oslo", days=3), g()] between two delimiters, or a call a line without brackets.

    Texts may have either quotes, and literals be Python's or JSON's. JSON objects are read, too.
    """

    open: str
    close: str
    listed: bool  # within brackets

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiter before the calls."""
        return (self.open,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Both delimiters."""
        return self.open, self.close

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiter may be missing at the end of the text."""
        yield from reader.space()
        bracket = yield from reader.expect("[")
        yield from reader.space()
        if (yield from reader.peek()) == "{":
            if not (yield from read_calls(reader)):
                return False
        elif not (yield from self._calls(reader)):
            return False
        yield from reader.space()
        if bracket:
            yield from reader.expect("]")
            yield from reader.space()
        return (yield from reader.expect(self.close)) or (yield from reader.peek()) == ""

    def _calls(self, reader: StreamReader) -> Parser[bool]:
        """Read calls one after the other; return whether there was one, and all were whole."""
        count = 0
        while True:
            yield from reader.space()
            if (yield from reader.expect(",")):
                continue
            if (yield from reader.peek()) in ("]", "<", ""):
                return count > 0
            name = (yield from reader.word("([]{<\n")).strip()
            if not name or not (yield from reader.expect("(")):
                return False
            reader.begin_call(name)
            if not (yield from _members(reader, 1, "{", ")")):
                return False
            reader.end_call()
            count += 1

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls, whose values are written as JSON."""
        calls = [
            f"{rules.literal(f'{name}(')} {_members_rule(name, schema, rules)} {rules.literal(')')}"
            for name, schema in tools.items()
        ]
        begin, end = ("[", "]") if self.listed else ("", "")
        separator = rules.literal(", " if self.listed else "\n")
        said = some_of(rules.add(one_of(calls)), separator, several=several)
        return f"{rules.literal(self.open + begin)} {said} {rules.literal(end + self.close)}"


def _members(reader: StreamReader, depth: int, start: str, end: str) -> Parser[bool]:
    """Read what stands before `end`, as a JSON object or list; commas may be missing, or too many.

    end: ")" of a call's arguments or a tuple, "}" or "]".
    """
    if depth > MAX_DEPTH:
        return False
    reader.arguments(start)
    separator = ""
    while True:
        yield from reader.space()
        if (yield from reader.expect(",")):
            continue
        if (yield from reader.expect(end)):
            reader.arguments("}" if start == "{" else "]")
            return True
        reader.arguments(separator)
        separator = ", "
        if start == "{" and not (yield from _key(reader, "=" if end == ")" else ":")):
            return False
        if not (yield from _value(reader, depth)):
            return False


def _key(reader: StreamReader, after: str) -> Parser[bool]:
    """Read a key and the sign after it; a call's have no quotes."""
    quote = yield from reader.peek()
    if after == ":" and quote in ("'", '"'):
        if not (yield from _text(reader)):
            return False
    else:
        key = (yield from reader.word("=:,()[]{}\n<")).strip()
        if not key:
            return False
        reader.arguments(json.dumps(key, ensure_ascii=False))
    yield from reader.space()
    reader.arguments(": ")
    return (yield from reader.expect(after))


def _value(reader: StreamReader, depth: int) -> Parser[bool]:
    yield from reader.space()
    first = yield from reader.peek()
    if first in ("'", '"'):
        return (yield from _text(reader))
    for begin, start, end in (("{", "{", "}"), ("[", "[", "]"), ("(", "[", ")")):
        if (yield from reader.expect(begin)):
            return (yield from _members(reader, depth + 1, start, end))
    word = (yield from reader.word(",)]}\n<")).strip()
    reader.arguments(_as_json(word))
    return bool(word)


def _text(reader: StreamReader) -> Parser[bool]:
    """Read a text in quotes, as JSON; return whether it ended.

    Some templates escape nothing: a quote is the end only if what follows can stand behind a text.
    Three quotes begin a text that ends with three.
    """
    quote = yield from reader.peek()
    yield from reader.expect(quote)
    if (yield from reader.expect(quote * 2)):
        quote *= 3
    reader.arguments('"')

    def said(text: str) -> None:
        half = "\ud800" <= text <= "\udfff"  # of a pair: has no UTF-8, so it stays an escape
        reader.arguments(json.dumps(text, ensure_ascii=half)[1:-1])

    while True:
        found = yield from reader.until((quote, "\\"), said)
        if found is None:
            return False
        if found == "\\":
            said((yield from _escaped(reader)))
            continue
        behind, _ = yield from reader.ahead(0, _ENDS)
        if behind is not None:
            reader.arguments('"')
            return True
        said(quote)


def _escaped(reader: StreamReader) -> Parser[str]:
    """Read what stands behind a backslash, and return what both mean."""
    letter = yield from reader.peek()
    yield from reader.expect(letter)
    if letter not in ("u", "x"):
        same = letter in ("'", '"', "\\", "/")
        return _ESCAPES.get(letter, letter if same else f"\\{letter}")
    digits = ""
    while len(digits) < (4 if letter == "u" else 2):
        digit = yield from reader.peek()
        if not digit or digit not in "0123456789abcdefABCDEF":
            return f"\\{letter}{digits}"
        yield from reader.expect(digit)
        digits += digit
    return chr(int(digits, 16))


def _as_json(word: str) -> str:
    """Return JSON of a value without quotes: of a number or a literal, else of a text."""

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    word = _LITERALS.get(word, word)
    try:
        json.loads(word, parse_constant=refuse)
    except ValueError:
        return json.dumps(word, ensure_ascii=False)
    return word


def _members_rule(tool: str, schema: Any, rules: Rules) -> str:
    """Return the name of the rule of a call's arguments: the required ones first, with commas."""
    what = f"The parameters of the tool {tool[:60]!r}"
    plain = rewritten(schema, what).schema
    known, needed = properties_of(plain, plain), required_of(plain, plain)
    order = [name for name in known if name in needed]
    order += [name for name in known if name not in needed]
    said = []
    for name in order:
        key = rules.literal(f"{'' if name == order[0] else ', '}{name}=")
        value = rules.json(
            resolved(known[name], plain), f"The parameter {name[:60]!r} of {what}", plain
        )
        said.append(f"({key} {value}){'' if name in needed else '?'}")
    return rules.add(" ".join(said) or '""')


LFM2_CALLS = PythonCalls(OPEN, CLOSE, listed=True)
OLMO_CALLS = PythonCalls(OLMO_OPEN, OLMO_CLOSE, listed=False)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of LFM2's or OLMo 3's template, or None."""
    think = THINK if think_in(template, has_token) else None
    if OLMO_OPEN in template and "tool_calls" in template:
        return Dialect("OLMo 3", think=think, calls=OLMO_CALLS, call_ends_thinking=True)
    named = any(mark in template for mark in LFM_TOOLS) and has_token(OPEN)
    if OPEN not in template and TOOL_LIST not in template and not named:
        return None
    return Dialect(
        "LFM2",
        think=think,
        calls=LFM2_CALLS,
        call_ends_thinking=True,
        call_format=CallFormat(f'{OPEN}[{{"name": "', '", "arguments": ', f"}}]{CLOSE}"),
    )
