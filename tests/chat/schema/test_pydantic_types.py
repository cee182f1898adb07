"""Fields as people declare them with pydantic: each is enforced, and its answers validate."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional
from uuid import UUID

import pytest
from grammar_of import Enforced
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FilePath,
    HttpUrl,
    IPvAnyAddress,
    Json,
    PositiveInt,
    PostgresDsn,
    RootModel,
    SecretBytes,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    conint,
    conlist,
    conset,
    constr,
)
from typing_extensions import TypedDict


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: str


class Movie(TypedDict, total=False):
    name: str
    year: int


@dataclass
class Pair:
    a: int
    b: Colour


class Node(BaseModel):
    value: int
    next: Optional[Node] = None  # noqa: UP045 - as people write it


class Tree(BaseModel):
    children: list[Tree]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Owner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Tags(RootModel[set[Literal["a", "b", "c"]]]):
    pass


class Deep(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tags: frozenset[str] = frozenset()
    where: Path
    per: dict[Colour, set[Level]]
    secret: SecretStr | None = None


Word = Annotated[str, StringConstraints(pattern="^[a-z]+$", min_length=2, max_length=4)]
Short = Annotated[str, StringConstraints(max_length=3)]
U = "12345678-1234-4234-9234-123456789abc"

# What it is, values that are of it, and values that are not. A third list, not empty, says why a
# text of noise may be of the schema and still not validate: pydantic's schema says less than it
# checks. Such a type is only shown the values.
CASES: list[tuple[Any, list[Any], list[Any], str]] = [
    (set[int], [[], [1, 2]], [{}, ["a"]], ""),
    (frozenset[str], [[], ["a", "b"]], [[1]], ""),
    (set[Colour], [["red", "blue"]], [["green"]], ""),
    (conset(int, max_length=2), [[1, 2]], [[1, 2, 3]], ""),
    (Path, ["/tmp/x", ""], [1], ""),
    (SecretStr, ["hunter2"], [None], ""),
    (SecretBytes, ["hunter2"], [None], ""),
    (bytes, ["abc"], [1], ""),
    (Base64Bytes, ["aGk=", ""], ["a", "a?=="], ""),
    (dict[Literal["a", "b"], int], [{}, {"b": 1}, {"a": 1, "b": 2}], [{"c": 1}, {"a": "x"}], ""),
    (dict[Colour, int], [{"red": 1}], [{"green": 1}], ""),
    (dict[Level, str], [{"1": "y"}, {}], [{"3": "y"}, {"1": 2}], ""),
    (dict[Word, int], [{"ab": 1}], [{"a": 1}, {"abcde": 1}, {"AB": 1}], ""),
    (dict[Short, int], [{"": 1}, {"abc": 1}], [{"abcd": 1}], ""),
    (dict[UUID, int], [{U: 1}], [{"x": 1}], ""),
    (dict[date, int], [{"2024-02-03": 1}], [{"x": 1}], "no 30 February"),
    (dict[str, int], [{"x": 1}], [{"x": "y"}], ""),
    (dict[str, Any], [{"x": [None]}], [1], ""),
    (Decimal, [1.5, "1.5"], [True, None], "any text is allowed"),
    (datetime, ["2024-02-03T04:05:06Z"], ["2024-02-03"], "no 30 February"),
    (AwareDatetime, ["2024-02-03T04:05:06+01:00"], ["now"], "no 30 February"),
    (date, ["2024-02-03"], ["3.2.2024"], "no year 0"),
    (time, ["04:05:06Z"], ["4 pm"], "no leap seconds"),
    (timedelta, ["PT1H", "P1DT2S"], ["1 h"], "no more than 999999999 days"),
    (UUID, [U], ["x", 7], ""),
    (UUID4, [U], [U.replace("-4", "-1")], ""),
    (IPv4Address, ["127.0.0.1"], ["256.0.0.1"], ""),
    (IPv6Address, ["::1"], ["127.0.0.1"], ""),
    (IPv4Network, ["10.0.0.0/8", "10.0.0.1"], ["10.0.0.0/33"], "host bits must be 0"),
    (IPv6Network, ["fe80::/10"], ["10.0.0.0/8"], "host bits must be 0"),
    (IPv4Interface, ["10.0.0.1/8"], ["::1"], ""),
    (IPv6Interface, ["fe80::1/64"], ["10.0.0.1"], ""),
    (IPvAnyAddress, ["::1", "10.0.0.1"], ["x"], ""),
    (AnyUrl, ["https://a.example/b?c"], ["a b"], "hosts are checked"),
    (HttpUrl, ["https://a.example/"], [7], "the schema leaves the scheme open"),
    (PostgresDsn, ["postgres://u:p@h:5432/d"], [7, ""], "any text is allowed"),
    (FilePath, ["/etc/hostname"], [7], "the file must be there"),
    (re.Pattern, ["a+"], [7], "any text is allowed"),
    (tuple[int, str], [[1, "a"]], [[1], ["a", 1], [1, "a", 2]], ""),
    (tuple[int, ...], [[], [1, 2]], [["a"]], ""),
    (Point, [[1, "a"]], [[1], ["a", "a"]], ""),
    (Movie, [{}, {"name": "x", "year": 1}], [{"year": "x"}], ""),
    (Pair, [{"a": 1, "b": "red"}], [{"a": 1}, {"a": 1, "b": "green"}], ""),
    (Node, [{"value": 1}, {"value": 1, "next": {"value": 2, "next": None}}], [{}], ""),
    (Tree, [{"children": []}, {"children": [{"children": []}]}], [{}, {"children": [1]}], ""),
    (Owner, [{"pet": {"kind": "dog", "name": "x"}}], [{"pet": {"kind": "dog", "lives": 1}}], ""),
    (Cat | Dog, [{"kind": "cat", "lives": 9}], [{"kind": "cow"}], ""),
    (Tags, [["a"], []], [["d"]], ""),
    (Deep, [{"where": "/", "per": {"red": [1]}}], [{"where": "/", "per": {"green": [1]}}], ""),
    (constr(pattern="^[A-Z]{2}$"), ["AB"], ["A", "ab"], ""),
    (Word, ["abc"], ["a", "abcde"], ""),
    (conint(gt=1, lt=5), [2, 4], [1, 5, 2.5], ""),
    (conint(multiple_of=5), [0, 15], [3], ""),
    (Annotated[float, Field(ge=0.5, le=1.5)], [0.5, 1.25], [1.6], ""),
    (conlist(int, min_length=1, max_length=2), [[1], [1, 2]], [[], [1, 2, 3]], ""),
    (Optional[int], [1, None], ["x"], ""),  # noqa: UP045
    (int | str | None, [1, "x", None], [[], 1.5], ""),
    (Colour, ["red"], ["RED"], ""),
    (Level, [1, 2], [3, "1"], ""),
    (Literal["a", 1, None, True], ["a", 1, None, True], ["b", 2, False], ""),
    (PositiveInt, [1], [0], ""),
    (ByteSize, [1024], [-1], ""),
    (Json[int], ["7"], [7], "any text is allowed"),
    (deque[int], [[1]], [["a"]], ""),
    (Sequence[int], [[1]], [{}], ""),
    (Counter[str], [{"a": 1}], [{"a": "b"}], ""),
    (defaultdict[str, list[int]], [{"a": [1]}], [{"a": 1}], ""),
    (OrderedDict[str, bool], [{"a": True}], [{"a": 1}], ""),
    (list[dict[Literal["k"], set[Path]]], [[{"k": ["/"]}], []], [[{"j": []}]], ""),
    (bool, [True], [1], ""),
    (None, [None], [0], ""),
]
NAMES = [re.sub(r"[^\w\[\], |.]", "", str(kind))[-40:] for kind, *_ in CASES]


@pytest.mark.parametrize(("kind", "right", "wrong", "_reason"), CASES, ids=NAMES)
def test_what_a_field_takes_is_allowed_and_nothing_else(
    enforced: Callable[..., Enforced], kind: Any, right: list[Any], wrong: list[Any], _reason: str
) -> None:
    grammar = enforced(TypeAdapter(kind).json_schema())
    for value in right:
        assert grammar.allows(value), value
    for value in wrong:
        assert not grammar.allows(value), value


@pytest.mark.parametrize(
    "kind", [kind for kind, *_, reason in CASES if not reason], ids=lambda kind: str(kind)[-40:]
)
def test_an_answer_of_noise_validates(enforced: Callable[..., Enforced], kind: Any) -> None:
    adapter = TypeAdapter(kind)
    grammar = enforced(adapter.json_schema())
    answers = [text for seed in range(6) if (text := grammar.walk(seed)) is not None]
    assert answers
    for text in answers:
        try:
            adapter.validate_json(text)
        except ValidationError as error:
            pytest.fail(f"{text} does not validate: {error}")


def test_a_model_of_all_of_them_is_one_schema(enforced: Callable[..., Enforced]) -> None:
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for i, (kind, *_) in enumerate(CASES):
        schema = TypeAdapter(kind).json_schema()
        definitions |= schema.pop("$defs", {})
        properties[f"field_{i}"] = schema
    whole = {"type": "object", "properties": properties, "$defs": definitions}
    assert enforced(whole).allows({"field_0": [1], "field_9": {"a": 1}})
