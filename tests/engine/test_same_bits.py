"""A request's tokens and log-probabilities are the same bits whatever happens around it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from prefix_model import PrefixModel, make_engine, random_prompt, run

from dure.engine.request import Request, SamplingParams

PARAMS = SamplingParams(
    max_tokens=40,
    temperature=0.8,
    top_k=30,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    logit_bias={5: 2.0},
    seed=77,
    logprobs=4,
)
PROMPT = random_prompt(np.random.default_rng(0), 83)


def result(request: Request) -> tuple[Any, ...]:
    """All that a caller gets; floats compare bit for bit."""
    return tuple(request.output_ids), tuple(request.logprobs), request.finish_reason


@cache
def alone() -> tuple[Any, ...]:
    engine = make_engine(max_batch_tokens=512)
    request = engine.add(PROMPT, PARAMS)
    run(engine)
    assert (len(set(engine.runner.model.batches[0].sequences)), request.num_cached_tokens) == (1, 0)
    return result(request)


def add_stranger(engine: Any, rng: np.random.Generator) -> Request:
    """A batch mate: a part of the prompt and then something else, or nothing in common."""
    shared = int(rng.integers(0, len(PROMPT) + 1)) if rng.random() < 0.6 else 0
    prompt = PROMPT[:shared] + random_prompt(rng, int(rng.integers(1, 60)))
    return engine.add(prompt, SamplingParams(max_tokens=int(rng.integers(1, 40))))


@pytest.mark.parametrize("composition", range(25))
def test_tokens_and_logprobs_are_the_same_in_any_company(composition: int) -> None:
    rng = np.random.default_rng(composition)
    engine = make_engine(
        num_blocks=int(rng.integers(5, 24)),
        max_batch_tokens=int(rng.choice([1, 2, 7, 32, 33, 100, 512])),
        max_sequences=int(rng.integers(1, 9)),
    )
    strangers = [add_stranger(engine, rng) for _ in range(rng.integers(0, 6))]
    for _ in range(rng.integers(0, 12)):
        engine.step()
    requests = [engine.add(PROMPT, PARAMS) for _ in range(rng.integers(1, 3))]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
        if rng.random() < 0.1 and len(strangers) < 20:
            strangers.append(add_stranger(engine, rng))
        if rng.random() < 0.05 and strangers:
            engine.abort(strangers[int(rng.integers(len(strangers)))].id)
    expected = alone()
    assert [expected] * len(requests) == [result(request) for request in requests]


def test_the_compositions_above_do_meet_preemption_chunks_company_and_prefix_hits() -> None:
    """One that surely has all four, so that they cannot quietly become easy."""
    engine = make_engine(num_blocks=8, max_batch_tokens=33)
    engine.add([*PROMPT[:70], 1], SamplingParams(max_tokens=1))
    run(engine)
    engine.add([1, 2, 3], SamplingParams(max_tokens=220, seed=1))
    for _ in range(100):
        engine.step()
    request = engine.add(PROMPT, PARAMS)
    run(engine)
    sizes = [np.bincount(batch.sequences) for batch in engine.runner.model.batches]
    assert max(map(len, sizes)) > 1
    assert any(1 < size[-1] < len(PROMPT) for size in sizes)
    assert request.num_cached_tokens == 70
    assert request.num_preemptions > 0
    assert alone() == result(request)


def test_a_preempted_request_keeps_its_output_and_goes_on_as_if_nothing_had_been() -> None:
    rng = np.random.default_rng(4)
    prompts = [random_prompt(rng, 30) for _ in range(3)]
    params = [SamplingParams(max_tokens=100, seed=i, logprobs=1) for i in range(3)]
    expected = []
    for prompt, param in zip(prompts, params, strict=True):
        engine = make_engine()
        request = engine.add(prompt, param)
        run(engine)
        expected.append(result(request))
    engine = make_engine(num_blocks=5)
    requests = [engine.add(*pair) for pair in zip(prompts, params, strict=True)]
    before: dict[str, int] = {}
    while engine.has_work:
        engine.step()
        for request in requests:
            assert before.get(request.id, 0) <= len(request.output_ids)
            before[request.id] = len(request.output_ids)
    assert requests[0].num_preemptions == 0
    assert requests[2].num_preemptions > 0
    assert engine.stats.preemptions == sum(request.num_preemptions for request in requests)
    assert expected == [result(request) for request in requests]


def test_float32_and_float16_caches_agree_where_the_values_are_exact() -> None:
    engine = make_engine(PrefixModel(), cache_dtype="f32")
    request = engine.add(PROMPT, PARAMS)
    run(engine)
    assert engine.runner.storage.arrays[0].dtype == np.float32
    assert alone() == result(request)
