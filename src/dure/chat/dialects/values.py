"""Converts values that a model writes as bare text to JSON, by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dure.chat.dialects.stream_reader import Parser, StreamReader
from dure.chat.grammar_rules import Rules, one_of, quoted

Schema = Mapping[str, Any]
_ORDER = ("boolean", "integer", "number", "object", "array", "null")


def types_of(schema: Any, *, depth: int = 8) -> frozenset[str]:
    """Return the JSON types that a value of `schema` may have; {"string"} where it does not say.

    Choices within choices are followed to `depth`.
    """
    if not isinstance(schema, Mapping) or depth == 0:
        return frozenset({"string"})
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset({given})
    if isinstance(given, Sequence):
        return frozenset(each for each in given if isinstance(each, str))
    found: set[str] = set()
    for name in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(name)
        for choice in choices if isinstance(choices, Sequence) else ():
            found |= types_of(choice, depth=depth - 1)
    values = schema.get("enum", [schema["const"]] if "const" in schema else ())
    if isinstance(values, Sequence) and not isinstance(values, str):
        found |= {_type_of(value) for value in values}
    if "properties" in schema:
        found.add("object")
    if "items" in schema:
        found.add("array")
    return frozenset(found or {"string"})


def as_json(text: str, schema: Any) -> str:
    """Return the JSON of a value written as `text`: of the first type of `schema` that fits."""
    types = types_of(schema)
    bare = text.strip()
    for kind in _ORDER:
        if kind in types and (made := _as(kind, bare)) is not None:
            return made
    return json.dumps(text, ensure_ascii=False)


def property_schema(schema: Schema, name: str) -> Any:
    """Return the schema of the property `name` of an object's, or None."""
    properties = schema.get("properties")
    return properties.get(name) if isinstance(properties, Mapping) else None


def members_rule(
    schema: Schema, rules: Rules, around: Callable[[str, str], tuple[str, str]]
) -> str:
    """Return what says the properties of `schema` in their order, those not required or not.

    around: what is written before and after the value of a property, by its name and by
    whether it is "string" or "json".
    """
    properties = schema.get("properties")
    required = schema.get("required")
    needed = required if isinstance(required, Sequence) else ()
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    said = []
    for name, each in properties.items() if isinstance(properties, Mapping) else ():
        kind = "string" if "string" in types_of(each) or "$ref" in each else "json"
        before, after = around(name, kind)
        member = f"{rules.literal(before)} {_value_rule(each, kind, after, rules, shared)}"
        said.append(member if name in needed else f"({member})?")
    return rules.add(" ".join(said) or '""')


def _value_rule(schema: Any, kind: str, after: str, rules: Rules, shared: Mapping[str, Any]) -> str:
    values = schema.get("enum") if isinstance(schema, Mapping) else None
    if kind == "json":
        return f"{rules.json({**schema, **shared}, 'A parameter')} {rules.literal(after)}"
    if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
        return f"{one_of([quoted(value) for value in values])} {rules.literal(after)}"
    longest = schema.get("maxLength") if isinstance(schema, Mapping) else None
    return rules.until(after, longest=longest if isinstance(longest, int) else None)


class Members:
    """Emits the members of a call's arguments, one by one, as a JSON object."""

    def __init__(self, reader: StreamReader, schema: Schema) -> None:
        self._reader = reader
        self._schema = schema
        self._count = 0

    def add(self, name: str, text: str, *, schema: Any = None) -> None:
        """Add a member whose value is written as bare `text`."""
        schema = property_schema(self._schema, name) if schema is None else schema
        self._key(name)
        self._reader.arguments(as_json(text, schema))

    def add_json(self, name: str, text: str) -> None:
        """Add a member whose value is the JSON `text`, or a string if it is not JSON."""
        self._key(name)
        made = as_value(text)
        self._reader.arguments(json.dumps(text, ensure_ascii=False) if made is None else made)

    def read(
        self, name: str, ends: Sequence[str], *, padded: bool = False, string: bool = False
    ) -> Parser[str | None]:
        """Return the mark of `ends` that ended the member's value; None at the end of the text.

        padded: a line end on either side of the value is not of it. A string is told as it comes,
        any other value when it is whole.
        """
        types = types_of(property_schema(self._schema, name))
        if string or types == {"string"}:
            return (yield from self._read_string(name, ends, padded=padded))
        parts: list[str] = []
        end = yield from self._reader.until(ends, parts.append)
        if end is not None:
            text = "".join(parts)
            self.add(name, _unpadded(text) if padded else text)
        return end

    def close(self) -> None:
        """Complete the object."""
        self._reader.arguments("}" if self._count else "{}")

    def _key(self, name: str) -> None:
        before = ", " if self._count else "{"
        self._count += 1
        self._reader.arguments(f"{before}{json.dumps(name, ensure_ascii=False)}: ")

    def _read_string(self, name: str, ends: Sequence[str], *, padded: bool) -> Parser[str | None]:
        self._key(name)
        self._reader.arguments('"')
        if padded:
            yield from self._reader.expect("\n")
        held = ""

        def tell(text: str) -> None:
            nonlocal held
            text, held = held + text, ""
            if padded and text.endswith("\n"):
                text, held = text[:-1], "\n"
            self._reader.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

        end = yield from self._reader.until(ends, tell)
        if end is not None:
            self._reader.arguments('"')
        return end


def as_value(text: str) -> str | None:
    """`text` as JSON text if that is what it is, without NaN and infinities; else None."""
    try:
        return json.dumps(json.loads(text, strict=False), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def _as(kind: str, text: str) -> str | None:
    if kind == "null":
        return "null" if text.lower() in ("null", "none") else None
    if kind == "boolean":
        return text.lower() if text.lower() in ("true", "false") else None
    made = as_value(text)
    if made is None:
        return None
    is_number = made[0] in "-0123456789"
    if kind == "integer":
        return made if made.lstrip("-").isdigit() else None
    if kind == "number":
        return made if is_number else None
    return made if made[0] == {"object": "{", "array": "["}[kind] else None


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def _unpadded(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")
