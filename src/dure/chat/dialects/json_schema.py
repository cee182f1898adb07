"""Reads JSON schemas of tools: references, choices, and the types that a value may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dure.chat.schema.choices import values_of
from dure.chat.schema.references import pointed

Schema = Mapping[str, Any]
MAX_DEPTH = 16
MAX_BRANCHES = 64
_CHOICES = ("anyOf", "oneOf")
_NOTES = frozenset({"title", "description", "default", "examples", "deprecated", "$comment"})


def resolved(schema: Any, root: Any) -> Any:
    """Follow the `$ref` of a schema within `root`; keywords beside it are kept.

    Returns an empty schema where a reference leads nowhere, out of the document, or in a circle.
    """
    seen: set[str] = set()
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        pointer = schema["$ref"]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        if pointer in seen:
            return beside
        seen.add(pointer)
        target = pointed(root, pointer)
        if not isinstance(target, Mapping):
            return beside
        schema = {**target, **beside}
    return schema


def types_of(schema: Any, root: Any = None) -> frozenset[str]:
    """Return the JSON types that a value of `schema` may have; {"string"} if it does not say.

    root: the schema that references lead into.
    """
    found = _types(schema, root, MAX_DEPTH)
    return frozenset({"string"}) if found is None else found


def _types(schema: Any, root: Any, depth: int) -> frozenset[str] | None:
    """Return the types of a schema, None if it does not say."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    found: frozenset[str] | None = None
    given = schema.get("type")
    if isinstance(given, str):
        found = frozenset({given})
    elif isinstance(given, Sequence):
        found = frozenset(each for each in given if isinstance(each, str))
    for part in _listed(schema, "allOf"):
        found = _both(found, _types(part, root, depth - 1))
    for name in _CHOICES:
        if choices := _listed(schema, name):
            found = _both(found, _any_of([_types(each, root, depth - 1) for each in choices]))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, Sequence) and not isinstance(values, str):
        found = _both(found, frozenset(type_of(value) for value in values))
    if found is None and "properties" in schema:
        return frozenset({"object"})
    return frozenset({"array"}) if found is None and "items" in schema else found


def _any_of(found: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    if all(each is None for each in found):
        return None
    return frozenset().union(*(frozenset({"string"}) if each is None else each for each in found))


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Return the types in both; an integer is a number."""
    if one is None or other is None:
        return other if one is None else one
    integer = {"integer"} if ("integer" in one | other and "number" in one | other) else set()
    common = (one & other) | integer
    return frozenset(common) or one


def type_of(value: Any) -> str:
    """Return the JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return names.get(type(value), "null")


def properties_of(schema: Any, root: Any = None) -> dict[str, Any]:
    """Return the schemas of an object's properties, those of its choices and parts too."""
    return _properties(schema, root, MAX_DEPTH)


def _properties(schema: Any, root: Any, depth: int) -> dict[str, Any]:
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth == 0:
        return {}
    found: dict[str, Any] = {}
    for name in ("allOf", *_CHOICES):
        for part in _listed(schema, name):
            for key, each in _properties(part, root, depth - 1).items():
                found.setdefault(key, each)
    own = schema.get("properties")
    return {**found, **own} if isinstance(own, Mapping) else found


def required_of(schema: Any, root: Any = None) -> frozenset[str]:
    """Return the names of the properties that an object must have."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping):
        return frozenset()
    names = {name for name in _listed(schema, "required") if isinstance(name, str)}
    for part in [resolved(each, root) for each in _listed(schema, "allOf")]:
        if isinstance(part, Mapping):
            names |= {name for name in _listed(part, "required") if isinstance(name, str)}
    return frozenset(names)


def branches_of(schema: Any, root: Any = None) -> list[dict[str, Any]]:
    """Return schemas of one type each whose union is `schema`, references resolved at the top.

    Returns one schema that allows every string where there are too many.
    """
    found = _branches(schema, root, MAX_DEPTH)
    single = [one for each in found for one in _of_one_type(each)]
    return single if 0 < len(single) <= MAX_BRANCHES else [{"type": "string"}]


def _branches(schema: Any, root: Any, depth: int) -> list[dict[str, Any]]:
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth == 0:
        return [{}]
    hidden = {"allOf", *_CHOICES}
    found = [{key: value for key, value in schema.items() if key not in hidden | _NOTES}]
    groups = [_branches(part, root, depth - 1) for part in _listed(schema, "allOf")]
    for name in _CHOICES:
        if choices := _listed(schema, name):
            groups.append([one for each in choices for one in _branches(each, root, depth - 1)])
    for group in groups:
        pairs = [(one, other) for one in found for other in group][: MAX_BRANCHES + 1]
        found = [merged for one, other in pairs if (merged := _merged(one, other)) is not None]
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Return what two schemas demand together; None if no value can be both."""
    types, others = _types(one, None, 2), _types(other, None, 2)
    if types and others and not (types & others) and not {"integer", "number"} <= types | others:
        return None
    made = {**one, **other}
    if types and others:
        both = _both(types, others) or types
        made["type"] = next(iter(both)) if len(both) == 1 else sorted(both)
    values, its_values = values_of(one), values_of(other)
    if values is not None and its_values is not None:
        made["enum"] = [value for key, value in values.items() if key in its_values]
        made.pop("const", None)
        if not made["enum"]:
            return None
    for key in one.keys() & other.keys():
        mine, its = one[key], other[key]
        if key == "pattern" and mine != its:
            made[key] = [*_as_list(mine), *_as_list(its)]
        elif key in ("minLength", "minimum"):
            made[key] = max(mine, its)
        elif key in ("maxLength", "maximum"):
            made[key] = min(mine, its)
    return made


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _of_one_type(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a schema of several types."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        rest = {key: each for key, each in schema.items() if key not in ("const", "enum", "type")}
        allowed = _types({"type": schema["type"]}, None, 2) if "type" in schema else None
        kinds = dict.fromkeys(type_of(value) for value in values)
        return [
            {**rest, "type": kind, "enum": [each for each in values if type_of(each) == kind]}
            for kind in kinds
            if allowed is None or kind in allowed or (kind == "integer" and "number" in allowed)
        ]
    return [{**schema, "type": kind} for kind in sorted(types_of(schema))]


def _listed(schema: Schema, name: str) -> list[Any]:
    value = schema.get(name)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
