"""Walks a rewritten schema, whose references all lead to definitions at its top, and says where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def at(path: str) -> str:
    """Return how errors say where in a schema something stands."""
    path = path.removeprefix(".")
    if not path:
        return "at the top"
    return f"at {path if len(path) <= 200 else f'{path[:100]}…{path[-100:]}'}"


def inside(path: str, name: str) -> str:
    """Return the path of a property within an object's."""
    name = name if len(name) <= 60 else f"{name[:60]}…"
    return f"{path}.{name if name.isprintable() else ascii(name)}"


def everything(path: str, node: Any) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield a schema and those within it, with their paths and depths; no references' targets."""
    todo = [(path, node, 1)]
    while todo:
        place, each, depth = todo.pop()
        if isinstance(each, dict):
            yield place, each, depth
            inner = [(*found, depth + 1) for found in children(place, each)]
            todo += inner[::-1]


def children(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas within a node, with the paths of their values."""
    for key in ("properties", "patternProperties"):
        named = node.get(key)
        if isinstance(named, dict):
            yield from ((inside(path, name), each) for name, each in named.items())
    for key in ("allOf", "anyOf", "oneOf"):
        yield from ((path, each) for each in listed(node, key))
    for i, each in enumerate(listed(node, "prefixItems")):
        yield f"{path}[{i}]", each
    for key, name in (("items", "[]"), ("additionalProperties", ".*")):
        if key in node:
            yield f"{path}{name}", node[key]


def listed(node: Mapping[str, Any], key: str) -> list[Any]:
    """Return the list under `key`; an empty one if there is none."""
    value = node.get(key)
    return value if isinstance(value, list) else []


def name_of(node: Mapping[str, Any]) -> str | None:
    """Return the name of the definition that a node refers to; None if it does not."""
    reference = node.get("$ref")
    return reference.rpartition("/")[2] if isinstance(reference, str) else None
