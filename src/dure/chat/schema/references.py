"""Follows the references of a JSON schema: pointers, anchors and ids within one document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ESCAPED = re.compile("(?:%[0-9A-Fa-f]{2})+")  # as in a URL
_VALUES = frozenset({"enum", "const", "default", "examples"})  # hold values, not schemas
MAX_PARTS = 256


@dataclass(frozen=True)
class Node:
    """A schema where it stands. resource: the nearest schema around it that has an `$id`."""

    schema: Any
    resource: Any

    def inner(self, schema: Any) -> Node:
        """Return the node of a schema within this one."""
        own = isinstance(schema, Mapping) and _id_of(schema) is not None
        return Node(schema, schema if own else self.resource)


class Document:
    """The whole schema, into which references lead."""

    def __init__(self, root: Any) -> None:
        self.root = Node(root, root)
        self._ids: dict[str, Any] | None = None

    def target(self, node: Node) -> Node | None:
        """Return what the `$ref` of a node leads to; None if nowhere, or out of the document."""
        reference = node.schema["$ref"]
        place, _, fragment = reference.partition("#")
        resource = node.resource
        if place:
            resource = self._identified(place, resource)
            if resource is None:
                return None
        if fragment and not fragment.startswith("/"):
            found = _anchored(resource, _unescape(fragment))
            return None if found is None else Node(resource, resource).inner(found)
        found = pointed(resource, f"#{fragment}")
        if not isinstance(found, Mapping | bool):
            return None
        return Node(found, resource) if found is resource else Node(resource, resource).inner(found)

    def parts(self, node: Node) -> list[Node]:
        """Return the schemas that all hold where `node` does: itself, references', `allOf`'s."""
        found: list[Node] = []
        seen: set[int] = set()
        todo = [node]
        while todo and len(found) < MAX_PARTS:
            each = todo.pop()
            if id(each.schema) in seen:
                continue
            seen.add(id(each.schema))
            found.append(each)
            if not isinstance(each.schema, Mapping):
                continue
            if isinstance(each.schema.get("$ref"), str):
                target = self.target(each)
                todo += [] if target is None else [target]
            listed = each.schema.get("allOf")
            todo += [each.inner(part) for part in listed] if isinstance(listed, list) else []
        return found

    def _identified(self, place: str, resource: Any) -> Any:
        if self._ids is None:
            self._ids = {}
            for schema in _schemas(self.root.schema):
                if (name := _id_of(schema)) is not None:
                    self._ids.setdefault(name.removesuffix("#"), schema)
        base = _id_of(resource) if isinstance(resource, Mapping) else None
        beside = f"{base.rpartition('/')[0]}/{place}" if base and "/" in base else place
        return self._ids.get(place, self._ids.get(beside))


def pointed(root: Any, pointer: str) -> Any:
    """Return what a JSON pointer such as #/$defs/a leads to, or None."""
    if not pointer.startswith("#"):
        return None
    at = root
    for part in pointer[1:].split("/")[1:]:
        key = _unescape(part).replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping) and key in at:
            at = at[key]
        elif isinstance(at, Sequence) and key.isdecimal() and int(key[:9]) < len(at):
            at = at[int(key[:9])]
        else:
            return None
    return at


def _unescape(text: str) -> str:
    return _ESCAPED.sub(
        lambda found: bytes.fromhex(found.group().replace("%", "")).decode("utf-8", "replace"), text
    )


def _id_of(schema: Mapping[str, Any]) -> str | None:
    name = schema.get("$id")
    return name if isinstance(name, str) and not name.startswith("#") else None


def _anchored(resource: Any, name: str) -> Any:
    for schema in _schemas(resource):
        if schema.get("$anchor") == name or schema.get("$id") == f"#{name}":
            return schema
    return None


def _schemas(root: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object of the document that may be a schema, by a list: no depth is too much."""
    todo = [root]
    while todo:
        at = todo.pop()
        if isinstance(at, Mapping):
            yield at
            todo += [value for key, value in at.items() if key not in _VALUES]
        elif isinstance(at, list):
            todo += at
