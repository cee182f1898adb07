"""Recurrent states: held, copied, found again where a snapshot was kept, and never lost."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from prefix_model import StateModel, make_engine, random_prompt, run

from dure.engine.block_pool import root_digest
from dure.engine.engine import Engine
from dure.engine.request import Request, SamplingParams
from dure.engine.states import StatePool

RNG = np.random.default_rng(3)
ROOT = root_digest("", "model")
ONE = SamplingParams(max_tokens=1, temperature=0)


def engine_of(**options: Any) -> Engine:
    return make_engine(StateModel(), **options)


def added(engine: Engine, prompt: list[int], params: SamplingParams = ONE) -> Request:
    """The finished request."""
    request = engine.add(prompt, params)
    run(engine)
    return request


def fresh(prompt: list[int], params: SamplingParams) -> list[int]:
    return added(engine_of(), prompt, params).output_ids


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100])
def test_a_repeated_prompt_goes_on_from_its_last_full_block(length: int) -> None:
    engine = engine_of(max_batch_tokens=40)
    prompt = random_prompt(RNG, length)
    params = SamplingParams(max_tokens=5, seed=1, logprobs=2)
    first, again = added(engine, prompt, params), added(engine, prompt, params)
    assert again.num_cached_tokens == (length - 1) // 32 * 32
    assert (first.output_ids, first.logprobs) == (again.output_ids, again.logprobs)


@pytest.mark.parametrize(("prompt_length", "output_length"), [(3, 1), (31, 9), (40, 24), (70, 50)])
def test_a_second_turn_computes_only_what_is_new(prompt_length: int, output_length: int) -> None:
    engine = engine_of()
    prompt = random_prompt(RNG, prompt_length)
    first = added(engine, prompt, SamplingParams(max_tokens=output_length, seed=1))
    turn = [*prompt, *first.output_ids, *random_prompt(RNG, 9)]
    second = added(engine, turn)
    assert second.num_cached_tokens == prompt_length + output_length - 1
    assert second.output_ids == fresh(turn, ONE)


def test_where_a_prompt_parts_from_an_earlier_one_a_snapshot_is_kept_for_the_third() -> None:
    engine = engine_of(max_batch_tokens=50)
    system = random_prompt(RNG, 70)
    questions = [[*system, index, *random_prompt(RNG, 60)] for index in range(3)]
    cached = []
    for question in questions:
        request = added(engine, question)
        cached.append(request.num_cached_tokens)
        assert request.output_ids == fresh(question, ONE)
    assert cached == [0, 0, 64]


def test_choices_of_a_prompt_compute_only_its_last_part_again() -> None:
    engine = engine_of(max_batch_tokens=512)
    request = engine.add(random_prompt(RNG, 70), SamplingParams(max_tokens=3, n=4, seed=1))
    run(engine)
    assert [choice.num_cached_tokens for choice in request.choices] == [0, 64, 64, 64]


def test_another_salt_finds_no_state() -> None:
    engine = engine_of()
    prompt = random_prompt(RNG, 100)
    added(engine, prompt)
    request = engine.add(prompt, ONE, cache_salt="tenant")
    run(engine)
    assert request.num_cached_tokens == 0


@pytest.mark.parametrize("num_states", [1, 2, 3])
def test_few_slots_mean_fewer_requests_at_once_and_the_same_tokens(num_states: int) -> None:
    engine = engine_of(num_states=num_states)
    prompts = [random_prompt(RNG, 40) for _ in range(5)]
    params = SamplingParams(max_tokens=20, seed=1)
    requests = [engine.add(prompt, params) for prompt in prompts]
    run(engine)
    widest = max(len(set(batch.sequences)) for batch in engine.runner.model.batches)
    assert widest <= num_states
    assert [r.output_ids for r in requests] == [fresh(prompt, params) for prompt in prompts]


PARAMS = SamplingParams(max_tokens=40, temperature=0.8, seed=77, logprobs=4)
PROMPT = random_prompt(np.random.default_rng(0), 83)


@cache
def alone() -> Request:
    """The request in an engine of its own."""
    return added(engine_of(max_batch_tokens=512), PROMPT, PARAMS)


@pytest.mark.parametrize("composition", range(25))
def test_tokens_and_logprobs_are_the_same_in_any_company(composition: int) -> None:
    rng = np.random.default_rng(composition)
    engine = engine_of(
        num_blocks=int(rng.integers(5, 24)),
        max_batch_tokens=int(rng.choice([1, 2, 7, 32, 33, 100, 512])),
        max_sequences=int(rng.integers(1, 9)),
        num_states=int(rng.integers(1, 12)),
    )

    def stranger() -> Request:
        shared = int(rng.integers(0, len(PROMPT) + 1)) if rng.random() < 0.6 else 0
        prompt = PROMPT[:shared] + random_prompt(rng, int(rng.integers(1, 60)))
        return engine.add(prompt, SamplingParams(max_tokens=int(rng.integers(1, 40))))

    strangers = [stranger() for _ in range(rng.integers(0, 6))]
    for _ in range(rng.integers(0, 12)):
        engine.step()
    requests = [engine.add(PROMPT, PARAMS) for _ in range(rng.integers(1, 3))]
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
        if rng.random() < 0.1 and len(strangers) < 20:
            strangers.append(stranger())
        if rng.random() < 0.05 and strangers:
            engine.abort(strangers[int(rng.integers(len(strangers)))].id)
    expected = alone().output_ids, alone().logprobs
    for request in requests:
        assert expected == (request.output_ids, request.logprobs)
    assert engine.states.num_free == engine.states.num_slots


def test_a_preempted_request_goes_on_from_the_state_it_had() -> None:
    prompts = [random_prompt(RNG, 30) for _ in range(3)]
    params = SamplingParams(max_tokens=100, seed=1)
    engine = engine_of(num_blocks=7)
    requests = [engine.add(prompt, params) for prompt in prompts]
    run(engine)
    assert engine.stats.preemptions > 0
    assert [r.output_ids for r in requests] == [fresh(prompt, params) for prompt in prompts]
    # Blocks that were reused meanwhile are computed again, but not everything.
    assert engine.stats.computed_tokens < 3 * 130 + engine.stats.preemptions * 130


def test_a_failed_pass_leaves_no_state_that_can_be_found() -> None:
    engine = engine_of(max_batch_tokens=40)
    prompt = random_prompt(RNG, 100)
    params = SamplingParams(max_tokens=6, seed=1)
    engine.add(prompt, params)
    engine.step()

    def explode(batch: object) -> None:
        raise ValueError("kernel says no")

    engine.runner.model.before_forward = explode
    engine.step()
    engine.runner.model.before_forward = lambda batch: None
    assert engine.states.num_free == engine.states.num_slots
    again = added(engine, prompt, params)
    assert (again.num_cached_tokens, again.output_ids) == (0, fresh(prompt, params))


def test_a_row_of_bad_logits_takes_its_snapshots_with_it() -> None:
    engine = engine_of()
    prompt = random_prompt(RNG, 70)
    added(engine, prompt)
    bad = engine.add(prompt, SamplingParams(max_tokens=4, seed=3))

    def poison(batch: object, logits: np.ndarray) -> None:
        logits[0, 17] = np.nan

    engine.runner.model.change_logits = poison
    run(engine)
    engine.runner.model.change_logits = lambda batch, logits: None
    assert (bad.finish_reason, bad.num_cached_tokens) == ("error", 64)
    assert added(engine, prompt).num_cached_tokens == 0


def test_a_leaked_state_is_noticed() -> None:
    engine = engine_of()
    added(engine, [1, 2, 3])
    engine.states.allocate()
    with pytest.raises(RuntimeError, match="recurrent states leaked"):
        engine.check_idle()


def test_a_model_without_states_has_no_slots() -> None:
    engine = make_engine()
    assert not engine.states
    added(engine, [1, 2, 3])
    assert all(batch.states is None for batch in engine.runner.model.batches)


def test_the_least_recently_used_snapshot_goes_first_and_empty_slots_before_it() -> None:
    pool = StatePool(3)
    for token in (1, 2, 3):
        pool.publish(pool.allocate(), ROOT, [token])
    assert pool.find(ROOT, [2, 5]) == (1, 1)
    pool.release(pool.allocate(1))  # a copy of 2's state takes the place of 1's
    assert [pool.find(ROOT, [token])[0] for token in (1, 2, 3)] == [-1, 1, 2]
    assert pool.allocate() == 0  # which nobody can find anything in
    assert pool.allocate() == 2
    assert [pool.find(ROOT, [token])[0] for token in (1, 2, 3)] == [-1, 1, -1]


def test_the_longest_snapshot_that_fits_is_found_and_an_equal_one_kept_once() -> None:
    pool = StatePool(4)
    for tokens in ([], [1], [1, 2], [1, 2]):
        pool.publish(pool.allocate(), ROOT, tokens)
    assert pool.find(ROOT, [1, 2, 3]) == (2, 2)
    assert pool.find(ROOT, [1, 3]) == (1, 1)
    assert pool.find(ROOT, [3]) == (0, 0)
    assert pool.find(b"other", [1]) == (-1, 0)
    assert pool.allocate() == 3
    pool.forget([ROOT])
    assert pool.find(ROOT, [1, 2, 3]) == (-1, 0)


def test_a_copy_is_told_once_and_the_only_slot_is_taken_over_in_place() -> None:
    pool = StatePool(2)
    slot = pool.allocate()
    pool.publish(slot, ROOT, [1])
    copy = pool.allocate(slot)
    assert copy != slot
    assert pool.take_copies() == ((slot, copy),)
    assert pool.allocate(slot) == slot
    assert pool.take_copies() == ()
