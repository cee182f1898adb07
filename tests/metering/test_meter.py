"""Who pays for a step: shares are fair, and add up to what the process took."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_model import ScriptModel, loaded
from power_tree import two_sockets

import dure.llm
from dure import LLM, SamplingParams
from dure.batch import KVCacheSpec, StateSpec
from dure.metering.cost import NOTHING, Cost
from dure.metering.energy import Energy, find_energy
from dure.metering.meter import PAUSE_SECONDS, Account, Meter
from dure.metering.reading import Reading, Source
from dure.metering.shares import StepWork


class Machine:
    """A clock, a processor and a source of energy that do what a test says."""

    def __init__(self, how: str | None = "rapl") -> None:
        self.now = self.cpu = self.joules = 0.0
        self.how = how
        source = Source(self._read)
        self.meter = Meter(Energy((source,)), cpu=lambda: self.cpu, clock=lambda: self.now)

    def _read(self, _seconds: float, _cpu_s: float) -> Reading | None:
        taken, self.joules = self.joules, 0.0
        return None if self.how is None else Reading(taken, self.how)

    def work(self, seconds: float, cpu_s: float, joules: float) -> None:
        self.now += seconds
        self.cpu += cpu_s
        self.joules += joules


def paid(account: Account) -> tuple[float, float, float | None]:
    cost = account.cost
    return cost.machine_s, cost.cpu_s, cost.joules


def test_a_step_is_paid_by_its_shares_and_idling_by_nobody() -> None:
    machine, a, b = Machine(), Account(), Account()
    meter = machine.meter
    machine.work(100, 1, 50)  # idle
    meter.enter("engine")
    machine.work(1, 2, 40)
    meter.settle("engine", [(a, 0.75), (b, 0.25)], exact=True)
    meter.leave("engine", has_work=False)
    machine.work(10, 1, 5)
    assert paid(a) == (0.75, 1.5, 30)
    assert paid(b) == (0.25, 0.5, 10)
    totals = meter.totals()
    assert totals.steps == Cost(1, 2, 40, ("rapl",))
    assert totals.idle == Cost(110, 2, 55, ("rapl",))


def test_what_lies_between_two_steps_is_paid_by_the_next_unless_it_is_long() -> None:
    machine, a = Machine(), Account()
    meter = machine.meter
    for pause in (PAUSE_SECONDS / 2, PAUSE_SECONDS * 2):
        meter.enter("engine")
        machine.work(1, 1, 1)
        meter.settle("engine", [(a, 1.0)], exact=True)
        meter.leave("engine", has_work=True)
        machine.work(pause, 1, 1)
    meter.enter("engine")
    machine.work(1, 1, 1)
    meter.settle("engine", [(a, 1.0)], exact=True)
    assert paid(a) == (pytest.approx(3 + PAUSE_SECONDS / 2), 4, 4)
    assert meter.totals().idle.machine_s == pytest.approx(PAUSE_SECONDS * 2)


def test_engines_that_step_at_the_same_time_each_pay_an_equal_part() -> None:
    machine, a, b = Machine(), Account(), Account()
    meter = machine.meter
    meter.enter("one")
    machine.work(1, 1, 10)
    meter.enter("two")
    machine.work(2, 4, 20)
    meter.settle("one", [(a, 1.0)], exact=True)
    meter.leave("one", has_work=False)
    machine.work(1, 1, 10)
    meter.settle("two", [(b, 1.0)], exact=True)
    meter.leave("two", has_work=False)
    assert paid(a) == (2, 3, 20)
    assert paid(b) == (2, 3, 20)


def test_joules_that_were_partly_estimated_say_so_and_unknown_ones_are_none() -> None:
    machine, a, b = Machine(), Account(), Account()
    for how, account in (("rapl", a), ("tdp", a), ("rapl", b), (None, b)):
        machine.how = how
        machine.meter.enter("engine")
        machine.work(1, 1, 1)
        machine.meter.settle("engine", [(account, 1.0)], exact=True)
        machine.meter.leave("engine", has_work=False)
    assert a.cost.energy_source == "rapl, estimated (tdp)"
    assert a.cost.is_estimated
    assert b.cost.energy_source == "unknown"
    assert b.cost.joules is None
    assert (a.cost + NOTHING) == a.cost == (NOTHING + a.cost)
    assert (a.cost + b.cost).joules is None


def test_shares_are_by_rows_and_by_what_attention_reads() -> None:
    work = StepWork.of([KVCacheSpec("gqa", 1, 32)], "f16", row_bytes=128_000)
    [one] = work.shares([(0, 1)])
    assert one == 1.0
    same = work.shares([(100, 1)] * 4)
    assert same == [0.25] * 4
    cheap = StepWork.of([KVCacheSpec("gqa", 1, 32)], "f16", row_bytes=10**9)
    prompt, token = cheap.shares([(0, 31), (0, 1)])
    assert prompt / token == pytest.approx(31, rel=0.01)
    # A position is 128 bytes: 1,000 of them are as much as the weights.
    short, long = work.shares([(0, 1), (2000, 1)])
    assert long > 2 * short
    assert sum(work.shares([(5, 3), (700, 1), (0, 100)])) == pytest.approx(1)


@pytest.mark.parametrize(("start", "count", "window"), [(0, 5, 3), (2, 4, 3), (9, 2, 3), (0, 2, 8)])
def test_a_window_bounds_what_attention_reads(start: int, count: int, window: int) -> None:
    spec = KVCacheSpec("gqa", 1, 32, window=window)
    work = StepWork.of([spec, StateSpec(8)], "f16", row_bytes=1)
    seen = sum(min(start + row + 1, window) for row in range(count))
    each = spec.bytes_per_token("f16")
    rows = count + 1
    of_row = (1 + rows / 16) / rows
    want = (count * of_row + each * seen) / (rows * of_row + each * (seen + 1))
    assert work.shares([(start, count), (0, 1)])[0] == pytest.approx(want)


def script(text: str) -> str | None:
    """As many letters as the prompt's first digit says."""
    said = text.rpartition("<|im_start|>assistant\n")[2] if "<|im" in text else text[1:]
    return None if len(said) > 8 * int(text[0]) else "x"


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    """A model on a machine of two sockets whose energy is 40 J a second."""
    domains = two_sockets(tmp_path)
    times = iter(range(1, 1 << 30))

    def clock() -> float:  # each look is 5 ms later, in which 0.2 J were taken
        domains["intel-rapl:0"].take(0.15)
        domains["intel-rapl:1:1"].take(0.05)
        return 0.005 * next(times)

    seconds = iter(range(1, 1 << 30))
    energy = find_energy(
        powercap=tmp_path, hwmon=tmp_path, power_supply=tmp_path, cpuinfo=tmp_path / "no"
    )
    meter = Meter(energy, clock=clock, cpu=lambda: 0.008 * next(seconds))
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(script)))
    return LLM("fake", max_sequences=8, speculate="off", meter=meter)


def test_what_requests_paid_adds_up_to_what_the_process_took(llm: LLM) -> None:
    random.seed(5)
    prompts = [f"{random.randint(0, 7)}" + "a" * random.randint(0, 90) for _ in range(16)]
    cuts = [SamplingParams(max_tokens=random.randint(1, 40), n=random.choice((1, 1, 2)))] * 16
    done = llm.generate(prompts, cuts)
    each = [choice for one in done for choice in (one.choices or (one,))]
    spent = sum((one.usage.cost for one in each), NOTHING)
    totals = llm.meter.totals()
    assert spent.cpu_s == pytest.approx(totals.steps.cpu_s, rel=1e-9)
    assert spent.machine_s == pytest.approx(totals.steps.machine_s, rel=1e-9)
    assert spent.joules == pytest.approx(totals.steps.joules, rel=1e-9)
    assert spent.energy_source == "rapl"
    # All else is three looks at the clock: before the first step, after the last, and just now.
    assert totals.idle.cpu_s == pytest.approx(3 * 0.008)


@pytest.mark.long
def test_a_real_process_is_metered_within_two_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(text: str) -> str:
        sum(range(20_000))
        return script(text)  # type: ignore[return-value]

    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(busy)))
    llm = LLM("fake", max_sequences=8, speculate="off", meter=Meter())
    before = llm.meter.totals().idle
    done = llm.generate([f"{number % 8}" for number in range(64)], SamplingParams(max_tokens=70))
    totals = llm.meter.totals()
    spent = sum(one.usage.cost.cpu_s for one in done)
    idle = totals.idle.cpu_s - before.cpu_s
    assert 0.98 * (totals.steps.cpu_s + idle) < spent <= 1.0001 * totals.steps.cpu_s


def test_an_answer_that_is_given_up_has_paid_for_its_steps(llm: LLM) -> None:
    stream = llm.stream("7", SamplingParams(max_tokens=50))
    for _ in range(5):
        chunk = next(stream)
    stream.close()
    assert chunk.usage is not None
    assert 0 < chunk.usage.cost.cpu_s <= llm.meter.totals().steps.cpu_s
