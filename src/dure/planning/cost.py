"""What a million tokens will cost on a machine: joules, and money for power and hours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.metering.cost import Cost

if TYPE_CHECKING:
    from dure.metering.estimates import Watts
    from dure.metering.prices import Prices
    from dure.planning.speed import Speeds

MILLION = 1_000_000

PROMPT = 4096
"""Tokens of the prompt that tokens of input are priced by."""

DEPTH = 4096
"""Tokens that a stream holds while the tokens of its output are priced."""


@dataclass(frozen=True)
class TokenCost:
    """What a million tokens take while the machine does nothing else, and what that costs."""

    seconds: float
    joules: float | None  # None: nobody knows what the machine takes
    money: float | None  # in the prices' currency; None without a price of power or hours


@dataclass(frozen=True)
class TokenCosts:
    """What a million tokens cost: of prompts, and of answers by how many streams there are."""

    input: TokenCost
    output: dict[int, TokenCost]  # streams -> of all of them together
    busy_watts: float | None
    watts_from: str  # "watts" (named by the operator), "tdp", or "unknown"

    @property
    def energy_source(self) -> str:
        """How the joules are known, in the words of the meter."""
        return Cost(joules=self.input.joules, energy=(self.watts_from,)).energy_source


def token_costs(
    speeds: Speeds,
    *,
    prices: Prices | None = None,
    watts: Watts | None = None,
    streams: tuple[int, ...] = (1, 8, 32),
) -> TokenCosts:
    """Compute what a million tokens take and cost, as `dure serve` would meter them.

    prices: of which kwh and hour count, what is charged for tokens does not. watts: of the machine,
    as the operator names them; without, those of the machine's file. A machine that computes keeps
    all its cores busy, so it takes its busy watts; what it takes while it waits is not counted.
    """
    busy, source = speeds.machine.busy_watts, speeds.machine.watts_from
    if watts is not None:
        busy, source = watts.busy, "watts"
    if busy is None:
        source = "unknown"

    def cost(tokens_a_second: float) -> TokenCost:
        seconds = MILLION / tokens_a_second
        joules = None if busy is None else busy * seconds
        return TokenCost(seconds, joules, _money(prices, seconds, joules))

    return TokenCosts(
        input=cost(speeds.prefill_tps(min(PROMPT, speeds.work.context))),
        output={
            count: cost(speeds.decode_tps(count, min(DEPTH, speeds.work.context - 1)))
            for count in streams
        },
        busy_watts=busy,
        watts_from=source,
    )


def _money(prices: Prices | None, seconds: float, joules: float | None) -> float | None:
    """Return what so much power and time cost; None without a price, or with joules unknown."""
    if prices is None or not (prices.kwh or prices.hour) or (prices.kwh and joules is None):
        return None
    took = Cost(machine_s=seconds, joules=joules)
    return prices.money(prompt=0, cached=0, output=0, cost=took)
