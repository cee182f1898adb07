"""A smaller model that guesses: with the same model as its own draft, every guess is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from prefix_model import VOCAB_SIZE, PrefixModel, StateModel, random_prompt, run

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.engine.sampler import Sampler
from dure.engine.spec_decode.draft import StepResult
from dure.engine.spec_decode.draft_model import MAX_ROWS, DraftModel
from dure.errors import InvalidRequestError
from dure.kernels import sampling_reference

RNG = np.random.default_rng(21)


class Always:
    """Takes all that a draft model guesses, up to six tokens."""

    max_drafts = 6

    def __init__(self, source: DraftModel) -> None:
        self.source = source

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        drafts = self.source.propose(requests, limits, lambda place, kinds: True)
        for draft, limit in zip(drafts, limits, strict=True):
            assert len(draft.token_ids) == len(draft.kinds) <= limit
        return [draft.token_ids for draft in drafts]

    def observe(self, step: StepResult) -> None:
        self.source.observe(step, wanted=True)

    def forget(self, request: Request) -> None:
        self.source.forget(request)


class Other(PrefixModel):
    """A model whose logits often have another peak."""

    def forward(self, batch, cache):
        logits = super().forward(batch, cache)
        logits[:, ::3] -= 1.5
        return logits


def engine_of(draft: PrefixModel | None, *, num_blocks: int = 64, context: int = 512) -> Engine:
    target = PrefixModel(context)
    runner = ModelRunner(target, num_blocks=num_blocks, draft_model=draft)
    sampler = Sampler(sampling_reference)
    return Engine(
        runner,
        max_batch_tokens=64,
        max_sequences=8,
        sampling=sampling_reference,
        drafter=None if draft is None else Always(DraftModel(runner, sampler)),
    )


PARAMS = [
    SamplingParams(max_tokens=40, temperature=0),
    SamplingParams(max_tokens=33, temperature=1, seed=3),
    SamplingParams(max_tokens=37, temperature=0.8, seed=4, top_k=20, top_p=0.9),
    SamplingParams(max_tokens=20, temperature=1.3, seed=5, min_p=0.02, logprobs=2),
]


def answers(
    engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams] = PARAMS
) -> list[Request]:
    requests = [engine.add(p, params[i % 4]) for i, p in enumerate(prompts)]
    run(engine)
    return requests


def test_a_model_guesses_all_that_it_would_say_itself() -> None:
    """At any temperature: a guess is drawn with the random number of the draw that it guesses."""
    prompts = [random_prompt(RNG, int(n)) for n in (1, 20, 31, 32, 33, 70)]
    expected = answers(engine_of(None), prompts)
    engine = engine_of(PrefixModel())
    actual = answers(engine, prompts)
    assert [r.output_ids for r in actual] == [r.output_ids for r in expected]
    assert [r.logprobs for r in actual] == [r.logprobs for r in expected]
    assert engine.stats.drafted_tokens > 100
    assert engine.stats.accepted_tokens == engine.stats.drafted_tokens


@pytest.mark.parametrize("blocks", [64, 8])
def test_its_cache_outlasts_wrong_guesses_and_is_found_with_prefixes(blocks: int) -> None:
    shared = random_prompt(RNG, 45)
    prompts = [shared + random_prompt(RNG, int(n)) for n in (1, 5, 19, 20, 40)]
    expected = answers(engine_of(None), prompts)
    wrong = engine_of(Other(), num_blocks=blocks)
    actual = answers(wrong, prompts)
    assert [r.output_ids for r in actual] == [r.output_ids for r in expected]
    assert 0 < wrong.stats.accepted_tokens < wrong.stats.drafted_tokens
    right = engine_of(PrefixModel(), num_blocks=blocks)
    for _ in range(2):
        actual = answers(right, prompts)
        assert [r.output_ids for r in actual] == [r.output_ids for r in expected]
    assert right.stats.cached_tokens > 300
    assert right.stats.accepted_tokens == right.stats.drafted_tokens
    assert right.pool.num_free == blocks


def test_its_cache_outlasts_preemption() -> None:
    prompts = [random_prompt(RNG, 28) for _ in range(4)]
    params = [SamplingParams(max_tokens=80, temperature=1, seed=i) for i in range(4)]
    expected = answers(engine_of(None), prompts, params)
    engine = engine_of(PrefixModel(), num_blocks=8)
    for _ in range(3):
        actual = answers(engine, prompts, params)
        assert [r.output_ids for r in actual] == [r.output_ids for r in expected]
    assert engine.stats.preemptions > 0
    assert engine.stats.accepted_tokens == engine.stats.drafted_tokens > 300


def test_a_long_prompt_is_caught_up_with_in_pieces() -> None:
    draft = PrefixModel(4 * MAX_ROWS)
    engine = engine_of(draft, context=4 * MAX_ROWS)
    prompt = random_prompt(RNG, 2 * MAX_ROWS + 100)
    (request,) = answers(engine, [prompt])
    assert max(len(batch.tokens) for batch in draft.batches) == MAX_ROWS
    assert request.num_accepted_tokens == request.num_drafted_tokens > 0


def test_nothing_is_guessed_beyond_the_drafts_own_context() -> None:
    engine = engine_of(PrefixModel(60))
    (request,) = answers(engine, [random_prompt(RNG, 50)])
    assert len(request.output_ids) == 40
    assert 0 < request.num_drafted_tokens < 12


def test_a_smaller_vocabulary_guesses_only_its_own() -> None:
    class Small(PrefixModel):
        vocab_size = VOCAB_SIZE // 2

        def forward(self, batch, cache):
            return np.ascontiguousarray(super().forward(batch, cache)[:, : VOCAB_SIZE // 2])

    engine = engine_of(Small())
    expected = answers(engine_of(None), [[1, 2, 3]])
    assert answers(engine, [[1, 2, 3]])[0].output_ids == expected[0].output_ids


def test_a_recurrent_model_cannot_draft() -> None:
    with pytest.raises(InvalidRequestError, match="cannot draft: its state"):
        ModelRunner(PrefixModel(), num_blocks=8, num_states=2, draft_model=StateModel())
