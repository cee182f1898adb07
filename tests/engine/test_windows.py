"""Layers with a window keep what it sees and no more, and no answer can tell."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from prefix_model import PrefixModel, make_engine, random_prompt, run
from test_spec_decode import Oracle

from dure.batch import BLOCK_SIZE, KVCacheSpec, StateSpec
from dure.engine.engine import Engine
from dure.engine.request import Request, SamplingParams
from dure.engine.windows import window_span
from dure.errors import InvalidRequestError

RNG = np.random.default_rng(21)
ONE = SamplingParams(max_tokens=1, temperature=0)


class WindowModel(PrefixModel):
    """A PrefixModel whose second layer sees `window` tokens; None: its whole past."""

    def __init__(self, window: int | None, context_length: int = 8192) -> None:
        super().__init__(context_length)
        kind = "window" if window else "gqa"
        second = KVCacheSpec(kind, 2, 3, window=window)
        self.window = window or 1  # of no matter
        self.kv_cache_specs: tuple[KVCacheSpec | StateSpec, ...] = (
            PrefixModel.kv_cache_specs[0],
            second,
        )


def engine_of(window: int | None, **options: Any) -> Engine:
    return make_engine(WindowModel(window), **options)


def added(engine: Engine, prompt: list[int], params: SamplingParams = ONE) -> Request:
    """The finished request."""
    request = engine.add(prompt, params)
    run(engine)
    return request


@cache
def _whole_past(prompt: tuple[int, ...], params: SamplingParams) -> tuple[Any, Any]:
    request = added(engine_of(None, max_batch_tokens=512, num_blocks=256), list(prompt), params)
    return request.output_ids, request.logprobs


def fresh(prompt: list[int], params: SamplingParams) -> tuple[Any, Any]:
    """What comes out where every layer keeps its whole past."""
    return _whole_past(tuple(prompt), params)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 34, 100])
def test_a_sequence_of_forty_windows_holds_the_blocks_of_one(window: int) -> None:
    engine = engine_of(window, num_blocks=256, max_batch_tokens=64)
    length = max(40 * window, 200)
    request = engine.add(random_prompt(RNG, length), SamplingParams(max_tokens=window + 70))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, len(request.window_blocks))
        engine.scheduler.check()
    assert request.finish_reason == "length"
    assert most <= window_span(window)
    written = np.flatnonzero(engine.runner.storage.arrays[1].reshape(256, -1).any(axis=1))
    # While a chunk of 64 runs it needs two blocks more; and two ends are kept for others.
    assert len(written) <= 3 * (window_span(window) + 1) + 2


def test_no_tokens_window_lies_in_more_blocks_than_the_span() -> None:
    for window in range(1, 200):
        lies = [position // 32 - (position + 1 - window) // 32 + 1 for position in range(500, 600)]
        assert max(lies) == window_span(window)


@pytest.mark.parametrize("composition", range(24))
def test_answers_are_those_of_the_whole_past_in_any_company(composition: int) -> None:
    rng = np.random.default_rng(composition)
    window = int(rng.choice([1, 5, 32, 33, 70]))
    blocks = int(rng.integers(5, 24))
    engine = engine_of(
        window,
        num_blocks=blocks,
        num_window_blocks=int(rng.integers(min(blocks, window_span(window)), blocks + 1)),
        max_batch_tokens=int(rng.choice([1, 2, 7, 32, 33, 100, 512])),
        max_sequences=int(rng.integers(1, 9)),
    )
    params = SamplingParams(max_tokens=40, temperature=0.8, seed=77, logprobs=4)
    whole = random_prompt(np.random.default_rng(0), 83)

    def stranger() -> Request:
        shared = int(rng.integers(0, len(whole) + 1)) if rng.random() < 0.6 else 0
        prompt = whole[:shared] + random_prompt(rng, int(rng.integers(1, 60)))
        return engine.add(prompt, SamplingParams(max_tokens=int(rng.integers(1, 40))))

    strangers = [stranger() for _ in range(rng.integers(0, 6))]
    for _ in range(rng.integers(0, 12)):
        engine.step()
    requests = [engine.add(whole, params) for _ in range(rng.integers(1, 3))]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
        if rng.random() < 0.1 and len(strangers) < 20:
            strangers.append(stranger())
        if rng.random() < 0.05 and strangers:
            engine.abort(strangers[int(rng.integers(len(strangers)))].id)
    for request in requests:
        assert (request.output_ids, request.logprobs) == fresh(whole, params)
    assert engine.windows.pool.num_free == engine.windows.pool.num_blocks


def test_few_window_blocks_preempt_and_the_first_in_turn_gets_on() -> None:
    prompts = [random_prompt(RNG, 90) for _ in range(4)]
    params = SamplingParams(max_tokens=80, seed=1)
    engine = engine_of(70, num_blocks=64, num_window_blocks=window_span(70))
    requests = [engine.add(prompt, params) for prompt in prompts]
    run(engine)
    assert requests[0].num_preemptions == 0
    expected = [fresh(prompt, params)[0] for prompt in prompts]
    assert [request.output_ids for request in requests] == expected
    tight = engine_of(70, num_blocks=64, num_window_blocks=7)
    requests = [tight.add(random_prompt(RNG, 5), params) for _ in range(4)]
    run(tight)
    assert tight.stats.preemptions > 0
    assert {request.finish_reason for request in requests} == {"length"}


@pytest.mark.parametrize("window", [8, 40])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 65, 100, 300])
def test_a_repeated_prompt_is_found_to_its_last_token(window: int, length: int) -> None:
    engine = engine_of(window, max_batch_tokens=40)
    prompt = random_prompt(RNG, length)
    params = SamplingParams(max_tokens=90, seed=1, logprobs=2)
    first, again = added(engine, prompt, params), added(engine, prompt, params)
    assert again.num_cached_tokens == length - 1
    assert (first.output_ids, first.logprobs) == (again.output_ids, again.logprobs)


def test_a_second_turn_computes_only_what_is_new_with_the_thoughts_left_out_or_not() -> None:
    engine = engine_of(40, num_blocks=256)
    prompt = random_prompt(RNG, 200)
    first = added(engine, prompt, SamplingParams(max_tokens=150, seed=1))
    whole = [*prompt, *first.output_ids, *random_prompt(RNG, 9)]
    assert added(engine, whole).num_cached_tokens == 349
    answer_only = [*prompt[:-3], *random_prompt(RNG, 60)]
    second = added(engine, answer_only)
    assert second.num_cached_tokens >= 192
    assert second.output_ids == fresh(answer_only, ONE)[0]


def test_a_long_prompt_leaves_other_prompts_their_windows() -> None:
    engine = engine_of(40, num_blocks=256, num_window_blocks=24)
    prompts = [random_prompt(RNG, 200) for _ in range(2)]
    for prompt in prompts:
        added(engine, prompt)
    added(engine, random_prompt(RNG, 5000))
    assert [added(engine, prompt).num_cached_tokens for prompt in prompts] == [199, 199]


def test_where_a_prompt_parts_from_an_earlier_one_its_window_is_kept_for_the_third() -> None:
    engine = engine_of(8, num_blocks=256)
    system = random_prompt(RNG, 101)
    questions = [[*system, index, *random_prompt(RNG, 400)] for index in range(4)]
    cached = []
    for question in questions:
        request = added(engine, question)
        cached.append(request.num_cached_tokens)
        assert request.output_ids == fresh(question, ONE)[0]
    assert (cached[0], cached[2:]) == (0, [101, 101])
    assert cached[1] < 96  # its window was used again: nobody knew that it would be wanted


def test_a_prefix_whose_window_was_reused_is_computed_again() -> None:
    engine = engine_of(40, num_blocks=256, num_window_blocks=6)
    prompt, params = random_prompt(RNG, 200), SamplingParams(max_tokens=3, seed=2)
    first = added(engine, prompt, params)
    for _ in range(3):
        added(engine, random_prompt(RNG, 100))
    again = added(engine, prompt, params)
    assert (again.num_cached_tokens, again.output_ids) == (0, first.output_ids)
    assert len(engine.pool.find(again.digests)) == 6  # its other blocks were all there


def test_choices_of_a_prompt_share_its_window() -> None:
    engine = engine_of(40, num_blocks=64, max_batch_tokens=512)
    prompt = random_prompt(RNG, 170)
    request = engine.add(prompt, SamplingParams(max_tokens=60, n=4, seed=1))
    run(engine)
    assert [choice.num_cached_tokens for choice in request.choices] == [0, 169, 169, 169]
    for choice in request.choices:
        params = SamplingParams(max_tokens=60, seed=choice.seed)
        assert choice.output_ids == fresh(prompt, params)[0]


@pytest.mark.parametrize(("wrong", "blocks"), [(0.0, 5), (0.3, 6), (1.0, 9), (0.3, 64)])
def test_drafts_take_window_blocks_and_wrong_ones_give_them_back(wrong: float, blocks: int) -> None:
    prompts = [random_prompt(RNG, length) for length in (20, 63, 95)]
    params = SamplingParams(max_tokens=45, seed=4, logprobs=1)
    expected = [fresh(prompt, params) for prompt in prompts]
    answers = {tuple(p): ids for p, (ids, _) in zip(prompts, expected, strict=True)}
    engine = engine_of(33, num_window_blocks=blocks, drafter=Oracle(answers, wrong))
    requests = [engine.add(prompt, params) for prompt in prompts]
    run(engine)
    assert [(r.output_ids, r.logprobs) for r in requests] == expected
    assert engine.stats.drafted_tokens > 0
    assert engine.windows.pool.num_free == blocks


class WindowStateModel(WindowModel):
    """With a recurrent layer, too: a prefix needs its window and its state."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.kv_cache_specs = (*self.kv_cache_specs, StateSpec(1))

    def forward(self, batch: Any, cache: Any) -> np.ndarray:
        states, count = cache[2], {}
        for position, sequence in zip(batch.positions, batch.sequences, strict=True):
            slot = batch.states.slots[sequence]
            before = count.get(slot, states[slot, 0] if position else 0.0)
            assert before == position, "the state is that of another position"
            count[slot] = before + 1
        for row, slot in batch.states.snapshots:
            states[slot] = batch.positions[row] + 1
        for slot, tokens in count.items():
            states[slot] = tokens
        return super().forward(batch, cache)


def test_a_model_with_states_and_windows_reuses_what_both_have() -> None:
    engine = make_engine(WindowStateModel(40), num_blocks=256)
    prompt, params = random_prompt(RNG, 200), SamplingParams(max_tokens=20, seed=2)
    first, again = added(engine, prompt, params), added(engine, prompt, params)
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 192)
    assert first.output_ids == again.output_ids == fresh(prompt, params)[0]


def test_a_failed_pass_leaves_no_window_that_can_be_found_and_no_nan() -> None:
    engine = engine_of(40, max_batch_tokens=64)
    prompt, params = random_prompt(RNG, 150), SamplingParams(max_tokens=4, seed=3)
    bad = engine.add(prompt, params)

    def poison(batch: object, logits: np.ndarray) -> None:
        if len(logits):
            logits[0, 17] = np.nan
            engine.runner.storage.arrays[1][:] = np.nan  # in blocks behind its window, too

    engine.runner.model.change_logits = poison
    run(engine)
    engine.runner.model.change_logits = lambda batch, logits: None
    assert bad.finish_reason == "error"
    used = np.concatenate([each.window_tables.ravel() for each in engine.runner.model.batches])
    added(engine, [1, 2, 3])
    assert len(set(used)) > 5
    assert not np.isnan(engine.runner.storage.arrays[1][used[used >= 0]]).any()
    again = added(engine, prompt, params)
    assert (again.num_cached_tokens, again.output_ids) == (0, fresh(prompt, params)[0])


def test_another_salt_finds_no_window() -> None:
    engine = engine_of(40)
    prompt = random_prompt(RNG, 100)
    added(engine, prompt)
    request = engine.add(prompt, ONE, cache_salt="tenant")
    run(engine)
    assert request.num_cached_tokens == 0


def test_a_leaked_window_block_is_noticed() -> None:
    engine = engine_of(40)
    added(engine, [1, 2, 3])
    engine.windows.pool.allocate()
    with pytest.raises(RuntimeError, match="leaked"):
        engine.check_idle()


def test_fewer_blocks_than_one_window_needs_are_refused() -> None:
    with pytest.raises(
        InvalidRequestError, match="at least 5 for a window of 128 tokens, but is 4"
    ):
        engine_of(128, num_window_blocks=4)
    assert engine_of(128, num_blocks=3, num_window_blocks=3).windows.pool.num_blocks == 3


def test_a_model_without_windows_has_no_second_table() -> None:
    engine = engine_of(None)
    added(engine, [1, 2, 3])
    assert not engine.windows
    assert all(batch.window_tables is None for batch in engine.runner.model.batches)
    assert engine.windows.pool.num_blocks == 0


def test_blocks_behind_the_window_are_not_in_the_table() -> None:
    engine = engine_of(40, max_batch_tokens=64)
    added(engine, random_prompt(RNG, 200))
    last = engine.runner.model.batches[-1]
    first = int(last.positions[0])
    assert last.window_tables is not None
    behind = (first + 1 - 40) // BLOCK_SIZE
    assert (last.window_tables[0, :behind] == -1).all()
    assert (last.window_tables[0, behind:] >= 0).all()
