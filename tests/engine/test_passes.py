"""Several passes on their way at once: the same bits, and nothing lost when all of them are."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from prefix_model import VOCAB_SIZE, PrefixModel, StateModel, random_prompt, run

from dure.batch import Batch, PassLostError
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.kernels import sampling_reference

PARAMS = SamplingParams(max_tokens=30, temperature=0.8, top_p=0.95, seed=7, logprobs=3)


class Queued(ModelRunner):
    """A runner that computes a batch only when it is finished, however many were begun since.

    It loses its cache, and all that was begun, whenever `losses` says so.
    """

    def __init__(self, model: PrefixModel, *, passes: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.passes = passes
        self.losses: deque[bool] = deque()
        self.most = 0
        self._queue: deque[Batch] = deque()

    def begin(self, batch: Batch) -> None:
        self._queue.append(batch)
        self.most = max(self.most, len(self._queue))
        assert len(self._queue) <= self.passes
        self._lose_some()

    def finish(self) -> np.ndarray:
        self._lose_some()
        try:
            return self.execute(self._queue.popleft())
        except Exception:
            self._queue.clear()  # a failure ends all that was begun
            raise

    def _lose_some(self) -> None:
        if self.losses and self.losses.popleft():
            self._queue.clear()
            for array in self.storage.arrays:
                array[:] = 0
            raise PassLostError


def engine_of(
    model: PrefixModel | None = None, *, passes: int = 1, blocks: int = 64, **options: Any
) -> Engine:
    runner = Queued(model or PrefixModel(), passes=passes, num_blocks=blocks, num_states=16)
    settings = {"max_batch_tokens": 64, "max_sequences": 8, **options}
    return Engine(runner, sampling=sampling_reference, **settings)


def crowd(engine: Engine, seed: int) -> list[Request]:
    """Requests of all lengths that come at any time, some with a common beginning."""
    rng = np.random.default_rng(seed)
    common, added = random_prompt(rng, 70), []
    for _ in range(9):
        shared = int(rng.integers(0, 71)) if rng.random() < 0.5 else 0
        prompt = common[:shared] + random_prompt(rng, int(rng.integers(1, 90)))
        added.append(engine.add(prompt, PARAMS))
        for _ in range(rng.integers(0, 4)):
            engine.step()
            engine.scheduler.check()
    run(engine)
    return added


def outcomes(requests: list[Request]) -> list[tuple[Any, ...]]:
    assert [each.error for each in requests] == [None] * len(requests)
    return [(each.output_ids, each.logprobs, each.finish_reason) for each in requests]


@lru_cache
def one_at_a_time(kind: Any, seed: int) -> list[tuple[Any, ...]]:
    """What the crowd of a seed gets where a pass ends before the next begins."""
    return outcomes(crowd(engine_of(kind()), seed))


@pytest.mark.parametrize("kind", [PrefixModel, StateModel])
@pytest.mark.parametrize("passes", [2, 3, 5])
def test_tokens_are_those_of_one_pass_at_a_time(kind: Any, passes: int) -> None:
    preemptions = 0
    for seed in range(3):
        expected = one_at_a_time(kind, seed)
        engine = engine_of(kind(), passes=passes)
        assert outcomes(crowd(engine, seed)) == expected
        assert engine.runner.most == passes
        crowded = engine_of(kind(), passes=passes, blocks=6, max_batch_tokens=40)
        assert outcomes(crowd(crowded, seed)) == expected
        preemptions += crowded.stats.preemptions
    assert preemptions > 0


@pytest.mark.parametrize("kind", [PrefixModel, StateModel])
@pytest.mark.parametrize("passes", [1, 3])
def test_what_is_lost_is_computed_again(kind: Any, passes: int) -> None:
    for seed in range(3):
        expected = one_at_a_time(kind, seed)
        engine = engine_of(kind(), passes=passes, blocks=20)
        rng = np.random.default_rng(seed)
        for gap in rng.integers(20, 50, 8):  # so that each request gets on between two of them
            engine.runner.losses.extend([False] * gap + [True])
        assert outcomes(crowd(engine, seed)) == expected
        assert engine.stats.preemptions > 0


def test_a_streams_tokens_come_once_each_after_a_loss() -> None:
    engine = engine_of(passes=2)
    request = engine.add([1, 2, 3], PARAMS)
    engine.runner.losses.extend(i in (9, 14, 15) for i in range(40))
    outputs = run(engine)
    tokens = [token for output in outputs for token in output.token_ids]
    assert tokens == request.output_ids
    assert len(tokens) == 30


def poisoned(engine: Engine, token: int) -> list[int]:
    """Lose every pass that has this token; the list gets how many rows it had."""
    runner, lost = engine.runner, []
    finish = runner.finish

    def lose() -> Any:
        batch = runner._queue[0]
        if token in batch.tokens:
            lost.append(len(batch.tokens))
            runner.losses.extendleft([True])
        return finish()

    runner.finish = lose
    return lost


@pytest.mark.parametrize("kind", [PrefixModel, StateModel])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_request_that_loses_every_pass_ends_and_no_other_does(kind: Any, passes: int) -> None:
    token = VOCAB_SIZE - 1
    prompts = [
        [each % token for each in random_prompt(np.random.default_rng(i), 20 + 9 * i)]
        for i in range(5)
    ]
    params = replace(PARAMS, logit_bias={token: -100})
    other = engine_of(kind())
    expected = [other.add(prompt, params) for prompt in prompts]
    run(other)
    engine = engine_of(kind(), passes=passes)
    lost = poisoned(engine, token)
    added = [engine.add(prompt, params) for prompt in prompts[:3]]
    engine.step()
    wrong = engine.add([5, token, 5], replace(params, n=2))
    added += [engine.add(prompt, params) for prompt in prompts[3:]]
    run(engine)
    assert outcomes(added) == outcomes(expected)
    assert [each.finish_reason for each in wrong.choices] == ["error", "error"]
    assert "lost 2 times while this request alone" in str(wrong.error)
    assert lost[1:] == [3, 3]  # once with others, and twice alone
    again = engine.add([5, token, 5], params)
    run(engine)
    assert again.finish_reason == "error"
    assert lost[3:] == [3, 3]


def test_a_request_that_loses_each_second_pass_ends() -> None:
    engine = engine_of(passes=2)
    engine.runner.losses.extend(i % 4 == 3 for i in range(100))  # begin, finish, begin, finish
    request = engine.add([1, 2, 3], PARAMS)
    run(engine)
    assert request.finish_reason == "error"
    assert len(request.output_ids) == 2


def test_a_request_ends_when_no_pass_has_it() -> None:
    for kind in (PrefixModel, StateModel):
        engine, other = engine_of(kind(), passes=3), engine_of(kind())
        prompts = [random_prompt(np.random.default_rng(i), 40 + i) for i in range(6)]
        added = [engine.add(prompt, PARAMS) for prompt in prompts]
        for request in added[::2]:
            engine.step()
            engine.abort(request.id)
            assert request.finish_reason == "abort"
            assert not request.in_flight
            engine.scheduler.check()
        run(engine)
        kept = [other.add(prompt, PARAMS) for prompt in prompts]
        run(other)
        assert outcomes(added[1::2]) == outcomes(kept[1::2])
        again = engine.add([*prompts[0], 5], PARAMS)  # from what the aborted one left
        run(engine)
        assert again.num_cached_tokens >= 32
        alone = other.add([*prompts[0], 5], PARAMS, cache_salt="none")
        run(other)
        assert outcomes([again]) == outcomes([alone])


def test_outputs_that_an_abort_waited_for_are_not_lost() -> None:
    engine = engine_of(passes=2, max_batch_tokens=8)
    first, second = (engine.add([i], SamplingParams(max_tokens=20, seed=i)) for i in (3, 4))
    outputs = engine.step()
    engine.abort(second.id if first.in_flight else first.id)
    outputs += run(engine)
    for request in (first, second):
        got = [t for each in outputs if each.request is request for t in each.token_ids]
        if request.finish_reason != "abort":
            assert got == request.output_ids
            assert len(got) == 20


def test_a_pass_that_fails_ends_its_requests_and_no_other() -> None:
    engine = engine_of(passes=2, max_sequences=4)
    model = engine.runner.model
    added = [engine.add([i, i + 1], PARAMS) for i in range(4)]
    engine.step()

    def explode(batch: Batch) -> None:
        model.before_forward = lambda batch: None
        raise RuntimeError("a kernel failed")

    model.before_forward = explode
    run(engine)
    failed = [each for each in added if each.finish_reason == "error"]
    assert 0 < len(failed) < 4
    other = engine_of()
    expected = [other.add([i, i + 1], PARAMS) for i in range(4)]
    run(other)
    for request, alone in zip(added, expected, strict=True):
        if request not in failed:
            assert outcomes([request]) == outcomes([alone])


def test_streams_are_spread_over_the_passes() -> None:
    engine = engine_of(passes=4, max_sequences=16, max_batch_tokens=128)
    for i in range(16):
        engine.add([i], SamplingParams(max_tokens=40, seed=i))
    for _ in range(40):
        engine.step()
    sizes = [len(batch.tokens) for batch in engine.runner.model.batches[-12:]]
    assert sizes == [4] * 12


def test_one_long_prompt_fills_all_passes() -> None:
    engine = engine_of(passes=4, max_batch_tokens=128)
    engine.add(random_prompt(np.random.default_rng(0), 400), PARAMS)
    engine.step()
    assert engine.runner.most == 4
    assert {len(batch.tokens) for batch in engine.runner.model.batches} == {32}
