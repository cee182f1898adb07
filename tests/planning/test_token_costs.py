"""What a million tokens cost, of a machine whose speed is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dure.metering.estimates import Watts
from dure.metering.prices import Prices
from dure.planning.cost import TokenCosts, token_costs
from dure.planning.speed import Speeds


def costs(busy: float | None = 100.0, source: str = "tdp", **how: Any) -> TokenCosts:
    """Of prompts at 100 tokens a second; answers at 10 a second for each stream."""
    speeds = SimpleNamespace(
        machine=SimpleNamespace(busy_watts=busy, watts_from=source),
        work=SimpleNamespace(context=32768),
        prefill_tps=lambda tokens: 100.0 if tokens == 4096 else 0.0,
        decode_tps=lambda streams, depth: 10.0 * streams if depth == 4096 else 0.0,
    )
    return token_costs(cast("Speeds", speeds), **how)


def test_joules_are_busy_watts_for_the_time_that_tokens_take() -> None:
    found = costs()
    assert found.input.seconds == pytest.approx(1e4)
    assert found.input.joules == pytest.approx(1e6)
    assert found.output[1].joules == pytest.approx(1e7)
    assert found.output[8].joules == pytest.approx(1e7 / 8)
    assert found.energy_source == "estimated (tdp)"


def test_money_is_power_and_hours_and_not_what_is_charged_for_tokens() -> None:
    prices = Prices(input=1.0, output=2.0, kwh=0.36, hour=0.36)
    assert costs(prices=prices).input.money == pytest.approx(1e6 / 3.6e6 * 0.36 + 1e4 / 3600 * 0.36)
    assert costs(prices=Prices(input=1.0)).input.money is None
    assert costs().input.money is None


def test_watts_that_are_named_come_before_what_is_published() -> None:
    found = costs(watts=Watts(5, 50))
    assert (found.busy_watts, found.energy_source) == (50, "estimated (watts)")
    assert found.input.joules == pytest.approx(5e5)


def test_unknown_watts_are_no_joules_and_no_price_of_them() -> None:
    found = costs(busy=None, prices=Prices(kwh=0.3))
    assert found.input.joules is None
    assert found.input.money is None
    assert found.energy_source == "unknown"
    assert costs(busy=None, prices=Prices(hour=0.36)).input.money == pytest.approx(1.0)
