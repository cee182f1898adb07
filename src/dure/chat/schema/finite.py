"""Finds schemas whose values would have no end, such as a list node that must have a next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dure.chat.schema.walk import everything, listed, name_of


def endless(schema: dict[str, Any]) -> str | None:
    """Return the path of a value in a rewritten schema that could have no end; None if all can.

    Every circle goes through a definition. The definitions whose values can end are collected from
    those that need no other, up to those that need only such (a least fixed point).
    """
    definitions: dict[str, Any] = schema.get("$defs", {})
    users: dict[str, list[str]] = {name: [] for name in definitions}
    for name, each in definitions.items():
        for _, inner, _ in everything("", each):
            if (used := name_of(inner)) is not None:
                users[used].append(name)
    ending: set[str] = set()
    todo = list(definitions)
    while todo:
        name = todo.pop()
        if name not in ending and _ends(definitions[name], ending):
            ending.add(name)
            todo += users[name]
    if len(ending) == len(definitions):
        return None
    todo_nodes: list[tuple[str, Any]] = [("", schema)]
    seen: set[str] = set()
    while todo_nodes:
        for path, node, _ in everything(*todo_nodes.pop(0)):
            used = name_of(node)
            if used is not None and used not in ending:
                return path
            if used is not None and used not in seen:
                seen.add(used)
                todo_nodes.append((path, definitions[used]))
    return None


def _ends(node: Any, ending: set[str]) -> bool:
    """Return whether a value of `node` can end, if those of the references in `ending` can."""
    if not isinstance(node, dict):
        return True
    name = name_of(node)
    if name is not None and name not in ending:
        return False
    for key in ("anyOf", "oneOf"):
        branches = listed(node, key)
        if branches and not any(_ends(each, ending) for each in branches):
            return False
    if not all(_ends(each, ending) for each in listed(node, "allOf")):
        return False
    return _may_be_other(node) or all(_ends(each, ending) for each in _members(node))


def _may_be_other(node: Mapping[str, Any]) -> bool:
    """Return whether a value may be something else than an object or an array."""
    types = node.get("type")
    if "const" in node or "enum" in node or not isinstance(types, str | list):
        return True
    names = {types} if isinstance(types, str) else set(map(str, types))
    return bool(names - {"object", "array"})


def _members(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the members that a value must have, if it is of the one type that `node` says."""
    types = node.get("type")
    if types in ("object", ["object"]):
        given = node.get("properties")
        properties = given if isinstance(given, dict) else {}
        for name in listed(node, "required"):
            if isinstance(name, str) and name in properties:
                yield properties[name]
    if types in ("array", ["array"]) and isinstance(least := node.get("minItems"), int):
        before = listed(node, "prefixItems")
        yield from before[:least]
        if least > len(before) and "items" in node:
            yield node["items"]
