"""Guessed tokens: whatever is guessed, an answer is the same, and every block comes back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from prefix_model import VOCAB_SIZE, PrefixModel, StateModel, make_engine, random_prompt, run

from dure.engine.request import Request, SamplingParams
from dure.engine.spec_decode.draft import StepResult

RNG = np.random.default_rng(11)


class Oracle:
    """Guesses the `answer` that is known already, wrong in a given share of tokens."""

    max_drafts = 12

    def __init__(self, answers: dict[tuple[int, ...], list[int]], wrong: float) -> None:
        self.answers, self.wrong = answers, wrong
        self.rng = np.random.default_rng(3)
        self.steps: list[StepResult] = []
        self.forgotten: list[Request] = []

    def guess(self, request: Request, limit: int) -> Sequence[int]:
        done = len(request.output_ids)
        wanted = int(self.rng.integers(0, limit + 3))  # more than asked for is cut
        guessed = self.answers[request.prompt_ids][done : done + wanted]
        return [
            (token + 1) % VOCAB_SIZE if self.rng.random() < self.wrong else token
            for token in guessed
        ]

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> Sequence[Sequence[int]]:
        assert rows >= len(requests)
        for request, limit in zip(requests, limits, strict=True):
            assert len(request.block_table) * 32 > request.num_computed_tokens + limit
        return [self.guess(each, limit) for each, limit in zip(requests, limits, strict=True)]

    def observe(self, step: StepResult) -> None:
        self.steps.append(step)

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)


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
@pytest.mark.parametrize("model", [PrefixModel, StateModel])
def test_answers_and_logprobs_are_the_same_with_any_drafts(
    wrong: float, blocks: int, model: type[PrefixModel]
) -> None:
    asked = list(zip(prompts(), PARAMS, strict=True))
    plain = make_engine(model())
    expected = [plain.add(ids, params) for ids, params in asked]
    run(plain)
    oracle = Oracle({each.prompt_ids: each.output_ids for each in expected}, wrong)
    engine = make_engine(model(), drafter=oracle, num_blocks=blocks, max_batch_tokens=40)
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
    assert set(oracle.forgotten) == set(actual)
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
    oracle.max_drafts = 40
    oracle.guess = lambda request, limit: [0] * limit  # type: ignore[method-assign]
    request = engine.add(random_prompt(RNG, 20), SamplingParams(max_tokens=5, temperature=0))
    while engine.has_work:
        engine.step()
        if not request.is_finished:
            needed = -(-request.num_computed_tokens // 32)
            assert needed <= len(request.block_table) <= needed + 1
    assert engine.pool.num_free == 4


def test_what_a_step_made_of_the_rows_is_told() -> None:
    plain = make_engine()
    expected = plain.add(random_prompt(RNG, 45), SamplingParams(max_tokens=30, temperature=0))
    run(plain)
    oracle = Oracle({expected.prompt_ids: expected.output_ids}, 0.3)
    engine = make_engine(drafter=oracle, max_batch_tokens=16)
    engine.add(expected.prompt_ids, expected.params)
    run(engine)
    told, positions = [], []
    for step in oracle.steps:
        (one,) = step.verified
        assert one.first_row == 0
        assert step.rows >= one.count
        assert step.seconds >= 0
        told += one.token_ids
        positions += range(one.start, one.start + one.count)
    assert told == expected.output_ids
    assert positions == list(range(45 + 30 - 1))  # each once: wrong rows do not count


@pytest.mark.parametrize("model", [PrefixModel, StateModel])
def test_whoever_watches_sees_each_token_before_the_next_is_drawn(model: type[PrefixModel]) -> None:
    """As a budget of thoughts does: after three sevens the next tokens are forced."""
    prompt, params = random_prompt(RNG, 20), SamplingParams(max_tokens=60, seed=4, temperature=1)

    def answer(drafter: Oracle | None) -> list[int]:
        engine = make_engine(model(), drafter=drafter)
        request = engine.add(prompt, params)
        seen: list[int] = []

        def watch(token_id: int, logprobs: object) -> bool:
            seen.append(token_id)
            if token_id % 8 == 7 and not request.forced_tokens:
                engine.force_tokens(request.id, [1, 2, 3])
            return True

        if drafter is not None:
            request.watch = watch
        while engine.has_work:
            before = len(seen)
            for output in engine.step():
                for token in output.token_ids[len(seen) - before :]:
                    watch(token, None)
        assert seen == request.output_ids
        return request.output_ids

    expected = answer(None)
    assert any(expected[i : i + 3] == [1, 2, 3] for i in range(58))
    assert answer(Oracle({tuple(prompt): expected}, 0.0)) == expected
    assert answer(Oracle({tuple(prompt): expected}, 0.3)) == expected


@pytest.mark.parametrize("model", [PrefixModel, StateModel])
def test_a_watcher_may_end_the_request_in_the_midst_of_a_step(model: type[PrefixModel]) -> None:
    prompt, params = random_prompt(RNG, 20), SamplingParams(max_tokens=40, temperature=0)
    plain = make_engine(model())
    expected = plain.add(prompt, params)
    run(plain)
    oracle = Oracle({}, 0.0)
    oracle.guess = lambda request, limit: expected.output_ids[len(request.output_ids) :][:limit]  # type: ignore[method-assign]
    engine = make_engine(model(), drafter=oracle)
    request = engine.add(prompt, params)

    def watch(token_id: int, logprobs: object) -> bool:
        if len(request.output_ids) == 17:
            engine.finish(request.id)
            return False
        return True

    request.watch = watch
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert request.finish_reason == outputs[-1].finish_reason == "stop"
    assert request.output_ids == expected.output_ids[:17]
    assert engine.pool.num_free == 64


def test_snapshots_stay_where_nothing_is_guessed() -> None:
    """A state to go back to takes a snapshot's slot, so only tried guesses have one."""
    prompts = [random_prompt(RNG, 40) for _ in range(2)]
    params = SamplingParams(max_tokens=30, temperature=0)

    def cached(drafter: Oracle | None) -> list[int]:
        engine = make_engine(StateModel(), drafter=drafter, max_sequences=2, num_states=8)
        found = []
        for prompt in [*prompts, *prompts]:
            found.append(engine.add(prompt, params))
            run(engine)
        return [request.num_cached_tokens for request in found]

    silent = Oracle({}, 0.0)
    silent.guess = lambda request, limit: []  # type: ignore[method-assign]
    assert cached(silent) == cached(None)
    assert cached(None)[2:] == [32, 32]
