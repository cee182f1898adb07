"""Calls that are JSON objects: {"name": …, "arguments": {…}}, whatever stands around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.dialect import Schemas
from dure.chat.dialects.jsontext import JsonText
from dure.chat.dialects.stream_reader import MAX_NAME, Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, quoted, some_of

ARGUMENTS = ("arguments", "parameters")
FENCE = "```"
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}


def read_call(reader: StreamReader, *, known: bool = False) -> Parser[bool]:
    """Whether a call's object came. Its arguments are told as they come if its name came first.

    known: only the name of a tool there is makes it a call.
    """
    if not (yield from _opens(reader)):
        return False
    call = _Call(reader, known=known)
    while True:
        yield from reader.space()
        key = yield from read_value(reader)
        yield from reader.space()
        if not isinstance(key, str) or not (yield from reader.expect(":")):
            return False
        yield from reader.space()
        if not (yield from call.read(key)):
            return False
        yield from reader.space()
        if not (yield from reader.expect(",")):
            break
    if not call.complete():
        return False
    yield from _closes(reader)
    reader.discard_raw()
    return True


def read_known_call(
    reader: StreamReader, *, opened: bool = False
) -> Parser[tuple[str, str] | None]:
    """The name and the arguments of a call of a tool there is; None if no object of only those
    came. Nothing of it is told. opened: its first brace was read."""
    found: dict[str, str] = {}
    if not (yield from _opens(reader, opened=opened)):
        return None
    while True:
        yield from reader.space()
        key = yield from read_value(reader)
        yield from reader.space()
        if not (yield from reader.expect(":")):
            return None
        yield from reader.space()
        if key == "name" and key not in found:
            name = yield from read_value(reader)
            if not isinstance(name, str) or name not in reader.tools:
                return None
            found[key] = name
        elif key in ARGUMENTS and len(found) < 2 and (yield from reader.peek()) == "{":
            parts: list[str] = []
            if not (yield from reader.json(parts.append)):
                return None
            found[ARGUMENTS[0]] = "".join(parts)
        else:
            return None
        yield from reader.space()
        if not (yield from reader.expect(",")):
            break
    if len(found) < 2:
        return None
    yield from _closes(reader)
    return found["name"], found[ARGUMENTS[0]]


def _opens(reader: StreamReader, *, opened: bool = False) -> Parser[bool]:
    """Whether an object begins: with two braces where a template shows its form so."""
    if not opened:
        yield from reader.space()
        if not (yield from reader.expect("{")):
            return False
    yield from reader.expect("{")
    return True


def _closes(reader: StreamReader) -> Parser[None]:
    """Nothing; the last brace is read over: if it is missing, or comes twice, that does no harm."""
    while (yield from reader.expect("}")):
        pass


def read_calls(reader: StreamReader) -> Parser[bool]:
    """Whether an array of calls' objects came, or one alone, or several in lines."""
    yield from reader.space()
    is_array = yield from reader.expect("[")
    while True:
        if not (yield from read_call(reader)):
            return False
        reader.end_call()
        yield from reader.space()
        yield from reader.expect(",")
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            break
    if is_array:
        yield from reader.expect("]")
    return True


def read_arguments(reader: StreamReader, name: str) -> Parser[bool]:
    """Whether the JSON object of the arguments of `name` came; told as it does."""
    if not name or (yield from reader.peek()) != "{":
        return False
    call = _Call(reader, name=name)
    return (yield from call.read(ARGUMENTS[0])) and call.complete()


def read_fenced(reader: StreamReader, name: str) -> Parser[bool]:
    """Whether the arguments of `name` came, in a block of code or bare; told as they do."""
    yield from reader.space()
    if (yield from reader.expect(FENCE)):
        yield from reader.expect("json")
        yield from reader.space()
    if not (yield from read_arguments(reader, name)):
        return False
    yield from reader.space()
    yield from reader.expect(FENCE)
    yield from reader.space()
    return True


def read_value(reader: StreamReader) -> Parser[Any]:
    """The JSON value that comes next; None if it is none, or null."""
    parts: list[str] = []
    if not (yield from reader.json(parts.append)):
        return None
    return json.loads("".join(parts))


class _Call:
    """One object's members as they come."""

    def __init__(self, reader: StreamReader, *, name: str = "", known: bool = False) -> None:
        self._reader = reader
        self._name = name
        self._known: Sequence[str] | None = list(reader.tools) if known else None
        self._begun = False
        self._held: str | None = None  # arguments that came before the name
        self._pending = ""

    def read(self, key: str) -> Parser[bool]:
        """Whether the member `key` has a value of its kind."""
        if key == "name" and not self._begun:
            value = yield from read_value(self._reader)
            self._name = value if isinstance(value, str) and _is_name(value) else ""
            return bool(self._name) and (self._known is None or self._name in self._known)
        if key not in ARGUMENTS or self._begun or self._held is not None:
            yield from read_value(self._reader)
            return key not in ARGUMENTS
        first = yield from self._reader.peek()
        if self._name and first == "{":
            return (yield from self._reader.json(self._stream)) and self._begun
        parts: list[str] = []
        if not (yield from self._reader.json(parts.append)):
            return False
        self._held = _object("".join(parts))
        return self._held is not None

    def complete(self) -> bool:
        """Whether the object was a call, which then has been told whole."""
        if not self._name:
            return False
        if not self._begun:
            self._reader.begin_call(self._name)
            self._reader.arguments(self._held or "{}")
        return True

    def _stream(self, text: str) -> None:
        """Nothing; the call is begun once its arguments look like an object's."""
        if self._begun:
            self._reader.arguments(text)
            return
        self._pending += text
        if '"' in self._pending or "}" in self._pending:
            self._begun = True
            self._reader.begin_call(self._name)
            self._reader.arguments(self._pending)


def _object(text: str) -> str | None:
    """The object that JSON `text` is, or holds as a string; {} for null; None for anything else."""
    if text == "null":
        return "{}"
    if text.startswith('"'):
        inner = json.loads(text).strip()
        value = JsonText()
        mended = []
        for character in inner:
            added = None if value.done else value.offer(character)
            if added is None:
                return None
            mended.append(added)
        text = "".join(mended) if value.done else ""
    return text if text.startswith("{") else None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def call_rule(tools: Schemas, rules: Rules, *, key: str = "arguments") -> str:
    """What says one call's object, its arguments under `key`."""
    calls = [
        f"{rules.literal(_head(name, key))} {arguments_rule(name, schema, rules)} {quoted('}')}"
        for name, schema in tools.items()
    ]
    return rules.add(one_of(calls))


def arguments_rule(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    """The name of the rule for the arguments of the tool `name`."""
    # A schema that names properties means those: small models invent others where they may.
    closed = {} if _COMPOSED & schema.keys() else {"additionalProperties": False}
    typed = {"type": "object", **closed, **schema}
    return rules.json(typed, f"The parameters of the tool {name!r}")


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '


@dataclass(frozen=True)
class ArrayCalls:
    """[{"name": …, "arguments": {…}}, …] between two marks; lines of objects will do."""

    open: str
    close: str

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The mark before the array."""
        return (self.open,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Both marks."""
        return (self.open, self.close)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Whether calls came; the closing mark may be missing at the end of the text."""
        if not (yield from read_calls(reader)):
            return False
        yield from reader.space()
        return (yield from reader.expect(self.close)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """What says an array of calls between the marks."""
        calls = some_of(call_rule(tools, rules), '", "', several=several)
        return f"{rules.literal(self.open + '[')} {calls} {rules.literal(']' + self.close)}"
