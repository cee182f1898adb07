"""Schemas that are rewritten mean what they meant: what is allowed, and what is not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from grammar_of import Enforced

from dure.chat.schema.rewrite import rewritten
from dure.errors import InvalidRequestError

TITLED = [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]
TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}


def tagged(value: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object whose `kind` is `value`."""
    named = {"kind": {"const": value}, **properties}
    return {"type": "object", "properties": named, "required": ["kind"]}


CASES: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "titled consts beside an enum": (
        {"type": "string", "enum": ["a", "b", "c"], "oneOf": TITLED},
        ["a", "b"],
        ["c"],
    ),
    "a value of two branches is of none": (
        {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
        ["a", "c"],
        ["b"],
    ),
    "true is not 1": ({"oneOf": [{"const": True}, {"const": 1}]}, [True, 1], [False, 0]),
    "consts that are referred to": (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"const": "b"}], "$defs": {"a": {"const": "a"}}},
        ["a", "b"],
        ["c"],
    ),
    "one branch": ({"oneOf": [TEXT], "maxLength": 1}, ["a"], ["aa", 1]),
    "types that differ": ({"oneOf": [TEXT, {"type": "null"}, WHOLE]}, ["a", None, 1], [[], 1.5]),
    "tags without a type": (
        {"oneOf": [tagged("a", x=WHOLE), {"$ref": "#/definitions/b"}]}
        | {"definitions": {"b": tagged("b", y=TEXT)}},
        [{"kind": "a", "x": 1}, {"kind": "b", "y": "z"}],
        [{"kind": "a", "x": "z"}, {"kind": "c"}],
    ),
    "tags by allOf": (
        {"oneOf": [{"allOf": [tagged("a"), {"properties": {"x": WHOLE}}]}, tagged("b")]},
        [{"kind": "a", "x": 1}, {"kind": "b"}],
        [{"kind": "a", "x": "z"}],
    ),
    "closed objects": (
        {
            "oneOf": [
                {"properties": {name: WHOLE}, "required": [name], "additionalProperties": False}
                | {"type": "object"}
                for name in "ab"
            ]
        },
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}, {}],
    ),
    "exactly one of two names": (
        {
            "type": "object",
            "properties": {"a": WHOLE, "b": WHOLE, "c": WHOLE},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1, "c": 2}],
        [{"a": 1, "b": 1}, {}, {"c": 1}],
    ),
    "oneOf beside anyOf": (
        {"anyOf": [{"maxLength": 2}, {"type": "null"}], "oneOf": [TEXT, {"type": "null"}]},
        ["ab", None],
        ["abc"],
    ),
    "names of a list": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": WHOLE},
        [{}, {"a": 1}, {"a": 1, "b": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    "names of a list and properties": (
        {"propertyNames": {"enum": ["a", "b"]}, "properties": {"a": TEXT, "z": TEXT}},
        [{"a": "x", "b": 1}],
        [{"z": "x"}, {"a": 1}],
    ),
    "names of a pattern": (
        {"type": "object", "propertyNames": {"pattern": "^x-"}, "additionalProperties": WHOLE},
        [{"x-a": 1}],
        [{"a": 1}, {"x-a": "b"}],
    ),
    "names of a length": (
        {"propertyNames": {"minLength": 2, "maxLength": 3}, "properties": {"ab": TEXT, "a": TEXT}},
        [{"ab": "x", "é\n": 1}],
        [{"a": "x"}, {"abcd": 1}, {"ab": 1}],
    ),
    "names of a length in a closed object": (
        {
            "type": "object",
            "properties": {"ab": TEXT, "abc": TEXT},
            "propertyNames": {"maxLength": 2},
            "additionalProperties": False,
        },
        [{"ab": "x"}],
        [{"abc": "x"}, {"c": "x"}],
    ),
    "any name": ({"propertyNames": True, "type": "object"}, [{"a": 1}], [1]),
    "no name": ({"propertyNames": {"const": 1.5}, "type": "object"}, [{}], [{"a": 1}]),
    "patterns of one schema": (
        {"type": "object", "patternProperties": {"^a": WHOLE, "b$": WHOLE}},
        [{"ab": 1, "b": 2}],
        [{"ab": "x"}, {"c": 1}],
    ),
    "patterns beside free names": (
        {"type": "object", "patternProperties": {"^a": WHOLE}, "additionalProperties": TEXT},
        [{"a": 1, "b": "x"}],
        [{"a": "x"}, {"b": 1}],
    ),
    "patterns within allOf leave the other names": (
        {"allOf": [{"patternProperties": {"^a": WHOLE}}, {"properties": {"b": TEXT}}]},
        [{"b": "x"}],
        [{"b": 1}],
    ),
    "a format that nobody knows": ({"type": "string", "format": "colour"}, ["x"], [1]),
    "a format of numbers": ({"type": "integer", "format": "int64"}, [1], ["x"]),
    "a format beside a pattern": (
        {"type": "string", "format": "uuid4", "pattern": "^a"},
        ["a2345678-1234-4234-9234-123456789abc"],
        ["12345678-1234-4234-9234-123456789abc"],
    ),
    "a tuple of draft 7": (
        {"type": "array", "items": [WHOLE, TEXT], "additionalItems": False},
        [[1, "a"], [1]],
        [["a"], [1, "a", 2]],
    ),
    "bounds of draft 4": (
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 3}
        | {"exclusiveMaximum": False},
        [2, 3],
        [1, 4],
    ),
    "counts with a point": ({"type": "string", "minLength": 1.0, "maxLength": 2.0}, ["a"], [""]),
    "unevaluated is additional": (
        {"type": "object", "properties": {"a": WHOLE}, "unevaluatedProperties": False},
        [{"a": 1}],
        [{"b": 1}],
    ),
    "then without if says nothing": ({"type": "string", "then": {"maxLength": 1}}, ["aa"], [1]),
    "an anchor": (
        {
            "items": {"$ref": "#whole"},
            "type": "array",
            "$defs": {"w": {"$anchor": "whole", **WHOLE}},
        },
        [[1]],
        [["a"]],
    ),
    "an id": (
        {
            "$id": "https://example.org/root.json",
            "type": "array",
            "items": {"$ref": "whole.json"},
            "$defs": {
                "w": {
                    "$id": "https://example.org/whole.json",
                    "anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}],
                    "$defs": {"n": WHOLE},
                },
                "n": TEXT,
            },
        },
        [[1, None]],
        [["a"]],
    ),
    "a pointer into properties": (
        {"type": "object", "properties": {"a/b": WHOLE, "c": {"$ref": "#/properties/a~1b"}}},
        [{"c": 1}],
        [{"c": "x"}],
    ),
    "a tree": (
        {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        [[], [[], [[]]]],
        [[1], [[], [], []]],
    ),
    "a definition named as a keyword": (
        {"$ref": "#/$defs/properties", "$defs": {"properties": {"enum": [1]}}},
        [1],
        [2],
    ),
    "true": (True, ["a", 1, None, {"a": [1]}], []),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", CASES)
def test_a_rewritten_schema_means_the_same(enforced: Callable[..., Enforced], name: str) -> None:
    schema, right, wrong = CASES[name]
    grammar = enforced(schema)
    for value in right:
        assert grammar.allows(value), value
    for value in wrong:
        assert not grammar.allows(value), value


def test_unique_items_are_left_to_the_model_and_named() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    assert rewritten(schema, "It").unenforced == ('"uniqueItems" at tags',)
    one = {"type": "array", "maxItems": 1, "uniqueItems": True}
    assert rewritten(one, "It").unenforced == ()


def test_values_that_stand_for_many_names_are_written_once() -> None:
    value = {"type": "string", "enum": [f"value {i}" for i in range(100)]}
    names = {"enum": [f"name {i}" for i in range(200)]}
    made = rewritten({"propertyNames": names, "additionalProperties": value}, "It").schema
    assert len(json.dumps(made)) < 20_000


class Drawn:
    """Draws schemas of every keyword, nested, with references."""

    names = ("a", "b", "ab", "c")
    patterns = ("^a", "b$", "^[a-c]+$", "^x-", "^.{1,2}$")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self) -> Any:
        values = [None, True, 0, 1, 2, "a", "b", "ab", [], [1], {}, {"a": 1}, {"a": "b"}]
        return self._random.choice(values)

    def whole(self) -> dict[str, Any]:
        made = self.schema(3)
        definitions = {"X": self.schema(2), "Y": self.schema(1)}
        return {**made, "$defs": definitions}

    def schema(self, depth: int) -> dict[str, Any]:
        kinds = [self._leaf, self._object, self._object, self._array, self._choice]
        return self._leaf(0) if depth == 0 else self._random.choice(kinds)(depth)

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _leaf(self, _: int) -> dict[str, Any]:
        low = self._random.randint(0, 2)
        values = [self.value() for _ in range(3)]
        leaves: list[dict[str, Any]] = [
            *({"type": "string"}, {"type": "integer"}, {"type": "null"}, {}),
            *({"const": values[0]}, {"enum": values}, {"type": ["string", "null"]}),
            {"type": "string", "pattern": self._random.choice(self.patterns)},
            {"type": "string", "minLength": low, "maxLength": low + 2, "format": "path"},
            {"type": "integer", "minimum": low, "exclusiveMaximum": low + 3},
            *({"$ref": "#/$defs/X"}, {"$ref": "#/$defs/Y"}),
        ]
        return self._random.choice(leaves)

    def _object(self, depth: int) -> dict[str, Any]:
        pick = self._random.sample
        made: dict[str, Any] = {"type": "object"}
        made["properties"] = {name: self.schema(depth - 1) for name in pick(self.names, 2)}
        if self._often(0.5):
            made["required"] = pick(self.names, self._random.randint(0, 2))
        if self._often(0.5):
            made["additionalProperties"] = self._random.choice([False, self.schema(depth - 1)])
        if self._often(0.2):
            made["patternProperties"] = {p: self.schema(depth - 1) for p in pick(self.patterns, 2)}
        if self._often(0.2):
            lists: list[Any] = [{"enum": pick(self.names, 2)}, {"maxLength": 1}, {"const": "a"}]
            made["propertyNames"] = self._random.choice(lists)
        if self._often(0.2):
            made["oneOf"] = [{"required": [name]} for name in pick(self.names, 2)]
        return made

    def _array(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array", "items": self.schema(depth - 1)}
        made["maxItems"] = self._random.randint(0, 3)
        if self._often(0.5):
            made["prefixItems"] = [self.schema(depth - 1)]
        if self._often(0.5):
            made["minItems"] = self._random.randint(0, 2)
        return made

    def _choice(self, depth: int) -> dict[str, Any]:
        key = self._random.choice(["oneOf", "oneOf", "anyOf", "allOf"])
        if self._often(0.3):
            return {"oneOf": [{"const": self.value()} for _ in range(3)], "enum": [0, 1, "a", {}]}
        return {key: [self.schema(depth - 1) for _ in range(self._random.randint(1, 3))]}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_of_noise_is_valid_by_another_implementation(
    enforced: Callable[..., Enforced], seed: int
) -> None:
    drawn = Drawn(seed)
    walked = 0
    for _ in range(40):
        schema = drawn.whole()
        try:
            grammar = enforced(schema)
        except InvalidRequestError as error:
            assert "\n" not in error.message
            continue
        validator = jsonschema_rs.Draft202012Validator(schema)
        for again in range(2):
            text = grammar.walk(again)  # fails where a grammar has no way on
            if text is not None and "e" not in text.replace("true", "").replace("false", ""):
                walked += 1
                assert validator.is_valid(json.loads(text)), (schema, text)
    assert walked >= 10
