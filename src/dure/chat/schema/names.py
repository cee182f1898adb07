"""Rewrites what a schema says of the names of an object's properties.

Grammars know `properties`, disjoint `patternProperties` and `additionalProperties`. What cannot be
said with these is left as it is, and whoever enforces the schema refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dure.chat.schema.choices import listed_values
from dure.chat.schema.formats import FORMATS
from dure.chat.schema.keywords import IN_PLACE, KEYWORDS
from dure.chat.schema.references import Document, Node

_ATOM = r"\[(?:[^\]\\]|\\.)+\]|\\[dDwWsS]|\\[^A-Za-z0-9]|[^\\\[\](){}.*+?|^$]|\."
_REPEATED = re.compile(rf"\^({_ATOM})([*+?]|\{{([0-9]{{1,6}})(,([0-9]{{0,6}}))?\}})?\$")


def with_plain_names(
    schema: dict[str, Any], node: Node, document: Document, *, alone: bool
) -> dict[str, Any]:
    """Return `schema`, that of the node, without `propertyNames` and with disjoint patterns.

    alone: nothing but this schema says which properties the object has. Then names that match none
    of its patterns are left out, unless it allows them by name.
    """
    if schema.get("unevaluatedProperties") is not None and not schema.keys() & IN_PLACE:
        evaluated = schema.pop("unevaluatedProperties")
        schema.setdefault("additionalProperties", evaluated)
    schema = _merged_patterns(schema)
    is_alone = alone and not schema.keys() & IN_PLACE
    if is_alone and schema.get("patternProperties"):
        schema.setdefault("additionalProperties", False)
    if "propertyNames" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    names = node.inner(schema["propertyNames"])
    values = listed_values(names, document)
    if values is not None:
        # pydantic lists the numbers of an IntEnum, which stand as texts in JSON.
        numbers = bool(values) and all(type(value) is int for value in values)
        texts = [str(value) for value in values if numbers or isinstance(value, str)]
        listed = list(dict.fromkeys(texts))
        return _with_listed(rest, listed) or schema
    rule = _rule(document.parts(names))
    if rule is None:
        return schema
    return rest if rule == _Rule() else _with_rule(rest, rule) or schema


def _merged_patterns(schema: dict[str, Any]) -> dict[str, Any]:
    """Join patterns that demand the same of a value, whose names may then overlap."""
    patterns = schema.get("patternProperties")
    if not isinstance(patterns, Mapping) or len(patterns) < 2:
        return schema
    by_value: dict[str, list[str]] = {}
    for pattern, value in patterns.items():
        by_value.setdefault(json.dumps(value, sort_keys=True), []).append(pattern)
    joined = {
        same[0] if len(same) == 1 else "|".join(f"(?:{each})" for each in same): patterns[same[0]]
        for same in by_value.values()
    }
    return {**schema, "patternProperties": joined}


def _with_listed(schema: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    """Return the schema of objects that have no names but these."""
    own = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    if schema.get("patternProperties") or not isinstance(own, Mapping):
        return None
    kept = {name: value if name in names else False for name, value in own.items()}
    made = {**kept, **{name: others for name in names if name not in own}}
    return {**schema, "properties": made, "additionalProperties": False}


@dataclass(frozen=True)
class _Rule:
    """What a name must match."""

    patterns: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    @property
    def has_length(self) -> bool:
        return self.least > 0 or self.most is not None


def _rule(parts: list[Node]) -> _Rule | None:
    """Return what some schemas demand of a text; None if they say more than we can write."""
    patterns: list[str] = []
    least, most = 0, None
    for part in parts:
        schema = part.schema
        if schema is True:
            continue
        if not isinstance(schema, Mapping):
            return None
        known = {"type", "pattern", "format", "minLength", "maxLength", "$ref", "allOf"}
        if schema.keys() & KEYWORDS - known or schema.get("type", "string") != "string":
            return None
        pattern, name = schema.get("pattern", ""), schema.get("format", "")
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if not isinstance(pattern, str) or not isinstance(name, str):
            return None
        if not isinstance(low, int) or not isinstance(high, int | None):
            return None
        patterns += [pattern] if pattern else []
        patterns += [f"^(?:{FORMATS[name]})$"] if name in FORMATS else []
        least = max(least, low)
        most = high if most is None else most if high is None else min(most, high)
    return _Rule(tuple(dict.fromkeys(patterns)), least, most)


def _with_rule(schema: dict[str, Any], rule: _Rule) -> dict[str, Any] | None:
    """Return the schema of objects whose names keep to a rule."""
    own, patterns = schema.get("properties") or {}, schema.get("patternProperties") or {}
    others = schema.get("additionalProperties", True)
    if not isinstance(own, Mapping) or not isinstance(patterns, Mapping):
        return None
    if own and rule.patterns:  # whether those names match is not ours to say
        return None
    if own and others not in (True, False, {}):  # a pattern would hold for those names, too
        return None
    kept = {
        name: value if rule.least <= len(name) <= (rule.most or len(name)) else False
        for name, value in own.items()
    }
    if others is False:
        found = {
            _limited((pattern, *rule.patterns), rule): patterns[pattern] for pattern in patterns
        }
    elif not patterns:
        found = {_limited(rule.patterns, rule): others}
    else:
        return None
    if None in found:
        return None
    return {
        **schema,
        **({"properties": kept} if own else {}),
        "patternProperties": found,
        "additionalProperties": False,
    }


def _limited(patterns: tuple[str, ...], rule: _Rule) -> str | None:
    """Return one expression of the names that match all patterns and have the rule's length."""
    distinct = tuple(dict.fromkeys(patterns))
    if len(distinct) > 1:
        return None
    most = "" if rule.most is None else rule.most
    if not distinct:
        return f"^(?s:.){{{rule.least},{most}}}$"
    if not rule.has_length:
        return distinct[0]
    found = _REPEATED.fullmatch(distinct[0])
    if found is None:
        return None
    low, high = _bounds(found)
    low = max(low, rule.least)
    if rule.most is not None:
        high = rule.most if high is None else min(high, rule.most)
    if high is not None and low > high:
        return None
    return f"^{found[1]}{{{low},{'' if high is None else high}}}$"


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """Return how often a repeated character may come: at least, and at most."""
    simple: dict[str | None, tuple[int, int | None]] = {
        None: (1, 1),
        "*": (0, None),
        "+": (1, None),
        "?": (0, 1),
    }
    if found[2] in simple:
        return simple[found[2]]
    low = int(found[3])
    return low, low if found[4] is None else int(found[5]) if found[5] else None
