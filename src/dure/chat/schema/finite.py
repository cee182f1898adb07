"""Finds schemas whose values would have no end, such as a list node that must have a next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dure.chat.schema.rewrite import inside


def endless(schema: dict[str, Any]) -> str | None:
    """Return the path of a value in a rewritten schema that can have no end; None if all can."""
    definitions: dict[str, Any] = schema.get("$defs", {})
    users: dict[str, list[str]] = {name: [] for name in definitions}
    for name, each in definitions.items():
        for used in _references(each):
            users[used].append(name)
    ending: set[str] = set()  # the references whose values can end
    todo = list(definitions)
    while todo:
        name = todo.pop()
        if name not in ending and _ends(definitions[name], ending):
            ending.add(name)
            todo += users[name]
    if _ends(schema, ending):
        return None
    path, node = "", schema
    seen: set[str] = set()
    while True:
        if (reference := _name(node)) is not None:
            if reference in seen:
                return path
            seen.add(reference)
        wrong = next(
            (each for each in _needed(path, node, definitions) if not _ends(each[1], ending)), None
        )
        if wrong is None:
            return path
        path, node = wrong


def _references(root: Any) -> set[str]:
    """Return the names of the definitions that a schema refers to."""
    found: set[str] = set()
    todo = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if (name := _name(node)) is not None:
                found.add(name)
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return found


def _name(node: Any) -> str | None:
    reference = node.get("$ref") if isinstance(node, dict) else None
    return reference.rpartition("/")[2] if isinstance(reference, str) else None


def _ends(node: Any, ending: set[str]) -> bool:
    """Return whether a value of `node` can end, if those of the references in `ending` can."""
    if not isinstance(node, dict):
        return True
    name = _name(node)
    if name is not None and name not in ending:
        return False
    for key in ("anyOf", "oneOf"):
        branches = _listed(node, key)
        if branches and not any(_ends(each, ending) for each in branches):
            return False
    if not all(_ends(each, ending) for each in _listed(node, "allOf")):
        return False
    return _is_other(node) or all(_ends(each, ending) for _, each in _members("", node))


def _listed(node: Mapping[str, Any], key: str) -> list[Any]:
    value = node.get(key)
    return value if isinstance(value, list) else []


def _is_other(node: Mapping[str, Any]) -> bool:
    """Return whether a value may be something else than an object or an array."""
    if "const" in node or "enum" in node:
        return True
    types = node.get("type")
    if isinstance(types, str):
        types = [types]
    return not isinstance(types, list) or bool(set(map(str, types)) - {"object", "array"})


def _members(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the members that a value must have, if it is of the one type that `node` says."""
    types = node.get("type")
    if types in ("object", ["object"]):
        given = node.get("properties")
        properties = given if isinstance(given, dict) else {}
        for name in _listed(node, "required"):
            if isinstance(name, str) and name in properties:
                yield inside(path, name), properties[name]
    if types in ("array", ["array"]) and isinstance(least := node.get("minItems"), int):
        before = _listed(node, "prefixItems")
        yield from ((f"{path}[{i}]", each) for i, each in enumerate(before[:least]))
        if least > len(before) and "items" in node:
            yield f"{path}[]", node["items"]


def _needed(path: str, node: Any, definitions: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every schema that a value of `node` needs, or may need, with its path."""
    if (name := _name(node)) is not None:
        yield path, definitions[name]
    for key in ("allOf", "anyOf", "oneOf"):
        yield from ((path, each) for each in _listed(node, key))
    yield from _members(path, node)
