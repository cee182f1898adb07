"""A schema that cannot be enforced is refused with the place, the keyword and the reason."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dure.chat.schema import finite
from dure.chat.schema.check import check, loosened
from dure.chat.schema.depth import MAX_SCHEMAS, deepest
from dure.chat.schema.rewrite import MAX_SCHEMA_BYTES
from dure.engine.grammar import cause_of_failure
from dure.errors import InvalidRequestError

WHAT = "The parameters of the tool 'find'"
OVERLAP = {"type": "object", "patternProperties": {"^a": {}, "b$": {"type": "string"}}}
ENDLESS = {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}

CASES: list[tuple[Any, str, str]] = [
    ({"not": {}}, '"not"', "not supported"),
    ({"if": {}, "then": {}}, '"if" and "then"', "not supported"),
    ({"contains": {"const": 1}}, '"contains"', "not supported"),
    ({"dependentRequired": {"a": ["b"]}}, '"dependentRequired"', "not supported"),
    ({"dependencies": {"a": ["b"]}}, '"dependencies"', "not supported"),
    ({"allOf": [{}], "unevaluatedProperties": False}, '"unevaluatedProperties"', "not supported"),
    ({"propertyNames": {"not": {}}}, '"propertyNames"', "not supported"),
    (
        {
            "properties": {"a": {"type": "null"}},
            "propertyNames": {"maxLength": 2},
            "additionalProperties": {"type": "string"},
        },
        '"propertyNames"',
        "not supported",
    ),
    ({"$dynamicRef": "#a"}, '"$dynamicRef"', "not supported"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, '"oneOf"', "several of its branches"),
    ({"oneOf": [{"type": "string"}, {"pattern": "a"}]}, '"oneOf"', "several of its branches"),
    (OVERLAP, '"patternProperties"', "'^a' and 'b$'"),
    ({"type": "object", "patternProperties": {"(": {}}}, '"patternProperties"', "'('"),
    ({"type": "string", "pattern": "(?=a)b"}, '"pattern"', "look-around"),
    ({"type": "string", "pattern": "(a"}, '"pattern"', "unclosed group"),
    ({"type": "string", "pattern": r"(a)\1"}, '"pattern"', "backreferences"),
    ({"type": "any"}, '"type"', "'any'"),
    ({"type": 7}, '"type"', "7"),
    ({"type": "string", "minLength": -1}, '"minLength"', "-1"),
    ({"type": "array", "maxItems": "2"}, '"maxItems"', '"2"'),
    ({"type": "number", "minimum": "1"}, '"minimum"', '"1"'),
    ({"type": "object", "required": "a"}, '"required"', '"a"'),
    ({"type": "object", "properties": []}, '"properties"', "[]"),
    ({"type": "object", "properties": {"a": 1}}, '"properties"', "no schema"),
    ({"type": "array", "items": 3}, '"items"', "no schema"),
    ({"additionalProperties": "no"}, '"additionalProperties"', "no schema"),
    ({"anyOf": {}}, '"anyOf"', "{}"),
    ({"enum": "a"}, '"enum"', '"a"'),
    ({"enum": []}, '"enum"', "empty"),
    ({"anyOf": []}, '"anyOf"', "empty"),
    ({"type": "number", "multipleOf": 0}, '"multipleOf"', "0"),
    ({"type": "integer", "minimum": 3, "maximum": 1}, '"minimum"', '3, above "maximum", 1'),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, '"type"', "no type"),
    ({"type": "string", "format": "date", "pattern": "^x"}, '"format"', "no text"),
    ({"$ref": "#/$defs/nowhere"}, '"$ref"', "'#/$defs/nowhere'"),
    ({"$ref": "https://example.org/x.json"}, '"$ref"', "'https://example.org/x.json'"),
    ({"$ref": "#nowhere"}, '"$ref"', "'#nowhere'"),
]


def refused(schema: Any, what: str = WHAT) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        check(schema, what, cause_of_failure)
    return caught.value


@pytest.mark.parametrize(("schema", "keyword", "reason"), CASES, ids=str)
@pytest.mark.parametrize("deep", ["at the top", "at where.list[].it", "at other[1]"])
def test_a_refusal_names_the_place_the_keyword_and_the_reason(
    schema: Any, keyword: str, reason: str, deep: str
) -> None:
    inner = {"type": "object", "properties": {"it": schema}, "required": ["it"]}
    whole = {
        "at the top": schema,
        "at where.list[].it": {
            "type": "object",
            "properties": {
                "before": {"type": "string", "format": "path"},
                "where": {
                    "type": "object",
                    "required": ["list"],
                    "properties": {
                        "list": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/it"}}
                    },
                },
            },
            "required": ["where"],
            "$defs": {"it": inner, "unused": {"not": {}}},
        },
        "at other[1]": {
            "type": "object",
            "properties": {
                "other": {"type": "array", "minItems": 2, "prefixItems": [{}, {"anyOf": [schema]}]}
            },
            "required": ["other"],
        },
    }[deep]
    error = refused(whole)
    assert error.message.startswith(f"{WHAT} cannot be enforced: ")
    assert error.message.endswith(".")
    assert deep in error.message
    assert keyword in error.message
    assert reason in error.message
    assert error.hint
    assert "\n" not in error.message + error.hint


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#/$defs/N", "$defs": {"N": ENDLESS}}, "at the top"),
        ({"type": "object", "properties": {"x": ENDLESS}, "$defs": {"N": ENDLESS}}, "at x.n"),
        (
            {
                "type": "array",
                "items": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/N"}]},
                "$defs": {"N": {"type": "array", "items": {"$ref": "#/$defs/N"}, "minItems": 1}},
            },
            "at []",
        ),
        ({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "x"),
        ({"$ref": "#"}, "at the top"),
    ],
)
def test_a_value_without_an_end_is_refused_before_an_answer_begins(schema: Any, place: str) -> None:
    message = refused(schema).message
    assert place in message
    assert "no end" in message or "back to itself" in message


def test_a_circle_that_can_end_is_taken() -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/T"}, "right": {"$ref": "#/$defs/T"}},
        "required": ["left", "right"],
    }
    definitions = {"T": {"anyOf": [tree, {"type": "null"}]}}
    assert check({"$ref": "#/$defs/T", "$defs": definitions}, WHAT, cause_of_failure) == ()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (7, "must be a JSON object"),
        ([], "must be a JSON object"),
        (False, "allows no value"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, f"the limit is {MAX_SCHEMA_BYTES:,}"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, words: str) -> None:
    assert words in refused(schema).message


def test_a_chain_of_definitions_is_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 250
    definitions = {f"d{i}": of_next(f"d{i + 1}") for i in range(count)}
    definitions[f"d{count}"] = of_next("d0")
    steps = 0
    ends = finite._ends

    def counted(node: Any, ending: set[str]) -> bool:
        nonlocal steps
        steps += 1
        return ends(node, ending)

    monkeypatch.setattr(finite, "_ends", counted)
    assert "no end" in refused({"$ref": "#/$defs/d0", "$defs": definitions}).message
    definitions[f"d{count}"] = {"type": "null"}
    assert check({"$ref": "#/$defs/d0", "$defs": definitions}, WHAT, cause_of_failure) == ()
    assert steps < 20 * count


def test_definitions_may_lead_into_each_other_only_so_deep() -> None:
    # Half as deep as what the library's own recursion takes.
    count = MAX_SCHEMAS // 2 + 1
    definitions = {f"d{i}": of_next(f"d{i + 1}") for i in range(count)}
    definitions[f"d{count}"] = {"type": "null"}
    message = refused({"$ref": "#/$defs/d0", "$defs": definitions}).message
    assert f"the limit is {MAX_SCHEMAS}" in message


def test_many_definitions_side_by_side_are_not_deep() -> None:
    definitions = {f"d{i}": {"type": "integer", "minimum": i} for i in range(600)}
    choices = [{"$ref": f"#/$defs/{name}"} for name in definitions]
    assert check({"anyOf": choices, "$defs": definitions}, WHAT, cause_of_failure) == ()


@pytest.mark.parametrize("seed", range(50))
def test_no_way_through_definitions_is_deeper_than_the_bound(seed: int) -> None:
    drawn = random.Random(seed)
    names = [str(i) for i in range(drawn.randint(1, 6))]
    weights = {name: drawn.randint(1, 5) for name in names}
    uses = {name: set(drawn.sample(names, drawn.randint(0, min(2, len(names))))) for name in names}

    def longest(name: str, seen: frozenset[str]) -> int:
        further = [longest(each, seen | {each}) for each in uses[name] - seen]
        return weights[name] + max(further, default=0)

    bound = deepest(weights, uses)
    assert max(longest(name, frozenset({name})) for name in names) <= bound <= sum(weights.values())


def of_next(name: str) -> dict[str, Any]:
    """The schema of an object that must hold another, of the definition `name`."""
    return {"type": "object", "properties": {"n": {"$ref": f"#/$defs/{name}"}}, "required": ["n"]}


def test_what_cannot_be_enforced_is_loosened_alone() -> None:
    schema = {
        "type": "object",
        "properties": {"good": {"$ref": "#/$defs/g"}, "bad": {"not": {}}},
        "not": {},
        "$defs": {"g": {"type": "integer"}},
    }
    made = loosened(schema, cause_of_failure)
    assert made["properties"] == {"good": {"$ref": "#/$defs/g"}, "bad": {}}
    assert check(made, WHAT, cause_of_failure) == ()
