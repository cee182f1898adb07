"""Guessed tokens: whatever is guessed, an answer is the same, and every block comes back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from prefix_model import VOCAB_SIZE, StateModel, make_engine, random_prompt, run

from dure.engine.request import Request, SamplingParams

RNG = np.random.default_rng(11)


class Oracle:
    """Guesses the `answer` that is known already, wrong in a given share of tokens."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], wrong: float) -> None:
        self.answers, self.wrong = answers, wrong
        self.rng = np.random.default_rng(3)

    def propose(self, request: Request, limit: int) -> Sequence[int]:
        done = len(request.output_ids)
        wanted = int(self.rng.integers(0, limit + 3))  # more than asked for is cut
        guessed = self.answers[request.prompt_ids][done : done + wanted]
        return [
            (token + 1) % VOCAB_SIZE if self.rng.random() < self.wrong else token
            for token in guessed
        ]


def prompts() -> list[list[int]]:
    shared = random_prompt(RNG, 40)
    return [shared + random_prompt(RNG, int(n)) for n in (1, 9, 23, 24, 25, 60)]


PARAMS = [
    SamplingParams(max_tokens=70, temperature=0),
    SamplingParams(max_tokens=45, temperature=1, seed=5, logprobs=3),
    SamplingParams(max_tokens=33, temperature=0.7, seed=6, repetition_penalty=1.3),
    SamplingParams(max_tokens=50, temperature=0.9, seed=7, top_k=9, presence_penalty=0.4),
    SamplingParams(max_tokens=40, temperature=0, stop_token_ids=(7, 8), min_tokens=5),
    SamplingParams(max_tokens=20, temperature=1, seed=9, prompt_logprobs=2, logprobs=1),
]


@pytest.mark.parametrize("wrong", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("blocks", [64, 14])
def test_answers_and_logprobs_are_the_same_with_any_drafts(wrong: float, blocks: int) -> None:
    asked = list(zip(prompts(), PARAMS, strict=True))
    plain = make_engine()
    expected = [plain.add(ids, params) for ids, params in asked]
    run(plain)
    oracle = Oracle({each.prompt_ids: each.output_ids for each in expected}, wrong)
    engine = make_engine(drafter=oracle, num_blocks=blocks, max_batch_tokens=40)
    actual = [engine.add(ids, params) for ids, params in asked]
    outputs = run(engine)
    for before, after in zip(expected, actual, strict=True):
        assert before.output_ids == after.output_ids
        assert before.finish_reason == after.finish_reason
        assert before.logprobs == after.logprobs
        assert before.prompt_logprobs == after.prompt_logprobs
        told = [token for o in outputs if o.request is after for token in o.token_ids]
        assert told == after.output_ids
    assert engine.pool.num_free == blocks
    stats = engine.stats
    assert stats.drafted_tokens > 0
    assert (stats.accepted_tokens > 0) == (wrong < 1)
    assert stats.drafted_tokens == sum(each.num_drafted_tokens for each in actual)
    assert stats.accepted_tokens == sum(each.num_accepted_tokens for each in actual)
    if wrong == 0:
        assert stats.accepted_tokens >= stats.drafted_tokens * 0.9  # all but those behind an end
        assert engine.stats.steps < plain.stats.steps


def test_a_wrong_draft_that_fills_a_block_gives_it_back() -> None:
    oracle = Oracle({}, 1.0)
    engine = make_engine(drafter=oracle, num_blocks=4)
    oracle.propose = lambda request, limit: [0] * min(limit, 40)  # type: ignore[method-assign]
    request = engine.add(random_prompt(RNG, 20), SamplingParams(max_tokens=5, temperature=0))
    while engine.has_work:
        engine.step()
        if not request.is_finished:
            needed = -(-request.num_computed_tokens // 32)
            assert needed <= len(request.block_table) <= needed + 1
    assert engine.pool.num_free == 4


def test_a_model_with_states_is_never_asked_to_take_one_back() -> None:
    class Never:
        def propose(self, request: Request, limit: int) -> Sequence[int]:
            raise AssertionError("asked for a draft")

    engine = make_engine(StateModel(), drafter=Never())
    engine.add([1, 2, 3], SamplingParams(max_tokens=4, temperature=0))
    run(engine)
