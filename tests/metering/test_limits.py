"""What a key may use: of a minute, a day and a month, at once, and when that begins anew."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from dure.errors import InvalidRequestError
from dure.metering.cost import Cost
from dure.metering.keys_file import read_keys
from dure.metering.limits import Allowance, LimitReached, Limits
from dure.metering.prices import Prices

NOON = datetime(2026, 2, 27, 12, 0, 30, tzinfo=timezone.utc).timestamp()


def refused(allowance: Allowance, tokens: int = 1, money: float = 0.0, at: float = NOON):
    with pytest.raises(LimitReached) as caught:
        allowance.hold(tokens, money, at)
    return caught.value


@pytest.mark.parametrize(
    ("limit", "retry_s"),
    [
        ({"tokens_per_minute": 100}, 30),
        ({"tokens_per_day": 100}, 12 * 3600 - 30),
        ({"money_per_month": 100.0}, 36 * 3600 - 30),
    ],
)
def test_a_limit_holds_until_its_time_ends_and_then_begins_anew(limit: Any, retry_s: int) -> None:
    allowance = Allowance(Limits(**limit))
    for _ in range(4):
        allowance.release(allowance.hold(25, 25.0, NOON), 25, 25.0)
    found = refused(allowance)
    assert (next(iter(limit)), retry_s) == (found.limit, found.retry_s)
    assert refused(allowance, at=NOON + retry_s - 1).retry_s == 1
    allowance.hold(100, 100.0, NOON + retry_s)


def test_what_runs_is_set_aside_so_that_many_at_once_keep_to_the_limit() -> None:
    allowance = Allowance(Limits(tokens_per_day=100))
    held = [allowance.hold(30, 0.0, NOON) for _ in range(3)]
    refused(allowance, 30)
    allowance.release(held[0], 5, 0.0)
    allowance.hold(30, 0.0, NOON)
    refused(allowance, 30)


def test_a_request_counts_in_the_minute_in_which_it_began() -> None:
    allowance = Allowance(Limits(tokens_per_minute=100, tokens_per_day=300))
    held = allowance.hold(100, 0.0, NOON)
    later = allowance.hold(100, 0.0, NOON + 30)
    allowance.release(held, 100, 0.0)
    refused(allowance, at=NOON + 30)
    allowance.release(later, 10, 0.0)
    allowance.hold(90, 0.0, NOON + 30)


def test_a_request_that_never_fits_is_told_so_without_a_time() -> None:
    found = refused(Allowance(Limits(tokens_per_minute=100)), 101)
    assert found.retry_s is None
    assert "max_tokens" in str(found)


def test_streams_at_once_come_free_when_one_ends() -> None:
    allowance = Allowance(Limits(streams=2))
    held = [allowance.hold(1, 0.0, NOON) for _ in range(2)]
    assert refused(allowance).limit == "streams"
    allowance.release(held[0], 1, 0.0)
    allowance.hold(1, 0.0, NOON)


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    allowance = Allowance(Limits(tokens_per_minute=10))
    allowance.hold(10, 0.0, NOON)
    refused(allowance, at=NOON - 3600)


def test_what_was_used_before_this_process_counts() -> None:
    allowance = Allowance(Limits(tokens_per_minute=10, tokens_per_day=100, money_per_month=5.0))
    asked = []

    def read(since: float) -> tuple[int, float]:
        asked.append(datetime.fromtimestamp(since, timezone.utc).isoformat()[:16])
        return (1, 1.0) if len(asked) == 1 else (99, 4.5)

    allowance.begin_with(read, NOON)
    assert asked == ["2026-02-27T12:00", "2026-02-27T00:00", "2026-02-01T00:00"]
    assert refused(allowance, 2).limit == "tokens_per_day"
    assert refused(allowance, 1, 0.6).limit == "money_per_month"
    allowance.hold(1, 0.5, NOON)


@pytest.mark.parametrize(
    "limits",
    [
        {"tokens_per_minute": -1},
        {"tokens_per_day": 1.5},
        {"money_per_month": "5"},
        {"streams": 0},
        {"streams": True},
        {"money_per_month": float("nan")},
        {"requests_per_day": 5},
    ],
)
def test_limits_that_are_none_are_refused_by_name(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(limits))):
        Limits.of(limits)


def test_money_is_that_of_tokens_electricity_and_time() -> None:
    prices = Prices(input=1.0, cached_input=0.25, output=4.0)
    assert prices.money(prompt=1_000_000, cached=400_000, output=500_000) == pytest.approx(2.7)
    assert Prices(input=2.0).money(prompt=1_000_000, cached=500_000, output=9) == 2.0
    power = Prices(kwh=0.30, hour=1.2)
    took = Cost(machine_s=1800, cpu_s=9, joules=3.6e6, energy=("rapl",))
    assert power.money(prompt=5, cached=0, output=5, cost=took) == pytest.approx(0.9)
    assert power.money(prompt=5, cached=0, output=5) == 0


def test_prices_are_read_from_a_line() -> None:
    found = Prices.parse("input=0.1, cached_input=0.02,output=.4,kwh=0.3,currency=CNY")
    assert found == Prices(0.1, 0.02, 0.4, kwh=0.3, currency="CNY")


@pytest.mark.parametrize(
    "text",
    [
        *("", "0.3", "input", "input=", "input=a", "input=-1", "input=nan", "kwh=inf"),
        *("input=1,input=2", "currency=euro", "currency=€", "watts=5", "input=1e10"),
    ],
)
def test_prices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Prices.parse(text)


KEY = {"name": "ada", "key": "sk-secret-ada"}


def keys(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_keys_file_gives_each_key_a_name_prices_and_limits(tmp_path: Path) -> None:
    bob = {"name": "bob", "key": "sk-secret-bob", "limits": {"streams": 2}, "admin": True}
    bob["prices"] = {"qwen*": {"input": 1}, "*": {"input": 2, "currency": "USD"}}
    value = {"keys": [KEY, bob], "prices": {"input": 3, "currency": "EUR"}}
    found = read_keys(keys(tmp_path, value)).policies
    ada, bob_ = found["sk-secret-ada"], found["sk-secret-bob"]
    assert ("ada", 3, "EUR") == (ada.name, ada.prices.of("x").input, ada.prices.of("x").currency)
    assert (1, 2) == (bob_.prices.of("qwen3:4b").input, bob_.prices.of("llama").input)
    assert bob_.limits == Limits(streams=2)
    assert (ada.is_admin, bob_.is_admin) == (False, True)


@pytest.mark.parametrize(
    "value",
    [
        "{",
        '["sk-secret-ada"]',
        {},
        {"keys": []},
        {"keys": ["sk-secret-ada"]},
        {"keys": [KEY, KEY]},
        {"keys": [KEY, {**KEY, "key": "sk-secret-else"}]},
        {"keys": [{"name": "ada"}]},
        {"keys": [{"key": "sk-secret-ada"}]},
        {"keys": [{**KEY, "name": "a\nb"}]},
        {"keys": [{**KEY, "limit": {}}]},
        {"keys": [{**KEY, "limits": [1]}]},
        {"keys": [{**KEY, "admin": "yes"}]},
        {"keys": [{**KEY, "prices": {"*": {"input": 1}, "a": 5}}]},
        {"keys": [{**KEY, "prices": {"a": {"currency": "EUR"}, "b": {"currency": "USD"}}}]},
        '{"keys": [{"name": "sk-secret-ada", "name": "b"}]}',
        '{"keys": "sk-secret-ada',
    ],
)
def test_a_wrong_keys_file_is_one_sentence_without_a_key(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_keys(keys(tmp_path, value))
    assert "sk-secret" not in str(caught.value)
    assert "download" not in str(caught.value)


def test_a_keys_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_keys(tmp_path / "keys.json")
