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
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "propertyNames"}


def read_call(reader: StreamReader, *, known: bool = False) -> Parser[bool]:
    """Read one call's object; return whether it was one.

    Emits the arguments as they come if the name came first. known: only accept a known tool's name.
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
    """Read a call of a known tool without emitting events; return its name and arguments.

    Returns None if the object has other members. opened: its first brace was read already.
    """
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
    """Skip the first brace (or two, as some templates show the form); return whether it came."""
    if not opened:
        yield from reader.space()
        if not (yield from reader.expect("{")):
            return False
    yield from reader.expect("{")
    return True


def _closes(reader: StreamReader) -> Parser[None]:
    """Skip the last brace; a missing or a doubled one does no harm."""
    while (yield from reader.expect("}")):
        pass


def read_calls(reader: StreamReader) -> Parser[bool]:
    """Read an array of calls, one alone, or several in lines; return whether any came."""
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
    """Read the JSON arguments of `name`, emitting them as they come; return whether they came."""
    if not name or (yield from reader.peek()) != "{":
        return False
    call = _Call(reader, name=name)
    return (yield from call.read(ARGUMENTS[0])) and call.complete()


def read_fenced(reader: StreamReader, name: str) -> Parser[bool]:
    """Read the arguments of `name`, in a code block or bare; return whether they came."""
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
    """Read the next JSON value; None if there is none, or it is null."""
    parts: list[str] = []
    if not (yield from reader.json(parts.append)):
        return None
    return json.loads("".join(parts))


class _Call:
    """Reads the members of one call's object."""

    def __init__(self, reader: StreamReader, *, name: str = "", known: bool = False) -> None:
        self._reader = reader
        self._name = name
        self._known: Sequence[str] | None = list(reader.tools) if known else None
        self._begun = False
        self._held: str | None = None  # arguments that came before the name
        self._pending = ""

    def read(self, key: str) -> Parser[bool]:
        """Read the value of the member `key`; return whether it has the right type."""
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
        """Emit what is left of the call; return whether the object was one."""
        if not self._name:
            return False
        if not self._begun:
            self._reader.begin_call(self._name)
            self._reader.arguments(self._held or "{}")
        return True

    def _stream(self, text: str) -> None:
        """Buffer the arguments and begin the call once they look like an object's."""
        if self._begun:
            self._reader.arguments(text)
            return
        self._pending += text
        if '"' in self._pending or "}" in self._pending:
            self._begun = True
            self._reader.begin_call(self._name)
            self._reader.arguments(self._pending)


def _object(text: str) -> str | None:
    """Return the object that JSON `text` is or holds as a string; {} for null; else None."""
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
    """Return the grammar rule of one call's object, with its arguments under `key`."""
    calls = [
        f"{rules.literal(_head(name, key))} {arguments_rule(name, schema, rules)} {quoted('}')}"
        for name, schema in tools.items()
    ]
    return rules.add(one_of(calls))


def arguments_rule(name: str, schema: Mapping[str, Any], rules: Rules) -> str:
    """Return the name of the rule for the arguments of the tool `name`."""
    return rules.json(arguments_schema(schema), f"The parameters of the tool {name[:60]!r}")


def arguments_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema that calls keep to: an object's, with no properties but those it names.

    It names what it requires, too. A small model invents others where it may.
    """
    if _COMPOSED & schema.keys():
        return {"type": "object", **schema}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if isinstance(properties, Mapping) and isinstance(required, list):
        more: dict[str, Any] = {
            name: {} for name in required if isinstance(name, str) and name not in properties
        }
        schema = {**schema, "properties": {**properties, **more}}
    return {"type": "object", "additionalProperties": False, **schema}


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '


@dataclass(frozen=True)
class ArrayCalls:
    """[{"name": …, "arguments": {…}}, …] between two delimiters; lines of objects will do.

    close: may be empty, where nothing stands behind the array.
    """

    open: str
    close: str

    @property
    def start_markers(self) -> tuple[str, ...]:
        """The delimiter before the array."""
        return (self.open,)

    @property
    def marks(self) -> tuple[str, ...]:
        """Both delimiters."""
        return (self.open, self.close) if self.close else (self.open,)

    def parse(self, reader: StreamReader, mark: str) -> Parser[bool]:
        """Read the calls; the end delimiter may be missing at the end of the text."""
        if not (yield from read_calls(reader)):
            return False
        if not self.close:
            return True
        yield from reader.space()
        return (yield from reader.expect(self.close)) or (yield from reader.peek()) == ""

    def grammar(self, tools: Schemas, rules: Rules, *, several: bool) -> str:
        """Return the grammar of an array of calls between the delimiters."""
        calls = some_of(call_rule(tools, rules), '", "', several=several)
        return f"{rules.literal(self.open + '[')} {calls} {rules.literal(']' + self.close)}"
