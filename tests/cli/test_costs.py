"""dure costs: a ledger as a table, as CSV and as JSON; and what run and serve say of costs."""

from __future__ import annotations

import csv
import io
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from outcome import Dure

from dure.metering.ledger import Closed, Ledger, Opened

DAY = 1_772_366_400.0  # 2026-03-01, noon, UTC
DONE = Closed(DAY + 5, "stop", 1000, 400, 2, 20, 5.0, 1.0, 2.5, 30.0, "rapl", 0.5, "EUR")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    written = threading.Event()
    for number, (key, end) in enumerate(
        [
            ("ada", DONE),
            ("ada", replace(DONE, energy="estimated (tdp)")),
            ("bob", replace(DONE, end="lost", joules=None, energy="", currency="")),
        ]
    ):
        ledger.begin(Opened(str(number), DAY + 86_400 * number, key, "m"), lambda: None)
        ledger.end(str(number), end, written.set)
    ledger.close()
    return path


def test_a_ledger_is_a_table_by_key_and_model(dure_command: Dure, ledger: Path) -> None:
    done = dure_command("costs", str(ledger))
    head, ada, bob = [line.split() for line in done.out.splitlines()]
    assert head[:4] == ["KEY", "MODEL", "REQUESTS", "UNFINISHED"]
    assert " ".join(ada) == "ada m 2 0 2,000 800 40 5.0 s ~60.0 J 1.000000 EUR"
    assert bob[:4] == ["bob", "m", "1", "1"]
    assert bob[-2:] == ["unknown", "-"]
    assert "estimated" in done.err
    assert "1 of the unfinished ran when a server was killed" in done.err


def test_csv_and_json_have_the_same_and_all_of_it(dure_command: Dure, ledger: Path) -> None:
    options = ("costs", str(ledger), "--by", "day", "--since", "2026-03-02", "--format")
    values = json.loads(dure_command(*options, "json").out)
    rows = list(csv.DictReader(io.StringIO(dure_command(*options, "csv").out)))
    assert [value["day"] for value in values] == ["2026-03-02", "2026-03-03"]
    assert [value["lost"] for value in values] == [0, 1]
    assert rows == [{name: str(each) for name, each in value.items()} for value in values]
    assert values[0]["prompt_tokens"] == 1000
    assert values[0]["energy"] == "estimated (tdp)"


def test_a_time_without_requests_is_said(dure_command: Dure, ledger: Path) -> None:
    done = dure_command("costs", str(ledger), "--until", "2026-02-01")
    assert (done.code, done.out) == (0, "")
    assert "No request" in done.err
    assert dure_command("costs", str(ledger), "--until", "2026-02-01", "--format", "json").out == (
        "[]\n"
    )


def test_a_ledger_that_is_none_is_one_sentence(dure_command: Dure, tmp_path: Path) -> None:
    done = dure_command("costs", str(tmp_path / "none.db"))
    assert done.code == 1
    assert done.err.startswith("error: There is no ledger")


def test_verbose_says_processor_seconds_joules_and_money(dure_command: Dure) -> None:
    done = dure_command(
        "run", "fake", "paid words", "--verbose", "--price", "input=100,currency=CNY"
    )
    assert "cost 1.50 processor seconds, 45.0 J (rapl), 0.001000 CNY" in done.err
    assert "energy: " in done.err
    value = json.loads(
        dure_command("run", "fake", "paid words", "--json", "--price", "output=1").out
    )
    assert value["cost"] == {
        "processor_seconds": 1.5,
        "joules": 45.0,
        "energy": "rapl",
        "money": pytest.approx(2e-6),
        "currency": "USD",
    }


@pytest.mark.parametrize(
    "options", [("--price", "much"), ("--watts", "5"), ("--price", "kwh=-1")], ids=" ".join
)
def test_wrong_prices_and_watts_end_the_command(dure_command: Dure, options) -> None:
    done = dure_command("run", "fake", "hi", *options)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
