"""Rewrites `oneOf` where its branches exclude each other, or can be made to.

Grammars know only "any of". It means the same where no value can be of two branches; everywhere
else `oneOf` is left as it is, and whoever enforces the schema refuses it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.schema.keywords import KEYWORDS
from dure.chat.schema.references import Document, Node

MAX_BRANCHES = 256
TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_PLAIN = frozenset({"const", "enum", "type", "$ref", "allOf"})


def without_one_of(schema: dict[str, Any], node: Node, document: Document) -> dict[str, Any]:
    """Return `schema`, the node's, with `anyOf` or `enum` for its `oneOf` where that is exact."""
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or not 0 < len(branches) <= MAX_BRANCHES:
        return schema
    rest = {key: value for key, value in schema.items() if key != "oneOf"}
    if len(branches) == 1:
        return _and(rest, "allOf", branches)
    nodes = [node.inner(branch) for branch in branches]
    listed = [_listed(each, document) for each in nodes]
    if all(values is not None for values in listed):
        return _with_values(rest, [values for values in listed if values is not None])
    if (names := _single_names(branches)) is not None:
        return _and(rest, "anyOf", [_with_only(name, names) for name in names])
    facts = [_facts(each, document) for each in nodes]
    if all(_disjoint(one, other) for i, one in enumerate(facts) for other in facts[:i]):
        return _and(rest, "anyOf", branches)
    return schema


def _and(schema: dict[str, Any], name: str, branches: Sequence[Any]) -> dict[str, Any]:
    """Add `name` to a schema, within `allOf` where it has one already."""
    if name == "allOf":
        return {**schema, "allOf": [*_list(schema.get("allOf")), *branches]}
    if name not in schema:
        return {**schema, name: list(branches)}
    return {**schema, "allOf": [*_list(schema.get("allOf")), {name: list(branches)}]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _with_values(
    schema: dict[str, Any], listed: Sequence[Mapping[Hashable, Any]]
) -> dict[str, Any]:
    """Return the schema with the values that exactly one branch has."""
    once: dict[Hashable, Any] = {}
    often: set[Hashable] = set()
    for values in listed:
        for key, value in values.items():
            if key in once:
                often.add(key)
            once[key] = value
    own = values_of(schema)
    kept = [
        value for key, value in once.items() if key not in often and (own is None or key in own)
    ]
    rest = {key: value for key, value in schema.items() if key != "const"}
    return {**rest, "enum": kept}


def _listed(node: Node, document: Document) -> dict[Hashable, Any] | None:
    """Return the values of a branch that is nothing but a list of them; None if it is more."""
    parts = document.parts(node)
    if not all(
        isinstance(part.schema, Mapping) and part.schema.keys() & KEYWORDS <= _PLAIN
        for part in parts
    ):
        return None
    return _values(parts)


def _values(parts: Sequence[Node]) -> dict[Hashable, Any] | None:
    """Return the values that all of some schemas allow; None if none of them has a list."""
    found: dict[Hashable, Any] | None = None
    for part in parts:
        own = values_of(part.schema)
        if own is not None:
            found = own if found is None else {key: found[key] for key in found if key in own}
    if found is None:
        return None
    allowed = _types(parts)
    return {key: value for key, value in found.items() if _type(value) & allowed}


def values_of(schema: Any) -> dict[Hashable, Any] | None:
    """Return the values of a schema's own `const` and `enum`, by what makes them equal."""
    if not isinstance(schema, Mapping):
        return None
    listed = schema.get("enum")
    found = {_key(value): value for value in listed} if isinstance(listed, list) else None
    if "const" not in schema:
        return found
    key = _key(schema["const"])
    return {key: schema["const"]} if found is None or key in found else {}


def listed_values(node: Node, document: Document) -> list[Any] | None:
    """Return the values of a schema that is nothing but a list of them; None if it is more."""
    found = _listed(node, document)
    return None if found is None else list(found.values())


def _key(value: Any) -> Hashable:
    """Return what is equal for values that are equal in JSON: 1 and 1.0, but not 1 and true."""
    if isinstance(value, Mapping):
        return ("{", frozenset((key, _key(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return ("[", tuple(_key(each) for each in value))
    return (type(value) is bool, value) if isinstance(value, Hashable) else repr(value)


def _type(value: Any) -> frozenset[str]:
    """Return the types of a value; an integer is a number, too."""
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    names = {float: "number", str: "string", list: "array", tuple: "array", dict: "object"}
    return frozenset({names.get(type(value), "null")})


def _types(parts: Sequence[Node]) -> frozenset[str]:
    """Return the types that all of some schemas allow; "number" always with "integer"."""
    found = TYPES
    for part in parts:
        given = part.schema.get("type") if isinstance(part.schema, Mapping) else None
        if isinstance(given, str):
            given = [given]
        if isinstance(given, list):
            names = {each for each in given if isinstance(each, str)}
            found &= names | ({"integer"} if "number" in names else set())
    return found


@dataclass(frozen=True)
class _Facts:
    """What is sure about a schema's values."""

    types: frozenset[str]
    values: Mapping[Hashable, Any] | None  # all that there can be
    required: frozenset[str]  # of an object
    tags: Mapping[str, frozenset[Hashable]]  # required properties with a list of values
    closed: frozenset[str] | None  # the only names that an object can have


def _facts(node: Node, document: Document) -> _Facts:
    parts = document.parts(node)
    schemas = [part.schema for part in parts if isinstance(part.schema, Mapping)]
    required = {
        name for each in schemas for name in _list(each.get("required")) if isinstance(name, str)
    }
    tags: dict[str, frozenset[Hashable]] = {}
    closed: frozenset[str] | None = None
    for part in parts:
        if not isinstance(part.schema, Mapping):
            continue
        properties = part.schema.get("properties", {})
        if not isinstance(properties, Mapping):
            continue
        if part.schema.get("additionalProperties") is False and not part.schema.get(
            "patternProperties"
        ):
            names = frozenset(properties)
            closed = names if closed is None else closed & names
        for name in required & properties.keys():
            values = _values(document.parts(part.inner(properties[name])))
            if values is not None:
                tags[name] = frozenset(values) & tags.get(name, frozenset(values))
    return _Facts(_types(parts), _values(parts), frozenset(required), tags, closed)


def _disjoint(one: _Facts, other: _Facts) -> bool:
    """Return whether it is sure that no value is of both."""
    if one.values is not None and other.values is not None:
        return not (one.values.keys() & other.values.keys())
    common = one.types & other.types
    if one.values is not None or other.values is not None:
        values = one.values if one.values is not None else other.values
        if values is not None and not any(_type(value) & common for value in values.values()):
            return True
    if common - {"object"}:
        return False
    if any(not (one.tags[name] & other.tags[name]) for name in one.tags.keys() & other.tags.keys()):
        return True
    pairs = ((one, other), (other, one))
    return not common or any(a.closed is not None and b.required - a.closed for a, b in pairs)


def _single_names(branches: Sequence[Any]) -> list[str] | None:
    """Return the names of branches that only require one each, all of them different."""
    names = []
    for branch in branches:
        if not isinstance(branch, Mapping) or branch.keys() & KEYWORDS != {"required"}:
            return None
        required = branch["required"]
        if not isinstance(required, list) or len(required) != 1:
            return None
        names.append(required[0])
    distinct = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return names if distinct else None


def _with_only(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the schema of objects that have `name`, and none of the other `names`."""
    others = {other: False for other in names if other != name}
    return {"type": "object", "required": [name], "properties": others}
