"""Rewrites a JSON schema in the keywords that a grammar can enforce, with the same meaning.

References lead to flat `$defs` afterwards, so that a part of a schema can stand alone. Notes
(titles, formats that nobody enforces) are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dure.chat.schema.choices import without_one_of
from dure.chat.schema.depth import MAX_SCHEMAS, deepest
from dure.chat.schema.formats import OTHERS, STANDARD
from dure.chat.schema.keywords import COUNTS, IN_PLACE, KEYWORDS, LISTS, MAPS, REFUSED
from dure.chat.schema.names import with_plain_names
from dure.chat.schema.references import Document, Node
from dure.chat.schema.walk import at, everything, inside, name_of
from dure.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 256 << 10
MAX_DEPTH = 64
MAX_DEFINITIONS = 2000


@dataclass(frozen=True)
class Rewritten:
    """A schema that a grammar can enforce, and what it leaves to the model."""

    schema: dict[str, Any]
    unenforced: tuple[str, ...] = ()  # such as '"uniqueItems" at tags'


def rewritten(schema: Any, what: str, root: Any = None) -> Rewritten:
    """Return a schema in the keywords that a grammar can enforce.

    what: names the schema in errors. root: what its references lead into, if not itself.
    Raises InvalidRequestError if it is no schema, too large, or refers to nothing.
    """
    schema = _plain(schema, what)
    document = Document(schema if root is None else root)
    rewriter = _Rewriter(document, what)
    made = rewriter.schema(Node(schema, document.root.schema), "", alone=True)
    rewriter.finish()
    whole = {} if made is True else made
    if rewriter.definitions:
        whole = {**whole, "$defs": rewriter.definitions}
        _check_depth(whole, what)
    return Rewritten(whole, tuple(dict.fromkeys(rewriter.unenforced)))


def _plain(schema: Any, what: str) -> Any:
    """Return a schema of dicts and lists, if it is one, and within the limits."""
    if not isinstance(schema, Mapping | bool):
        raise InvalidRequestError(
            f"{what} must be a JSON object.", hint='such as {"type": "object", "properties": {…}}'
        )
    if schema is False:
        raise InvalidRequestError(f"{what} is false, which allows no value.", hint="leave it out")
    if _too_deep(schema, MAX_DEPTH):
        raise InvalidRequestError(
            f"{what} is nested deeper than {MAX_DEPTH} levels.", hint="put parts of it into $defs"
        )
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{what} holds something that is not JSON.") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"{what} has {len(text):,} bytes; the limit is {MAX_SCHEMA_BYTES:,}."
        )
    return json.loads(text)


def _too_deep(value: Any, depth: int) -> bool:
    """Whether `value` is nested deeper than `depth`; by a list, so that no depth is too much."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, Mapping):
                inner += each.values()
            elif isinstance(each, Sequence) and not isinstance(each, str | bytes):
                inner += each
        if not inner:
            return False
        level = inner
    return True


def _check_depth(schema: dict[str, Any], what: str) -> None:
    """Check how deep the definitions of a rewritten schema lead into each other."""
    weights: dict[str, int] = {}
    uses: dict[str, set[str]] = {}
    for name, definition in {"": schema, **schema.get("$defs", {})}.items():
        found = list(everything("", definition))
        weights[name] = max((depth for _, _, depth in found), default=1)
        uses[name] = {used for _, node, _ in found if (used := name_of(node)) is not None}
    if (depth := deepest(weights, uses)) > MAX_SCHEMAS:
        raise InvalidRequestError(
            f"{what} leads through {depth:,} schemas within each other, by its references; "
            f"the limit is {MAX_SCHEMAS}.",
            hint="ask for less at once",
        )


class _Rewriter:
    def __init__(self, document: Document, what: str) -> None:
        self.definitions: dict[str, Any] = {}
        self.unenforced: list[str] = []
        self._document = document
        self._what = what
        self._names: dict[tuple[int, bool], str] = {}
        self._nodes: list[Node] = []  # kept, so that no other has an id of theirs
        self._todo: list[tuple[str, Node, str, bool]] = []

    def finish(self) -> None:
        """Rewrite the definitions that references led to, and those that they lead to."""
        while self._todo:
            name, node, path, alone = self._todo.pop()
            self.definitions[name] = self.schema(node, path, alone=alone)

    def schema(self, node: Node, path: str, *, alone: bool) -> Any:
        """Return a node's schema, rewritten.

        alone: no other schema says which properties the value has, if it is an object.
        """
        if not isinstance(node.schema, Mapping):
            return node.schema
        given = {key: value for key, value in node.schema.items() if key in KEYWORDS}
        given = with_plain_names(_modern(given), node, self._document, alone=alone)
        given = without_one_of(given, node, self._document)
        if given.pop("uniqueItems", None) is True and given.get("maxItems", 2) != 1:
            self.unenforced.append(f'"uniqueItems" {at(path)}')
        pattern = self._pattern(given, path)
        made = {
            key: self._value(key, value, node, path, alone, given) for key, value in given.items()
        }
        if pattern is not None:
            made["allOf"] = [*made.get("allOf", []), {"pattern": pattern}]
        return made

    def _value(
        self, key: str, value: Any, node: Node, path: str, alone: bool, given: dict[str, Any]
    ) -> Any:
        """Return the value of a keyword, rewritten."""
        if key == "$ref" and isinstance(value, str):
            return self._reference(node, path, alone and len(given) == 1)
        if key in ("properties", "patternProperties") and isinstance(value, Mapping):
            counts: dict[int, int] = {}
            for each in value.values():
                counts[id(each)] = counts.get(id(each), 0) + 1
            return {
                name: self._shared(node.inner(each), inside(path, name), counts[id(each)] > 1)
                for name, each in value.items()
            }
        if key in ("items", "additionalProperties"):
            inner = f"{path}[]" if key == "items" else f"{path}.*"
            return self.schema(node.inner(value), inner, alone=True)
        if key == "prefixItems" and isinstance(value, list):
            return [
                self.schema(node.inner(each), f"{path}[{i}]", alone=True)
                for i, each in enumerate(value)
            ]
        if key in LISTS and isinstance(value, list):
            only = alone and key != "allOf" and not given.keys() & IN_PLACE - {key}
            only = only and not given.keys() & {*MAPS, "additionalProperties"}
            return [self.schema(node.inner(each), path, alone=only) for each in value]
        # The rest holds no schemas, or is refused: references in it must not be looked for first.
        return {} if key in REFUSED else value

    def _shared(self, node: Node, path: str, often: bool) -> Any:
        """Return a property's schema, by reference if it stands there more than once."""
        if often and isinstance(node.schema, Mapping) and node.schema:
            return {"$ref": self._named(node, path, alone=True)}
        return self.schema(node, path, alone=True)

    def _reference(self, node: Node, path: str, alone: bool) -> str:
        target = self._document.target(node)
        seen = {id(node.schema)}
        while target is not None and isinstance(target.schema, Mapping):
            if id(target.schema) in seen:
                raise InvalidRequestError(
                    f'{self._what} cannot be enforced: "$ref" {at(path)} leads back to itself.',
                    hint="let it lead to a schema that says something",
                )
            seen.add(id(target.schema))
            following = target.schema.get("$ref")
            if not isinstance(following, str) or len(target.schema.keys() & KEYWORDS) > 1:
                break
            target = self._document.target(target)
        if target is None:
            raise InvalidRequestError(
                f'{self._what} cannot be enforced: "$ref" {at(path)} leads to '
                f"{str(node.schema['$ref'])[:100]!r}, which is not in the schema.",
                hint="put the definition into $defs of the same schema",
            )
        return self._named(target, path, alone=alone)

    def _named(self, node: Node, path: str, *, alone: bool) -> str:
        """Return the reference to a node's own definition."""
        key = (id(node.schema), alone)
        if key not in self._names:
            if len(self._names) >= MAX_DEFINITIONS:
                raise InvalidRequestError(
                    f"{self._what} refers to more than {MAX_DEFINITIONS:,} definitions.",
                    hint="ask for less at once",
                )
            self._names[key] = f"d{len(self._names)}"
            self._nodes.append(node)
            self._todo.append((self._names[key], node, path, alone))
        return f"#/$defs/{self._names[key]}"

    def _pattern(self, given: dict[str, Any], path: str) -> str | None:
        """Take a format out that grammars do not know; return the pattern that says it."""
        name = given.get("format")
        if not isinstance(name, str):
            return None
        types = given.get("type", "string")
        if "string" not in (types if isinstance(types, list) else [types]):
            del given["format"]
        elif name not in STANDARD:
            del given["format"]
            if name in OTHERS:
                return f"^(?:{OTHERS[name]})$"
            self.unenforced.append(f'"format": {name[:60]!r} {at(path)}')
        return None


def _modern(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in the words of the newest draft, without keywords that say nothing."""
    for key in schema.keys() & COUNTS:
        if isinstance(schema[key], float) and schema[key].is_integer():
            schema[key] = int(schema[key])
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        is_exclusive = schema.pop(key) if isinstance(schema.get(key), bool) else False
        if is_exclusive and bound in schema:  # draft 4
            schema[key] = schema.pop(bound)
    if isinstance(schema.get("items"), list) and "prefixItems" not in schema:  # until 2019-09
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema["additionalItems"]
    schema.pop("additionalItems", None)
    if schema.get("unevaluatedItems") is not None and not schema.keys() & IN_PLACE:
        evaluated = schema.pop("unevaluatedItems")
        schema.setdefault("items", evaluated)
    for keys, needed in ((("then", "else"), "if"), (("minContains", "maxContains"), "contains")):
        if needed not in schema:
            for key in keys:
                schema.pop(key, None)
    if "then" not in schema and "else" not in schema:
        schema.pop("if", None)
    for key in ("dependentRequired", "dependentSchemas", "dependencies"):
        if schema.get(key) == {}:
            del schema[key]
    return schema
