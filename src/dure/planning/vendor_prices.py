"""What vendors charge for the same model, or for the nearest of its makers: a dated table.

Every row of vendor_prices.json has the date of the price and the address where it stands. A model
that is near to none of them has no price: none is guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dure.errors import InvalidRequestError

YUAN_PER_DOLLAR = 7.0510
"""The central parity of 2024-09-24, as the China Foreign Exchange Trade System set it (Xinhua)."""
RATE_DATE = "2024-09-24"

CURRENCIES = ("USD", "CNY")
MOST_RATE = 1e6

_NEAR = 2.5  # a model of so many times the parameters, or of a part so small, is another class
_MAKERS = {
    "qwen": "qwen",
    "deepseek": "deepseek",
    "glm": "glm",
}


@dataclass(frozen=True)
class VendorPrice:
    """The list price of one model: of a million tokens in, of those in a cache, and out."""

    vendor: str
    model: str
    maker: str
    billions: float  # of parameters
    input: float
    cached_input: float | None  # None: as input
    output: float
    currency: str
    as_of: str  # the date of the price, ISO 8601
    source: str  # the address of the page

    def in_currency(self, currency: str, yuan_per_dollar: float = YUAN_PER_DOLLAR) -> VendorPrice:
        """Return the same price in US dollars or yuan. Raises InvalidRequestError for others."""
        check_currency(currency)
        check_rate(yuan_per_dollar)
        if currency == self.currency:
            return self
        factor = yuan_per_dollar if currency == "CNY" else 1 / yuan_per_dollar
        cached = None if self.cached_input is None else self.cached_input * factor
        return replace(
            self,
            input=self.input * factor,
            cached_input=cached,
            output=self.output * factor,
            currency=currency,
        )


def check_rate(yuan_per_dollar: float) -> None:
    """Raise InvalidRequestError unless dollars can be converted by this rate."""
    if not 0 < yuan_per_dollar <= MOST_RATE:
        raise InvalidRequestError(
            f"{yuan_per_dollar:g} yuan a dollar is no rate: it must be above 0, and at most "
            f"{MOST_RATE:,.0f}."
        )


def check_currency(currency: str) -> str:
    """Return a currency that prices can be shown in. Raises InvalidRequestError."""
    if currency not in CURRENCIES:
        raise InvalidRequestError(
            f"Vendors' prices are known in {' and '.join(CURRENCIES)}, not in {currency!r:.20}."
        )
    return currency


@lru_cache(maxsize=1)
def vendor_prices() -> Sequence[VendorPrice]:
    """Read the table that is shipped with the package."""
    path = Path(__file__).with_name("vendor_prices.json")
    return tuple(VendorPrice(**row) for row in json.loads(path.read_text(encoding="utf-8")))


def nearest_price(name: str, family: str, parameters: int) -> tuple[VendorPrice, bool] | None:
    """Return the price of a model and True, or that of its makers' nearest one and False.

    name: as the user gave it; family: its file in `models`. None if none is within two and a half
    times of its parameters.
    """
    words = _plain(name)
    own = _plain(name.rpartition("/")[2])
    for price in vendor_prices():
        # What stands before, other than the maker, is what was distilled into it or made of it.
        if re.match(rf"({price.maker}-)?{re.escape(_plain(price.model))}(-|$)", own):
            return price, True
    said = f"{words}-{_plain(family)}"
    makers = {maker for word, maker in _MAKERS.items() if word in said}
    distances = [
        (abs(math.log(parameters / 1e9 / price.billions)), price)
        for price in vendor_prices()
        if price.maker in makers and parameters > 0
    ]
    if not distances:
        return None
    distance, price = min(distances, key=lambda each: each[0])
    return (price, False) if distance <= math.log(_NEAR) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.casefold()).strip("-")
