"""Looks for numbers in a grammar that llguidance cannot take: it would end the whole process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dure.errors import InvalidRequestError

LEAST_NUMBER = -(2.0**63)
"""Numbers of a schema lie above it. llguidance up to 1.9.1 takes an integer of a const or an enum
for one of 64 bits, and recurses without an end for the lowest of those."""

_SCHEMA = re.compile(r"%json\s*")


def check_numbers(grammar: str, what: str) -> None:
    """Raise InvalidRequestError if a JSON schema in a Lark text has a number that is too low."""
    decoder = json.JSONDecoder(object_pairs_hook=_members)
    for found in _SCHEMA.finditer(grammar):
        try:
            schema, _ = decoder.raw_decode(grammar, found.end())
        except (ValueError, RecursionError):
            continue  # no schema: the grammar's compiler says so
        if any(_is_too_low(number) for number in _numbers(schema)):
            raise InvalidRequestError(
                f"{what} has a number of {LEAST_NUMBER:.0f} or below, which cannot be enforced.",
                hint="leave it out of const and enum",
            )


def _members(pairs: list[tuple[str, Any]]) -> list[Any]:
    """Keep the values of an object, those of a key that is there twice too."""
    return [value for _, value in pairs]


def _numbers(value: Any) -> Iterator[float | int]:
    """Yield the numbers in what `_members` made of JSON."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, (int, float)):
            yield each


def _is_too_low(number: float) -> bool:
    try:
        return float(number) <= LEAST_NUMBER  # rounded: llguidance reads it so, too
    except OverflowError:
        return number < 0
