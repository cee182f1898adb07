"""Prices: what tokens, electricity and an hour of the machine cost, and what that makes of answers.

Tokens are priced as OpenAI, OpenRouter and LiteLLM do it: input, cached input and output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dure.calls import explained_class
from dure.errors import InvalidRequestError
from dure.metering.cost import NOTHING, Cost

MAX_PRICE = 1e9
_MILLION = 1e6
_JOULES_OF_A_KWH = 3.6e6
_FORM = "input=0.10,cached_input=0.02,output=0.40,kwh=0.30,currency=EUR"


@explained_class
@dataclass(frozen=True)
class Prices:
    """What is charged. All that is set is added up: of most servers it is tokens, or kwh and hour.

    Joules that nobody knows cost nothing.
    """

    input: float = 0.0  # a million tokens of prompts
    cached_input: float | None = None  # a million of them that were in the cache; None: as input
    output: float = 0.0  # a million tokens of answers, those of reasoning too
    kwh: float = 0.0  # a kilowatt-hour of what answers took
    hour: float = 0.0  # an hour in which the machine computes
    currency: str = "USD"  # three capital letters

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "currency":
                if not isinstance(value, str) or not _is_currency(value):
                    raise InvalidRequestError(
                        f"A currency is three capital letters, not {value!r:.40}.", hint="EUR"
                    )
            elif not (value is None and each.name == "cached_input") and not _is_price(value):
                raise InvalidRequestError(
                    f"The price {each.name} must be a number from 0 to {MAX_PRICE:,.0f}, "
                    f"but is {value!r:.40}.",
                    hint=_FORM,
                )

    def money(self, *, prompt: int, cached: int, output: int, cost: Cost = NOTHING) -> float:
        """Compute what an answer costs.

        prompt: its tokens, `cached` of them from the cache. output: tokens of the answer. cost:
        what computing it took. Returns an amount in `currency`. Raises nothing.
        """
        of_cached = self.input if self.cached_input is None else self.cached_input
        tokens = (prompt - cached) * self.input + cached * of_cached + output * self.output
        energy = (cost.joules or 0.0) / _JOULES_OF_A_KWH * self.kwh
        return tokens / _MILLION + energy + cost.machine_s / 3600 * self.hour

    @classmethod
    def parse(cls, text: str) -> Prices:
        """Read "NAME=VALUE,NAME=VALUE", the names being those of the fields.

        Raises InvalidRequestError.
        """
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (each.strip() for each in part.partition("="))
            if not equals or name in given:
                raise InvalidRequestError(f"Prices are NAME=VALUE, not {part!r:.60}.", hint=_FORM)
            given[name] = value if name == "currency" else _number(name, value)
        return cls.of(given)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Prices:
        """Make prices of a mapping, such as JSON's. Raises InvalidRequestError."""
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise InvalidRequestError(
                    f"{name!r:.60} is no price.", hint=f"there are {', '.join(known)}"
                )
        return cls(**given)


def _is_price(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= MAX_PRICE  # which no NaN is


def _is_currency(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isalpha() and text.isupper()


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError(
            f"The price {name} is a number, not {text!r:.40}.", hint=_FORM
        ) from None
