"""Converts values that a model writes as bare text to JSON, by the tool's schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from dure.chat.dialects.json_schema import branches_of, properties_of, types_of
from dure.chat.dialects.stream_reader import Parser, StreamReader

Schema = Mapping[str, Any]
_ORDER = ("boolean", "integer", "number", "object", "array", "null")
_PYTHON = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:True|False|None)\b""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_EXACT = 2.0**53  # integers below it are whole in a float


@dataclass(frozen=True)
class Ends:
    """What ends a value: the mark, if what follows goes on with the call.

    A text may hold the mark itself. It is the end only before the next member (after a text: one
    that the tool has), which was not given yet, or before the end of the call. after: what may
    follow that, beside the end of the text; anything if it is empty. missing: the next member, or
    the end of the call, ends a value whose own mark was left out.
    """

    mark: str
    key: tuple[str, str]  # around the name of the next member
    close: str  # the end of the call
    after: tuple[str, ...] = ()
    missing: bool = False
    any_name: bool = False  # a member of any name follows: its mark is no text

    @property
    def marks(self) -> tuple[str, ...]:
        """Every text that may end a value."""
        return (self.mark, *(f"\n{text}" for text in self._missing))

    @property
    def _missing(self) -> tuple[str, ...]:
        return (self.key[0], self.close) if self.missing else ()


def as_json(text: str, schema: Any, root: Any = None) -> str:
    """Return the JSON of a value written as `text`: of the first type of `schema` that fits."""
    types = types_of(schema, root)
    bare = text.strip()
    if not bare and "null" in types and "string" not in types:
        return "null"
    for kind in _ORDER:
        if kind in types and (made := _as(kind, bare, types)) is not None:
            return made
    return json.dumps(text, ensure_ascii=False)


def property_schema(schema: Any, name: str, root: Any = None) -> Any:
    """Return the schema of the property `name` of an object's, or None."""
    return properties_of(schema, schema if root is None else root).get(name)


class Members:
    """Emits the members of a call's arguments, one by one, as a JSON object."""

    def __init__(self, reader: StreamReader, schema: Schema) -> None:
        self._reader = reader
        self._schema = schema
        self._count = 0
        self._given: set[str] = set()

    def add(self, name: str, text: str) -> None:
        """Add a member whose value is written as bare `text`."""
        schema = property_schema(self._schema, name)
        self._key(name)
        self._reader.arguments(as_json(text, schema, self._schema))

    def add_json(self, name: str, text: str) -> None:
        """Add a member whose value is the JSON `text`, or a string if it is not JSON."""
        self._key(name)
        made = as_value(text)
        self._reader.arguments(json.dumps(text, ensure_ascii=False) if made is None else made)

    def read(
        self, name: str, ends: Ends, *, padded: bool = False, string: bool = False
    ) -> Parser[str | None]:
        """Read a member's value; return the mark that ended it, None at the end of the text.

        padded: a line end on either side of the value is not of it. A string is told as it comes,
        any other value when it is whole.
        """
        types = types_of(property_schema(self._schema, name), self._schema)
        if string or types == {"string"}:
            return (yield from self._read_string(name, ends, padded=padded))
        parts: list[str] = []
        end = yield from self.until(name, ends, parts.append)
        if end is not None:
            text = "".join(parts)
            self.add(name, _unpadded(text) if padded else text)
        return end

    def until(self, name: str, ends: Ends, sink: Callable[[str], None]) -> Parser[str | None]:
        """Read the value of `name` up to the mark that ends it, None at the end of the text."""
        self._given.add(name)
        while True:
            mark = yield from self._reader.until(ends.marks, sink)
            if mark is None or (yield from self._is_end(name, mark, ends)):
                return mark
            sink(mark)

    def _is_end(self, name: str, mark: str, ends: Ends) -> Parser[bool]:
        """Return whether what follows `mark`, after a value of `name`, goes on with the call."""
        reader = self._reader
        if mark == ends.mark:
            found, at = yield from reader.ahead(0, (ends.key[0], ends.close))
        else:
            found, at = mark.removeprefix("\n"), 0
        if found == ends.key[0]:
            following = yield from reader.word_ahead(at, ends.key[1])
            if following is None:
                return False
            return ends.any_name or self._may_follow(name, following.strip())
        if found == ends.close and ends.after:
            found, _ = yield from reader.ahead(at, ends.after)
        return found is not None

    def _may_follow(self, name: str, following: str) -> bool:
        """Return whether a member `following` may come after that of `name`.

        One that the tool does not have may come after a number or a choice, but not after a free
        text, which more likely goes on.
        """
        known = properties_of(self._schema, self._schema)
        if following in self._given:
            return False
        if following in known or not known:
            return True
        branches = branches_of(known.get(name), self._schema)
        return all(each["type"] != "string" or "enum" in each for each in branches)

    def close(self) -> None:
        """Complete the object."""
        self._reader.arguments("}" if self._count else "{}")

    def _key(self, name: str) -> None:
        self._given.add(name)
        before = ", " if self._count else "{"
        self._count += 1
        self._reader.arguments(f"{before}{json.dumps(name, ensure_ascii=False)}: ")

    def _read_string(self, name: str, ends: Ends, *, padded: bool) -> Parser[str | None]:
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

        end = yield from self.until(name, ends, tell)
        if end is not None:
            self._reader.arguments('"')
        return end


def as_value(text: str) -> str | None:
    """Return `text` as JSON text if that is what it is, without NaN and infinities; else None.

    A number beyond the range of a double stays as it is written.
    """
    try:
        value = json.loads(text, strict=False, parse_constant=_no_number)
        if all(map(math.isfinite, _floats(value))):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        json.loads(text)  # without raw control characters it is JSON as it is
    except (ValueError, RecursionError):
        return None
    return text.strip()


def python_value(text: str) -> str | None:
    """Return the JSON of a list or dict as Python writes one; None if that is not what it is.

    Some templates write the values of earlier calls so (Seed-OSS), and models follow.
    """
    return as_value(_PYTHON.sub(lambda found: _of_python(found[0]), text))


def _of_python(word: str) -> str:
    if word in _LITERALS:
        return _LITERALS[word]
    return json.dumps(_ESCAPE.sub(_character, word[1:-1]), ensure_ascii=False)


def _character(found: re.Match[str]) -> str:
    """Return what an escape of Python's texts stands for."""
    digits = found[1] or found[2] or found[3]
    if digits is None:
        return _ESCAPES.get(found[4], found[0])
    code = int(digits, 16)
    return chr(code) if code < 0x110000 else found[0]


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _floats(root: Any) -> Iterator[float]:
    todo = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, float):
            yield value
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _as(kind: str, text: str, types: AbstractSet[str]) -> str | None:
    if kind == "null":
        return "null" if text.lower() in ("null", "none") else None
    if kind == "boolean":
        return text.lower() if text.lower() in ("true", "false") else None
    made = as_value(text)
    if made is None and kind in ("object", "array") and "string" not in types:
        made = python_value(text)
    if made is None:
        return None
    is_number = made[0] in "-0123456789"
    if kind == "integer":
        if made.lstrip("-").isdigit():
            return made
        whole = is_number and "number" not in types and abs(float(made)) < _EXACT
        return str(int(float(made))) if whole and float(made).is_integer() else None
    if kind == "number":
        return made if is_number else None
    return made if made[0] == {"object": "{", "array": "["}[kind] else None


def _unpadded(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")
