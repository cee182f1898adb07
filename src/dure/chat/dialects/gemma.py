"""Gemma 4: channels for thoughts, and calls whose keys are bare and whose texts have own quotes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.dialect import CallFormat, Delimiters, Dialect, HasToken, Schemas
from dure.chat.dialects.json_schema import properties_of, required_of
from dure.chat.dialects.raw_values import members_rule
from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, some_of

CALL, CALL_END, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
PREFIX = "call:"
FORM = CallFormat(CALL + PREFIX, "", CALL_END)
MAX_DEPTH = 64  # of objects and lists in a call's arguments


@dataclass(frozen=True)
class GemmaCalls:
    """<|tool_call>call:f{city:<|"|>Oslo<|"|>,days:3,near:[<|"|>Ski<|"|>]}<tool_call|>, and more.

    JSON in its place is read, too, as are texts without quotes.
    """

    start_markers: tuple[str, ...] = (CALL,)
    marks: tuple[str, ...] = (CALL, CALL_END, QUOTE, CHANNEL)  # the last begins thoughts

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read one call; the end delimiter may be missing."""
        yield from reader.space()
        yield from reader.expect(PREFIX)
        name = (yield from reader.word("{<\n")).strip()
        if not name or not (yield from reader.expect("{")):
            return False
        reader.begin_call(name)
        if not (yield from self._members(reader, 1, "{", "}")):
            return False
        yield from reader.space()
        whole = (yield from reader.expect(CALL_END)) or (yield from reader.peek()) == ""
        reader.end_call()
        return whole

    def _members(self, reader: StreamReader, depth: int, start: str, end: str) -> Parser[bool]:
        """Read what stands between `start` and `end`; commas may be missing, or too many."""
        if depth > MAX_DEPTH:
            return False
        reader.arguments(start)
        separator = ""
        while True:
            yield from reader.space()
            if (yield from reader.expect(",")):
                continue
            if (yield from reader.expect(end)):
                reader.arguments(end)
                return True
            key = (yield from self._key(reader)) if end == "}" else ""
            if key is None:
                return False
            reader.arguments(separator + key)
            separator = ", "
            if not (yield from self._value(reader, depth)):
                return False

    def _key(self, reader: StreamReader) -> Parser[str | None]:
        """Read a key and its colon; return both as JSON has them, None if there are none."""
        read: list[str] = []
        for quote in (QUOTE, '"'):
            if (yield from reader.expect(quote)):
                if (yield from reader.until((quote,), read.append)) is None:
                    return None
                yield from reader.space()
                break
        else:
            read.append((yield from reader.word(":,}]\n")).strip())
        key = "".join(read)
        found = yield from reader.expect(":")
        return f"{json.dumps(key, ensure_ascii=False)}: " if key and found else None

    def _value(self, reader: StreamReader, depth: int) -> Parser[bool]:
        yield from reader.space()
        if (yield from reader.expect(QUOTE)):
            reader.arguments('"')
            found = yield from reader.until((QUOTE,), lambda text: reader.arguments(_inside(text)))
            reader.arguments('"' if found else "")
            return found is not None
        if (yield from reader.expect("{")):
            return (yield from self._members(reader, depth + 1, "{", "}"))
        if (yield from reader.expect("[")):
            return (yield from self._members(reader, depth + 1, "[", "]"))
        if (yield from reader.peek()) == '"':
            return (yield from reader.json(reader.arguments))
        word = (yield from reader.word(",}]\n<")).strip()
        reader.arguments(_as_json(word))
        return bool(word)

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of calls."""
        calls = []
        for name, schema in tools.items():
            head, tail = rules.literal(f"{CALL}{PREFIX}{name}{{"), rules.literal("}" + CALL_END)
            calls.append(f"{head} {_members_rule(name, schema, rules)} {tail}")
        return some_of(rules.add(one_of(calls)), "", several=several)


def _members_rule(tool: str, schema: Any, rules: Rules) -> str:
    """Return the name of the rule of a call's members: the required ones first, with commas."""
    known = properties_of(schema, schema)
    needed = [name for name in known if name in required_of(schema, schema)]
    order = [*needed, *(name for name in known if name not in needed)]

    def around(name: str, kind: str) -> tuple[str, str]:
        key = f"{'' if name == order[0] else ','}{name}:"
        return (key + QUOTE, QUOTE) if kind == "string" else (key, "")

    if known and "properties" in schema:
        schema = {**schema, "properties": {name: known[name] for name in order}}
    return members_rule(tool, schema, rules, around, marks=(QUOTE,), typed=True)


def _inside(text: str) -> str:
    """Return a piece of a text as it stands within JSON's quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(word: str) -> str:
    """Return JSON of a value without quotes: itself if it is a number or a literal, else a text.

    Gemma's own template writes null as Python does.
    """
    if word == "None":
        return "null"

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    try:
        json.loads(word, parse_constant=refuse)
    except ValueError:
        return json.dumps(word, ensure_ascii=False)
    return word


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of a template that shows turns or calls so, or None."""
    if "<|turn>" not in template and CALL + PREFIX not in template:
        return None
    thinks = CHANNEL in template or has_token(CHANNEL)
    return Dialect(
        "Gemma 4",
        think=Delimiters(CHANNEL + "thought", CHANNEL_END, CHANNEL_END) if thinks else None,
        calls=GemmaCalls(),
        call_ends_thinking=True,
        call_format=FORM,
    )
