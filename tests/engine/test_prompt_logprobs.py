"""A prompt's own log-probabilities: each token's, by the logits of all before it."""

from __future__ import annotations

import numpy as np
import pytest
from prefix_model import PrefixModel, make_engine, random_prompt, run

from dure.engine.request import Request, SamplingParams
from dure.engine.scheduler import MAX_SCORED

PROMPT = random_prompt(np.random.default_rng(4), 150)


def scored(prompt: list[int], **options: int) -> Request:
    engine = make_engine(**options)
    request = engine.add(prompt, SamplingParams(max_tokens=3, prompt_logprobs=2, seed=1))
    run(engine)
    return request


def test_each_token_is_scored_by_the_logits_of_all_before_it() -> None:
    request = scored(PROMPT)
    first, *others = request.prompt_logprobs
    assert (None, len(PROMPT) - 1) == (first, len(others))
    for position, entry in enumerate(others):
        engine = make_engine()
        before = engine.add(PROMPT[: position + 1], SamplingParams(max_tokens=1, logprobs=2))
        run(engine)
        assert entry is not None
        assert before.logprobs[0].top == entry.top
        assert PROMPT[position + 1] == entry.token_id


@pytest.mark.parametrize("budget", [1, 7, 32, 512])
def test_scores_do_not_depend_on_chunks_company_or_what_is_cached(budget: int) -> None:
    expected = scored(PROMPT)
    engine = make_engine(max_batch_tokens=budget, num_blocks=24)
    for length in (150, 90, 40):
        engine.add(PROMPT[:length], SamplingParams(max_tokens=20))
    for _ in range(12):
        engine.step()
    params = SamplingParams(max_tokens=3, prompt_logprobs=2, seed=1)
    requests = [engine.add(PROMPT, params) for _ in range(2)]
    run(engine)
    for request in requests:
        assert expected.prompt_logprobs == request.prompt_logprobs
        assert expected.output_ids == request.output_ids


def test_no_step_scores_more_rows_than_there_is_memory_for() -> None:
    engine = make_engine(max_batch_tokens=512)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    requests = [engine.add(random_prompt(np.random.default_rng(n), 200), params) for n in range(3)]
    run(engine)
    assert all(len(request.prompt_logprobs) == 200 for request in requests)
    assert max(len(batch.logit_rows) for batch in engine.runner.model.batches) <= MAX_SCORED + 3


def test_of_several_choices_the_first_scores_the_prompt() -> None:
    engine = make_engine()
    first = engine.add(PROMPT[:9], SamplingParams(max_tokens=2, n=2, prompt_logprobs=0))
    run(engine)
    assert [9, 0] == [len(choice.prompt_logprobs) for choice in first.choices]


@pytest.mark.parametrize("length", [1, 2, 32, 33])
def test_a_short_prompt_is_scored_and_answered(length: int) -> None:
    request = scored(PROMPT[:length])
    assert (length, 3) == (len(request.prompt_logprobs), len(request.output_ids))


def test_a_preempted_prompt_keeps_its_scores() -> None:
    expected = scored(PROMPT[:90])
    engine = make_engine(PrefixModel(), num_blocks=6, max_batch_tokens=40)
    engine.add([1, 2, 3], SamplingParams(max_tokens=120))
    engine.step()
    request = engine.add(PROMPT[:90], SamplingParams(max_tokens=60, prompt_logprobs=2, seed=1))
    run(engine)
    assert request.num_preemptions > 0
    assert expected.prompt_logprobs == request.prompt_logprobs


def test_scores_are_of_the_raw_logits() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, repetition_penalty=2.0, seed=1)
    request = engine.add(PROMPT[:5], params)
    run(engine)
    plain = scored(PROMPT[:5])
    for with_penalty, without in zip(
        request.prompt_logprobs[1:], plain.prompt_logprobs[1:], strict=True
    ):
        assert with_penalty is not None
        assert without is not None
        assert with_penalty.logprob == without.logprob
