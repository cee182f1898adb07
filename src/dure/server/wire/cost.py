"""What an answer cost, as the bodies and the headers of every API say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dure.chat.usage import Usage
from dure.metering.cost import NOTHING

if TYPE_CHECKING:
    from starlette.responses import Response

    from dure.metering.prices import Prices
    from dure.server.serving.generation import Generation


def cost_fields(usage: Usage, prices: Prices | None) -> dict[str, Any]:
    """Write the fields that a `usage` has besides its tokens.

    `cost` is OpenRouter's name for the money; it is left out where the operator sets no price.
    """
    details = {
        "processor_seconds": round(usage.cost.cpu_s, 6),
        "machine_seconds": round(usage.cost.machine_s, 6),
        **energy_fields(usage),
    }
    if prices is None:
        return {} if usage.cost == NOTHING else {"cost_details": details}
    return {
        "cost": usage.money(prices),
        "cost_details": {"currency": prices.currency, **details},
    }


def energy_fields(usage: Usage) -> dict[str, Any]:
    """Write the joules, null if nobody knows them, and how they were found."""
    joules = usage.cost.joules
    return {
        "joules": None if joules is None else round(joules, 6),
        "energy": usage.cost.energy_source,
    }


def add_headers(response: Response, generations: Iterable[Generation]) -> None:
    """Add what whole answers cost to the headers of the response that they became."""
    each = list(generations)
    done = [one.usage for one in each if one.usage is not None]
    if not done:
        return
    usage, prices = Usage.of_prompts(done), each[0].prices
    response.headers["x-dure-processor-seconds"] = f"{usage.cost.cpu_s:.6f}"
    if usage.cost.joules is not None:
        response.headers["x-dure-joules"] = f"{usage.cost.joules:.6f}"
    response.headers["x-dure-energy"] = usage.cost.energy_source
    if prices is not None:
        response.headers["x-dure-cost"] = f"{usage.money(prices):.9f}"
        response.headers["x-dure-currency"] = prices.currency
