"""Experts that cannot be read: the answer that needs them ends with one clear error, the others go
on with the same bits, and nothing is ever computed from what is not there."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import streamed
from big_mixture import Mixture
from fake_model import VOCAB_SIZE

from dure import kernels, machine
from dure.engine.engine import Engine
from dure.engine.request import Request
from dure.errors import ModelFileError, NotEnoughMemoryError
from dure.kernels.streaming import ENDED
from dure.loading.load import LoadedModel
from dure.weights import record_memory, streaming_pool
from dure.weights.streaming_pool import StreamingExpertPool

SMALL = Mixture(layers=3, experts=32, chosen=2, hidden=256, intermediate=256)
SMALL_RECORD = 120_000  # bytes, about
BUDGET = 9_800_000
TOKENS = 24
RNG = np.random.default_rng(3)
LONG, SHORT = (RNG.integers(0, VOCAB_SIZE, length).tolist() for length in (30, 3))


@pytest.fixture(autouse=True)
def small_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plan as if interpreter and readers took nothing, so that a file of a few MB is too large.

    What is remembered of experts goes to a folder of the test's.
    """
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home" / "models"))
    for name in streamed.OVERHEADS:
        monkeypatch.setattr(name, 0)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("faults") / "small.gguf")


@pytest.fixture(scope="module")
def expected(mixture: Path) -> dict[str, Request]:
    """What both prompts are answered with all of the model in memory."""
    engine = streamed.engine_of(streamed.opened(mixture))
    requests = [engine.add(prompt, streamed.params(TOKENS)) for prompt in (LONG, SHORT)]
    streamed.finish(engine)
    return dict(zip(("long", "short"), requests, strict=True))


class Disk(kernels.ExpertReader):
    """A reader on a disk that does as the test says."""

    made: ClassVar[list[Disk]] = []
    error = 0  # of every read of an expert that `good` does not hold
    good: frozenset[int] = frozenset()
    held_back = 0  # how often it says that nothing has come yet

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        Disk.made.append(self)

    def take(self, seconds: float) -> list[tuple[int, int, int]]:
        if self.held_back:
            self.held_back -= 1
            return []
        return [
            (tag, self.error if tag not in self.good and self.error else code, offset)
            for tag, code, offset in super().take(seconds)
        ]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[Disk]:
    """The disks of the pools that the test opens: `made` has them in order."""
    Disk.made.clear()
    monkeypatch.setattr(kernels, "ExpertReader", Disk)
    return Disk


@pytest.fixture(autouse=True)
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of tests holds much beside a model, which would leave its experts the least."""
    monkeypatch.setattr(machine, "process_bytes", lambda: None)


def under_budget(path: Path) -> LoadedModel:
    """The model with room for less than half of its experts."""
    model = streamed.opened(path, BUDGET)
    assert model.memory.streamed
    assert model.memory.expert_cache_bytes < model.memory.expert_bytes / 2
    return model


def begun(model: LoadedModel, *prompts: list[int]) -> tuple[Engine, list[Request]]:
    """An engine in the middle of answering the prompts."""
    engine = streamed.engine_of(model)
    requests = [engine.add(prompt, streamed.params(TOKENS)) for prompt in prompts]
    while min(len(each.output_ids) for each in requests) < TOKENS // 4:
        engine.step()
    assert all(not each.is_finished for each in requests)
    return engine, requests


def tags_of(model: LoadedModel, prompt: list[int]) -> frozenset[int]:
    """The reads that an answer may need, which are the same in any company."""
    pool = model.expert_pool
    assert pool is not None
    first = {id(layer.experts): layer.first for layer in pool._layers}
    used: set[int] = set()

    def begin(experts: kernels.Experts, ids: np.ndarray, x: Any, scores: Any) -> Any:
        used.update((np.unique(ids) + first[id(experts)] + 1).tolist())
        return StreamingExpertPool.begin(pool, experts, ids, x, scores)

    pool.begin = begin  # type: ignore[method-assign]
    streamed.answers(model, [prompt], TOKENS)
    del pool.begin
    return frozenset(used)


def says_so(request: Request, path: Path) -> bool:
    """Whether the request ended with one sentence about the file, and a hint."""
    error = request.error
    assert isinstance(error, ModelFileError)
    assert (error.message.count(". "), error.message[-1], bool(error.hint)) == (0, ".", True)
    return request.finish_reason == "error" and str(path) in error.message


@pytest.mark.parametrize("error", [errno.EIO, ENDED])
def test_a_read_that_fails_or_comes_short_ends_the_answer_that_needs_it_and_no_other(
    mixture: Path, expected: dict[str, Request], disk: type[Disk], error: int
) -> None:
    model = under_budget(mixture)
    good = tags_of(model, SHORT)
    engine, (long, short) = begun(model, LONG, SHORT)
    [reader] = disk.made
    reader.error, reader.good = error, good
    streamed.finish(engine)
    assert says_so(long, mixture)
    assert long.output_ids == expected["long"].output_ids[: len(long.output_ids)]
    assert streamed.digest(short) == streamed.digest(expected["short"])
    # The disk is well again. What the failed answer left in the cache is not used.
    reader.error = 0
    again = [engine.add(prompt, streamed.params(TOKENS)) for prompt in (LONG, SHORT)]
    streamed.finish(engine)
    assert [streamed.digest(each) for each in again] == [
        streamed.digest(each) for each in expected.values()
    ]


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    """With another model of the same size."""
    tied = "tied" in path.name
    other = replace(SMALL, tied=tied).write(path.with_name("other.gguf"), seed=1)
    assert other.stat().st_size == path.stat().st_size
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("spoil", [truncated, overwritten])
@pytest.mark.parametrize("tied", [False, True], ids=["rows", "experts"])
def test_a_file_that_is_changed_meanwhile_ends_answers_and_gives_no_wrong_numbers(
    tmp_path: Path, spoil: Callable[[Path], None], tied: bool
) -> None:
    """Who notices is the embedding, which is read by rows, or if it is tied the experts."""
    path = replace(SMALL, tied=tied).write(tmp_path / ("tied.gguf" if tied else "plain.gguf"))
    whole = streamed.engine_of(streamed.opened(path))
    right = [whole.add(prompt, streamed.params(TOKENS)) for prompt in (LONG, SHORT)]
    streamed.finish(whole)
    engine, requests = begun(under_budget(path), LONG, SHORT)
    spoil(path)
    streamed.finish(engine)
    for request, expected in zip(requests, right, strict=True):
        assert says_so(request, path)
        assert request.output_ids == expected.output_ids[: len(request.output_ids)]


def test_a_file_that_another_takes_the_name_of_is_read_on(
    mixture: Path, tmp_path: Path, expected: dict[str, Request]
) -> None:
    path = tmp_path / "replaced.gguf"
    shutil.copyfile(mixture, path)
    engine, requests = begun(under_budget(path), LONG, SHORT)
    SMALL.write(tmp_path / "new.gguf", seed=1).replace(path)
    streamed.finish(engine)
    assert [streamed.digest(each) for each in requests] == [
        streamed.digest(each) for each in expected.values()
    ]


def test_a_slow_disk_is_waited_for_and_somebody_is_told(
    mixture: Path,
    expected: dict[str, Request],
    disk: type[Disk],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(streaming_pool, "SLOW_SECONDS", 0.0)
    model = under_budget(mixture)
    engine, [long] = begun(model, LONG)
    disk.made[0].held_back = 100
    with caplog.at_level(logging.WARNING):
        streamed.finish(engine)
    assert disk.made[0].held_back == 0
    assert streamed.digest(long) == streamed.digest(expected["long"])
    assert "waiting for the disk" in caplog.text
    assert long.expert_use is not None
    assert long.expert_use.wait_s > 0


def test_a_file_system_without_direct_reads_gives_the_same_bits(
    mixture: Path, expected: dict[str, Request]
) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir():
        pytest.skip("there is no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder) / "model.gguf"
        shutil.copyfile(mixture, path)
        found = streamed.answers(under_budget(path), [LONG, SHORT], TOKENS)
    assert found == [streamed.digest(each) for each in expected.values()]


def test_a_cache_that_gets_no_more_memory_stays_smaller(
    mixture: Path, expected: dict[str, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = under_budget(mixture)
    pool = model.expert_pool
    assert pool is not None
    most = 10 * SMALL_RECORD  # of which a step's row needs two
    made = kernels.ExpertBuffer

    def refuse(slots: int, size: int) -> kernels.ExpertBuffer:
        if pool._memory.taken + size > most:
            raise MemoryError
        return made(slots, size)

    monkeypatch.setattr(kernels, "ExpertBuffer", refuse)
    found = streamed.answers(model, [LONG, SHORT], TOKENS)
    assert found == [streamed.digest(each) for each in expected.values()]
    assert most < model.memory.expert_cache_bytes
    assert 0 < pool.stats.resident_bytes <= most


def test_without_any_memory_an_answer_is_refused_and_the_next_is_given(
    mixture: Path, expected: dict[str, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = streamed.engine_of(under_budget(mixture))
    with monkeypatch.context() as patch:

        def refuse(slots: int, size: int) -> kernels.ExpertBuffer:
            raise MemoryError

        patch.setattr(kernels, "ExpertBuffer", refuse)
        request = engine.add(LONG, streamed.params(TOKENS))
        streamed.finish(engine)
    assert isinstance(request.error, NotEnoughMemoryError)
    request = engine.add(LONG, streamed.params(TOKENS))
    streamed.finish(engine)
    assert streamed.digest(request) == streamed.digest(expected["long"])


def test_a_cache_gives_memory_back_when_the_machine_has_none_left(
    mixture: Path, expected: dict[str, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = under_budget(mixture)
    pool = model.expert_pool
    assert pool is not None
    engine, requests = begun(model, LONG, SHORT)
    before = pool.stats.resident_bytes
    monkeypatch.setattr(machine, "memory_available", lambda: 0)
    monkeypatch.setattr(record_memory, "CHECK_SECONDS", -1.0)
    streamed.finish(engine)
    assert [streamed.digest(each) for each in requests] == [
        streamed.digest(each) for each in expected.values()
    ]
    assert pool.least_bytes <= pool.stats.capacity_bytes < before
    assert pool.stats.resident_bytes <= pool.stats.capacity_bytes
    # When the machine has memory again, the cache grows to what was planned, and not beyond.
    monkeypatch.setattr(machine, "memory_available", lambda: 10**12)
    again = engine.add(LONG, streamed.params(TOKENS))
    streamed.finish(engine)
    assert streamed.digest(again) == streamed.digest(expected["long"])
    assert pool.stats.capacity_bytes == model.memory.expert_cache_bytes


def test_a_machine_with_less_memory_than_the_budget_gets_a_smaller_cache(
    mixture: Path, expected: dict[str, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda: BUDGET)
    least = under_budget(mixture).memory
    for budget in (None, 10**12):
        model = streamed.opened(mixture, budget)
        if budget is None:  # then some stays free for other programs
            assert 0 < model.memory.expert_cache_bytes < least.expert_cache_bytes
        else:
            assert replace(model.memory, expected_tps=None) == replace(
                least, budget=budget, expected_tps=None
            )
        assert streamed.answers(model, [SHORT], TOKENS) == [streamed.digest(expected["short"])]


@pytest.mark.parametrize("damage", [b"", b"no scores", None])
def test_what_was_used_most_is_remembered_and_a_damaged_memory_of_it_is_none(
    mixture: Path, expected: dict[str, Request], tmp_path: Path, damage: bytes | None
) -> None:
    def answered() -> int:
        """How many experts were known to be used when the model was opened."""
        model = under_budget(mixture)
        assert model.expert_pool is not None
        known = int(np.count_nonzero(model.expert_pool._policy.long))
        assert streamed.answers(model, [SHORT], TOKENS) == [streamed.digest(expected["short"])]
        return known

    assert answered() == 0
    gc.collect()  # a model that is let go writes down what it used
    [file] = tmp_path.rglob("*.npy")
    if damage is not None:
        file.write_bytes(damage)
    assert (answered() > 0) == (damage is None)


def test_what_was_read_while_nothing_ran_stays_when_something_does(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed.answers(under_budget(mixture), [SHORT], TOKENS)
    gc.collect()
    model = under_budget(mixture)
    pool = model.expert_pool
    assert pool is not None
    read = 0
    while (now := pool._reader.read_bytes) == 0 or now != read:  # until all has come
        read = now
        time.sleep(0.2)
    most = sorted(np.flatnonzero(pool._state).tolist())
    wanted = np.argsort(-pool._policy.scores, kind="stable")[: len(most)]
    assert most == sorted(wanted.tolist())  # those used most, and no others
    limit, taken = pool._memory._limit, pool._memory.taken
    assert limit is not None
    filled = limit - record_memory.MARGIN_BYTES - 1
    monkeypatch.setattr(machine, "process_bytes", lambda: filled)
    pool.begin_step(1, 1)
    assert (pool._memory.taken, pool.stats.resident) == (taken, len(most))
