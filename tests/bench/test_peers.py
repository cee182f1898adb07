"""bench/peers.py: which peers count, at which setting, and what the table says of them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dure import benchmark
from dure.loading.load import load

BENCH = Path(__file__).parent.parent.parent / "bench"
MODULES = ("peers", "table", "work", "limits", "engine")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, found as `python bench/peers.py` finds it and its neighbours."""
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("peers")
    for name in MODULES:
        sys.modules.pop(name, None)


class FakeFleet:
    """Engines with given speeds and perplexities by setting; a speed of None is a crash."""

    def __init__(
        self,
        peers: Any,
        speeds: Mapping[Any, float | None],
        wrong: tuple[Any, ...] = (),
        error: type[Exception] | None = None,
    ) -> None:
        self.speeds, self.wrong = speeds, wrong
        self.error = error or peers.EngineError
        self.timed: list[str] = []

    def speed(self, work: Any, setting: Any, *, trial: bool = False) -> float:
        speed = self.speeds.get(setting, 1.0)
        if speed is None:
            raise self.error("crashed (signal 11)")
        if not trial:
            self.timed.append(setting.engine)
        return speed

    def perplexity(self, setting: Any, tokens: list[int]) -> float:
        return 79.0 if setting in self.wrong else 13.1 if setting.engine == "dure" else 13.2

    def drop(self, setting: Any) -> None:
        """Nothing runs."""


def small_work(peers: Any) -> list[Any]:
    """Prefill and decode of SmolLM2."""
    return [work for work in peers.WORK if work.model == "smollm2-135m"]


def compared(peers: Any, fleet: FakeFleet) -> tuple[Any, list[str]]:
    """The row of prefill of SmolLM2 after two alternations, and the remarks."""
    comparison = peers.Comparison(
        fleet, small_work(peers)[:1], ["llama", "ik"], lambda *_, **__: None
    )
    [row] = comparison.run([1, 2, 3], 2)
    return row, comparison.remarks


def test_a_wrong_setting_does_not_count_however_fast(peers: Any) -> None:
    fast, right = peers.Setting("ik", True, True), peers.Setting("ik", True, False)
    speeds = {peers.Setting("dure"): 100.0, fast: 500.0, right: 80.0}
    row, remarks = compared(peers, FakeFleet(peers, speeds, wrong=(fast,)))
    assert row.settings["ik"] == right
    assert row.ratio() == 100 / 80
    assert remarks == [
        "ik_llama.cpp (repacked, flash) on SmolLM2-135M Q4_1: wrong: perplexity 79.00, dure's 13.10"
    ]


def test_a_peer_without_a_right_setting_is_not_in_the_ratio(peers: Any) -> None:
    wrong = [peers.Setting("ik", repack, flash) for repack in (0, 1) for flash in (0, 1)]
    speeds = {peers.Setting("dure"): 100.0, **dict.fromkeys(wrong, 500.0)}
    row, remarks = compared(peers, FakeFleet(peers, speeds, wrong=tuple(wrong)))
    assert row.ratio() == 100 / 1
    assert len(remarks) == 4
    assert peers.table([row], ["ik", "llama"]).splitlines()[-1].split(" | ")[1:4] == [
        "**100.0**", "–", "1.0"
    ]  # fmt: skip


def test_a_setting_that_crashes_is_reported_and_the_others_run(peers: Any) -> None:
    crash, other = peers.Setting("llama", True, True), peers.Setting("llama", False, True)
    speeds = {peers.Setting("dure"): 100.0, crash: None, other: 90.0}
    fleet = FakeFleet(peers, speeds)
    comparison = peers.Comparison(fleet, small_work(peers), ["llama"], lambda *_, **__: None)
    rows = comparison.run([1, 2, 3], 1)
    assert [row.settings["llama"] for row in rows] == [other, other]
    of = "llama.cpp (extra buffers, flash) on SmolLM2-135M Q4_1: crashed (signal 11) in "
    assert comparison.remarks == [of + "prefill 512", of + "decode, one sequence"]


def test_a_setting_that_cannot_start_is_tried_once(peers: Any) -> None:
    crash = peers.Setting("llama", True, True)
    fleet = FakeFleet(peers, {crash: None}, error=peers.StartError)
    comparison = peers.Comparison(fleet, small_work(peers), ["llama"], lambda *_, **__: None)
    comparison.run([1, 2, 3], 1)
    assert len(comparison.remarks) == 1


def test_engines_take_turns_and_a_slow_peer_is_shown_by_its_short_run(peers: Any) -> None:
    speeds = {
        peers.Setting("dure"): 100.0,
        peers.Setting("llama", False, True): 90.0,
        peers.Setting("ik", True, True): 30.0,
    }
    fleet = FakeFleet(peers, speeds)
    row, _ = compared(peers, fleet)
    assert fleet.timed == ["dure", "llama"] * 2
    line = peers.table([row], ["llama", "ik"]).splitlines()[-1]
    assert (
        line == "| SmolLM2-135M Q4_1: prefill 512 | **100.0** | 90.0 | (30.0) | 1.11 | 1.8 | 2.2 |"
    )


def test_a_start_is_shown_in_seconds_and_compared_as_a_speed(peers: Any) -> None:
    start = next(work for work in peers.WORK if work.kind == "start")
    row = peers.Row(start, speeds={"dure": [1 / 2.0], "ik": [1 / 3.0]})
    assert row.ratio() == pytest.approx(1.5)
    assert "| **2.00 s** | 3.00 s | 1.50 |" in peers.table([row], ["ik"])


def test_the_table_is_written_between_the_marks_of_the_page(peers: Any) -> None:
    page = (BENCH.parent / "docs" / "benchmarks.md").read_text("utf-8")
    first, last = peers.MARKS
    written = peers.replaced(page, "| new |")
    assert f"{first}\n| new |\n{last}" in written
    assert written.split(first)[0] == page.split(first)[0]
    assert written.split(last)[1] == page.split(last)[1]


@pytest.mark.model
def test_the_process_of_dure_scores_as_dure_perplexity_and_keeps_its_context(
    peers: Any, smollm2: Path
) -> None:
    options = argparse.Namespace(threads=1, llama="", ik="", verbose=False)
    fleet = peers.Fleet(smollm2, options)
    try:
        worker = fleet.worker(peers.Setting("dure"))
        tokens = worker.ask("tokenize", text="The quick brown fox. " * 20)["tokens"][:96]
        model = load(smollm2, threads=1, with_tokenizer=False).model
        expected = benchmark.perplexity(model, tokens, window=96)["perplexity"]
        actual = fleet.perplexity(peers.Setting("dure"), tokens)
        assert actual == pytest.approx(expected, rel=1e-9)
        cache = {"sequences": 2, "length": 64, "flash": False}
        assert worker.ask("hold", depth=40, **cache)["tokens"] == 80
        assert worker.ask("hold", depth=40, **cache)["tokens"] == 0
        assert worker.ask("decode", steps=3)["tokens"] == 6
        assert worker.ask("hold", depth=50, **cache)["tokens"] == 20
        with pytest.raises(peers.EngineError, match="failed"):
            worker.ask("no_such_thing")
    finally:
        fleet.close()
