"""Says what is wrong with a schema that no grammar can enforce: where, which keyword, and why."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dure.chat.schema.finite import endless
from dure.chat.schema.keywords import LISTS
from dure.chat.schema.rewrite import at, inside, rewritten
from dure.errors import InvalidRequestError

Cause = Callable[[str], str]
"""Returns why a grammar cannot be compiled, in its library's words; "" if it can."""

MAX_SECONDS = 0.5  # of the processor's time, to find the place
_UNKNOWN = re.compile(r'"([^"]+)"')
_QUOTED = re.compile(r"'(\w+)'")
_OVERLAP = re.compile(r"regexes /(.*)/ and /(.*)/ are")
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
        path, node = _Search(made.schema, cause).find(words)
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

    def find(self, words: str) -> tuple[str, dict[str, Any]]:
        """Return the path and the schema of the place that `words` are about."""
        path, node = "", self._schema
        while (deeper := self._deeper(path, node, words)) is not None:
            path, node = deeper
        return path, node

    def _deeper(
        self, path: str, node: dict[str, Any], words: str
    ) -> tuple[str, dict[str, Any]] | None:
        for inner_path, inner in self._inner(path, node):
            if time.thread_time() > self._until:
                return None
            whole = {**inner, "$defs": self._definitions}
            if self._cause(_grammar(whole)) == words:
                return inner_path, inner
        return None

    def _inner(self, path: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in self._seen:
            self._seen.add(reference)
            yield path, self._definitions[reference.rpartition("/")[2]]
        for each_path, each in children(path, node):
            if isinstance(each, dict):
                yield each_path, each


def children(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas within a rewritten one, with their paths."""
    for key in ("properties", "patternProperties"):
        named = node.get(key)
        if isinstance(named, dict):
            yield from ((inside(path, name), each) for name, each in named.items())
    for key in LISTS - {"prefixItems"}:
        listed = node.get(key)
        yield from ((path, each) for each in (listed if isinstance(listed, list) else ()))
    listed = node.get("prefixItems")
    for i, each in enumerate(listed if isinstance(listed, list) else ()):
        yield f"{path}[{i}]", each
    for key, name in (("items", "[]"), ("additionalProperties", ".*")):
        if key in node:
            yield f"{path}{name}", node[key]


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
    if first.startswith("regex parse error"):
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
    if first.startswith("Unsatisfiable schema"):
        return _explained_unsatisfiable(first, where)
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
        return f"something {where} is no schema", "a schema is an object, true or false"
    if "float range" in first:
        return f'"minimum" or "maximum" {where} is too large', "leave it out"
    return f"something {where} is malformed, or too complex", "make it simpler"


def _explained_regex(words: str, path: str, node: Mapping[str, Any]) -> tuple[str, str]:
    reason = words.rpartition("error: ")[2].strip().split("\n")[0].rstrip(".")
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


def _explained_unsatisfiable(first: str, where: str) -> tuple[str, str]:
    reason = first.removeprefix("Unsatisfiable schema: ")
    hint = "look for bounds, types or names that exclude each other"
    if found := re.fullmatch(r"required property '(.*)' is unsatisfiable", reason):
        return f'"required" {where} has {found[1][:60]!r}, which can have no value', hint
    if found := re.fullmatch(r"(\w+) \((\S+)\) is greater than (\w+) \((\S+)\)", reason):
        return f'"{found[1]}" {where} is {found[2]}, above "{found[3]}", {found[4]}', hint
    if reason == "incompatible types":
        return f'"type" {where} leaves no type that all parts of the schema allow', hint
    if reason.startswith("anyOf is empty"):
        return f'"enum" or "anyOf" {where} is empty', "list what is allowed"
    if reason.startswith("Regex is empty"):
        return f'"pattern" or "format" {where} leaves no text that all of them allow', hint
    return f"the schema {where} allows no value", hint


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _kind(first: str) -> str:
    """Return what a value must be, from words such as "Expected array for 'required'"."""
    found = re.match(r"Expected ([a-z ]+) for", first) or re.search(
        r"must be (.+?)(, got|$)", first
    )
    kind = found[1].replace("f64", "number") if found else "another value"
    return f"it is {'' if kind.startswith(('a ', 'an ', 'another')) else 'a '}{kind}"
