"""Says what is wrong with a schema that no grammar can enforce: where, which keyword, and why."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dure.chat.schema.finite import endless
from dure.chat.schema.keywords import LISTS, MAPS
from dure.chat.schema.rewrite import rewritten
from dure.chat.schema.walk import at, children, inside, name_of
from dure.errors import InvalidRequestError

Cause = Callable[[str], str]
"""Returns why a grammar cannot be compiled, in its library's words; "" if it can."""

MAX_SECONDS = 0.5  # of the processor's time, to find the place
_UNKNOWN = re.compile(r'"([^"]+)"')
_QUOTED = re.compile(r"'(\w+)'")
_OVERLAP = re.compile(r"regexes /(.*)/ and /(.*)/ are")
_PROPERTY = re.compile(r"required property '(.*)' is unsatisfiable")
_UNSATISFIABLE = "Unsatisfiable schema: "
_SCHEMA = "a schema is an object, true or false"
_LEAVE = "leave {} out, or say it in the description"


def check(schema: Any, what: str, cause: Cause, root: Any = None) -> tuple[str, ...]:
    """Check that a schema can be enforced.

    what: names the schema in errors, such as "The JSON schema". root: what its references lead
    into, if not itself.
    Returns what is left to the model, such as '"uniqueItems" at tags'.
    Raises InvalidRequestError, which names the place and the keyword.
    """
    made = rewritten(schema, what, root)
    path = endless(made.schema)
    if path is not None:
        raise InvalidRequestError(
            f"{what} cannot be enforced: a value {at(path)} would have no end, since it must hold "
            "another of its own kind.",
            hint='take it out of "required", or allow null',
        )
    words = cause(_grammar(made.schema))
    if words:
        path, node, words = _Search(made.schema, cause).find(words)
        sentence, hint = _explained(words, path, node)
        raise InvalidRequestError(f"{what} cannot be enforced: {sentence}.", hint=hint)
    return made.unenforced


def loosened(schema: Mapping[str, Any], cause: Cause) -> dict[str, Any]:
    """Return the schema of an object without what cannot be enforced: its own other keywords, and
    all that is said of a property where not all of it can be."""
    given = schema.get("properties")
    properties = given if isinstance(given, Mapping) else {}
    return {
        "type": "object",
        "properties": {
            name: each if _can_be_enforced(each, schema, cause) else {}
            for name, each in properties.items()
        },
        "$defs": schema.get("$defs", {}),
        "definitions": schema.get("definitions", {}),
    }


def _can_be_enforced(schema: Any, root: Mapping[str, Any], cause: Cause) -> bool:
    try:
        check(schema, "The schema", cause, root)
    except InvalidRequestError:
        return False
    return True


def _grammar(schema: Mapping[str, Any]) -> str:
    return f"start: %json {json.dumps(schema)}"


class _Search:
    """Finds the innermost schema that fails for the same cause as the whole."""

    def __init__(self, schema: dict[str, Any], cause: Cause) -> None:
        self._schema = schema
        self._definitions = schema.get("$defs", {})
        self._cause = cause
        self._until = time.thread_time() + MAX_SECONDS
        self._seen: set[str] = set()

    def find(self, words: str) -> tuple[str, dict[str, Any], str]:
        """Return the path and the schema of the place that `words` are about, and its own words."""
        path, node = "", self._schema
        while (deeper := self._deeper(path, node, words)) is not None:
            path, node, words = deeper
        return path, node, words

    def _deeper(
        self, path: str, node: dict[str, Any], words: str
    ) -> tuple[str, dict[str, Any], str] | None:
        needed = _needed(path, words)
        for inner_path, inner in self._inner(path, node):
            if time.thread_time() > self._until:
                return None
            own = self._cause(_grammar({**inner, "$defs": self._definitions}))
            is_cause = inner_path in needed and own.startswith(_UNSATISFIABLE)
            if own == words or is_cause:
                return inner_path, inner, own
        return None

    def _inner(self, path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        name = name_of(node)
        if name is not None and name not in self._seen:
            self._seen.add(name)
            yield path, self._definitions[name]
        for each_path, each in children(path, node):
            if isinstance(each, dict):
                yield each_path, each


def _needed(path: str, words: str) -> tuple[str, ...]:
    """Return the paths of a value's members that `words` say must be there, and cannot."""
    if found := _PROPERTY.search(words):
        return (inside(path, found[1]),)
    if found := re.search(r"prefixItems\[(\d+)\]", words):
        return (f"{path}[{found[1]}]",)
    return (f"{path}[]",) if "required item" in words else ()


def _explained(words: str, path: str, node: Mapping[str, Any]) -> tuple[str, str]:
    """Return a sentence of ours for the library's words, and a hint."""
    where = at(path)
    first = words.split("\n", 1)[0]
    if first.startswith("Unimplemented keys"):
        keys = [f'"{key}"' for key in _UNKNOWN.findall(first)]
        said, verb = " and ".join(keys), "is" if len(keys) == 1 else "are"
        return f"{said} {where} {verb} not supported", _LEAVE.format(said)
    if first.startswith("oneOf"):
        return (
            f'"oneOf" {where} is not supported where a value may be of several of its branches',
            'write "anyOf", or give each branch a required property with a const of its own',
        )
    if found := _OVERLAP.search(first):
        one, other = (f"{each[:80]!r}" for each in found.groups())
        return (
            f'"patternProperties" {where} has the patterns {one} and {other}, which may match the '
            "same names",
            "write them so that no name matches both, or give them the same schema",
        )
    if first.startswith(("regex parse error", "lookarounds")):
        return _explained_regex(words, path, node)
    if first.startswith("Invalid type"):
        return (
            f'"type" {where} is {str(node.get("type"))[:60]!r}, which JSON does not have',
            "string, integer, number, boolean, array, object or null",
        )
    if first.startswith("min/maxProperties"):
        return (
            f'"minProperties" or "maxProperties" {where} is not supported beside properties that '
            "are not required",
            _LEAVE.format("it"),
        )
    if first.startswith(_UNSATISFIABLE):
        return _explained_unsatisfiable(first.removeprefix(_UNSATISFIABLE), where, node)
    if found := _QUOTED.search(first):
        key = found[1]
        return f'"{key}" {where} cannot be {_short(node.get(key))}', _kind(first)
    key = first.split(" ", 1)[0]
    if key in node:
        return f'"{key}" {where} cannot be {_short(node[key])}', _kind(first)
    if "multiple of" in first or "multipleOf" in first:
        return (
            f'"multipleOf" {where} cannot be {_short(node.get("multipleOf"))}',
            "a number above 0",
        )
    if first.startswith("schema must be"):
        key, value = next(_no_schemas(node), ("properties", None))
        return f'"{key}" {where} has {_short(value)}, which is no schema', _SCHEMA
    if "float range" in first:
        return f'"minimum" or "maximum" {where} is too large', "leave it out"
    if first == "schema too large":
        return f'"allOf" or "anyOf" {where} has too many combinations', "make it simpler"
    return f"something {where} is malformed, or too complex", "make it simpler"


def _explained_regex(words: str, path: str, node: Mapping[str, Any]) -> tuple[str, str]:
    reason = words.rpartition("error: ")[2].strip().split("\n")[0].split(";")[0].rstrip(".")
    patterns = node.get("patternProperties")
    found = [("patternProperties", each) for each in (patterns or ())]
    if "pattern" in node:
        found.append(("pattern", node["pattern"]))
    key, text = next((each for each in found if str(each[1]) in words), found[-1])
    return (
        f'"{key}" {at(path)} has {str(text)[:80]!r}, which is no regular expression that can be '
        f"enforced: {reason}",
        "write it without look-around, back-references and inline flags, or leave it out",
    )


def _explained_unsatisfiable(reason: str, where: str, node: Mapping[str, Any]) -> tuple[str, str]:
    hint = "look for bounds, types or names that exclude each other"
    if found := _PROPERTY.fullmatch(reason):
        return f'"required" {where} has {found[1][:60]!r}, which can have no value', hint
    found = re.fullmatch(r"(\w+) \((\S+)\) is greater than (\w+) \((\S+)\)", reason)
    if found and found[1] in node and found[3] in node:
        return f'"{found[1]}" {where} is {found[2]}, above "{found[3]}", {found[4]}', hint
    if found := re.fullmatch(r"minProperties > maxProperties", reason):
        return f'"minProperties" {where} is above "maxProperties"', hint
    if reason == "incompatible types":
        return f'"type" {where} leaves no type that all parts of the schema allow', hint
    if reason.startswith("anyOf is empty"):
        return f'"{"enum" if "enum" in node else "anyOf"}" {where} is empty', "list what is allowed"
    if reason.startswith("Regex is empty"):
        return f'"pattern" or "format" {where} leaves no text that all of them allow', hint
    keys = " and ".join(f'"{key}"' for key in node if key not in ("$defs", "$ref"))
    return (
        f"{keys or 'the schema'} {where} {'allow' if ' and ' in keys else 'allows'} no value",
        hint,
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _no_schemas(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is no schema where one must be, with its keyword."""
    for key in (*LISTS, *MAPS, "items", "additionalProperties"):
        value = node.get(key, True)
        if isinstance(value, dict) and key in MAPS:
            held = list(value.values())
        else:
            held = value if isinstance(value, list) and key in LISTS else [value]
        yield from ((key, each) for each in held if not isinstance(each, dict | bool))


def _kind(first: str) -> str:
    """Return what a value must be, from words such as "Expected array for 'required'"."""
    kinds = {
        "array": "a list",
        "string": "a text",
        "f64": "a number",
        "positive integer": "a whole number, 0 or more",
        "an object": "an object",
        "an array": "a list",
    }
    found = re.search(r"Expected ([a-z0-9 ]+) for|must be (an? \w+)", first)
    kind = kinds.get(found[1] or found[2]) if found else None
    return "see JSON schema's specification" if kind is None else f"it is {kind}"
