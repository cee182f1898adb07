"""Whose tokens go next: budget, order, fairness, preemption, and no block lost in any storm."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prefix_model import PrefixModel, make_engine, random_prompt, run

from dure.batch import BLOCK_SIZE
from dure.engine.block_pool import blocks_for
from dure.engine.engine import Engine
from dure.engine.request import Request, RequestState, SamplingParams

RNG = np.random.default_rng(11)


def rows_per_step(engine: Engine) -> list[list[int]]:
    """For each forward pass, how many rows each of its sequences had."""
    return [np.bincount(batch.sequences).tolist() for batch in engine.runner.model.batches]


@pytest.mark.parametrize("budget", [1, 7, 32, 100])
def test_no_step_exceeds_the_token_budget_nor_wastes_it_on_a_long_prompt(budget: int) -> None:
    engine = make_engine(max_batch_tokens=budget)
    engine.add(random_prompt(RNG, 250), SamplingParams(max_tokens=1))
    run(engine)
    steps = [sum(rows) for rows in rows_per_step(engine)]
    assert [budget] * (250 // budget) + [250 % budget] * (250 % budget > 0) == steps


def test_no_step_has_more_sequences_than_allowed() -> None:
    engine = make_engine(max_sequences=3)
    for _ in range(10):
        engine.add(random_prompt(RNG, 20), SamplingParams(max_tokens=5))
    run(engine)
    assert max(len(rows) for rows in rows_per_step(engine)) == 3


def test_decode_rows_and_prompt_chunks_share_a_step() -> None:
    engine = make_engine(max_batch_tokens=16)
    decoding = engine.add([1, 2], SamplingParams(max_tokens=20))
    engine.step()
    engine.add(random_prompt(RNG, 40), SamplingParams(max_tokens=1))
    for count in range(2, 5):
        engine.step()
        assert len(decoding.output_ids) == count
    assert rows_per_step(engine)[1:] == [[1, 15], [1, 15], [1, 10]]


def test_a_running_request_gets_a_token_each_step_however_long_the_prompts_beside_it() -> None:
    engine = make_engine(max_batch_tokens=8, max_sequences=64)
    first = engine.add([1], SamplingParams(max_tokens=60))
    engine.step()
    for _ in range(9):
        engine.add(random_prompt(RNG, 100), SamplingParams(max_tokens=50))
    for count in range(2, 61):
        engine.step()
        assert len(first.output_ids) == count


def test_a_short_prompt_need_not_wait_for_the_end_of_a_long_one() -> None:
    engine = make_engine(max_batch_tokens=64)
    long = engine.add(random_prompt(RNG, 500), SamplingParams(max_tokens=1))
    short = engine.add(random_prompt(RNG, 20), SamplingParams(max_tokens=1))
    engine.step()
    assert (long.finish_reason, short.finish_reason) == (None, "length")
    assert rows_per_step(engine) == [[44, 20]]  # and what it left over went to the long one


def test_a_stream_of_short_prompts_cannot_hold_up_a_long_one() -> None:
    engine = make_engine(max_batch_tokens=64)
    long = engine.add(random_prompt(RNG, 320), SamplingParams(max_tokens=1))
    steps = 0
    while not long.is_finished:
        for _ in range(4):
            engine.add(random_prompt(RNG, 30), SamplingParams(max_tokens=1))
        engine.step()
        steps += 1
    assert steps <= 10  # at least half of every step's 64 tokens is its own


def test_requests_are_admitted_in_the_order_they_came() -> None:
    engine = make_engine(max_sequences=1)
    requests = [engine.add(random_prompt(RNG, 5), SamplingParams(max_tokens=2)) for _ in range(6)]
    finished = [o.request for o in run(engine) if o.finish_reason]
    assert requests == finished


def test_a_big_request_at_the_head_is_not_overtaken_for_ever() -> None:
    engine = make_engine(num_blocks=8)
    engine.add([1], SamplingParams(max_tokens=100))
    engine.step()
    big = engine.add(random_prompt(RNG, 240), SamplingParams(max_tokens=2))
    small = [engine.add([2], SamplingParams(max_tokens=2)) for _ in range(5)]
    order = [output.request for output in run(engine) if output.finish_reason]
    assert order.index(big) < min(order.index(request) for request in small)


def test_the_youngest_is_preempted_and_the_oldest_never() -> None:
    engine = make_engine(num_blocks=6)
    requests = [engine.add([i], SamplingParams(max_tokens=150, seed=i)) for i in range(4)]
    run(engine)
    counts = [request.num_preemptions for request in requests]
    assert counts[0] == 0
    assert sum(counts) > 0
    assert [request.finish_reason for request in requests] == ["length"] * 4


def test_admitting_a_request_leaves_a_block_for_each_that_runs() -> None:
    engine = make_engine(num_blocks=4, max_batch_tokens=512)
    first = engine.add(random_prompt(RNG, 40), SamplingParams(max_tokens=5))
    engine.step()
    second = engine.add(random_prompt(RNG, 64), SamplingParams(max_tokens=1))
    engine.step()
    assert (engine.pool.num_free, second.state) == (2, RequestState.WAITING)
    run(engine)
    assert (first.finish_reason, second.finish_reason) == ("length", "length")


def test_a_preempted_request_goes_before_those_that_came_after_it() -> None:
    engine = make_engine(num_blocks=4)
    oldest = engine.add(random_prompt(RNG, 30), SamplingParams(max_tokens=80))
    preempted = engine.add(random_prompt(RNG, 30), SamplingParams(max_tokens=80))
    engine.step()
    later = engine.add(random_prompt(RNG, 80), SamplingParams(max_tokens=1))
    order = [output.request for output in run(engine) if output.finish_reason]
    assert order == [oldest, preempted, later]
    assert preempted.num_preemptions > 0


def test_who_waited_for_a_shared_prompt_is_still_older_than_who_overtook_it() -> None:
    engine = make_engine(max_batch_tokens=64)
    prompt = random_prompt(RNG, 40)
    first = engine.add(prompt, SamplingParams(max_tokens=9))
    same = engine.add(prompt, SamplingParams(max_tokens=9))
    other = engine.add(random_prompt(RNG, 5), SamplingParams(max_tokens=9))
    engine.step()
    assert engine.scheduler.running == [first, other]
    engine.step()
    assert engine.scheduler.running == [first, same, other]


def test_a_thousand_requests_with_a_third_aborted_at_random_give_every_block_back() -> None:
    rng = np.random.default_rng(5)
    engine = make_engine(num_blocks=12, max_batch_tokens=64, max_sequences=16)
    common = random_prompt(rng, 50)
    alive: list[Request] = []
    reasons: Counter[str | None] = Counter()
    for number in range(1000):
        shared = common[: int(rng.integers(0, 51))] if rng.random() < 0.5 else []
        prompt = shared + random_prompt(rng, int(rng.integers(1, 30)))
        most = 200 if rng.random() < 0.15 else 5
        params = SamplingParams(max_tokens=int(rng.integers(1, most)), n=1 + (number % 10 == 0))
        alive.append(engine.add(prompt, params))
        doomed = rng.random() < 0.35
        for _ in range(rng.integers(0, 3)):
            engine.step()
            if doomed and rng.random() < 0.5:
                engine.abort(alive[int(rng.integers(len(alive)))].id)
        if doomed:
            engine.abort(alive[int(rng.integers(max(0, len(alive) - 8), len(alive)))].id)
        engine.scheduler.check()
        reasons.update(request.finish_reason for request in alive if request.is_finished)
        alive = [request for request in alive if not request.is_finished]
    run(engine)
    reasons.update(request.finish_reason for request in alive)
    assert (reasons.total(), reasons[None]) == (1000, 0)
    assert reasons["abort"] >= 300
    assert engine.stats.preemptions > 0
    assert engine.stats.cached_tokens > 0
    assert engine.pool.num_free == engine.pool.num_blocks == 12
    assert not engine.has_work
    engine.check_idle()


NUM_BLOCKS = 10
CONTEXT = 200


class PoolWalk(RuleBasedStateMachine):
    """Any order of adding, stepping, finishing, aborting and failing, against what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.model = PrefixModel(CONTEXT)
        self.engine = make_engine(
            self.model, num_blocks=NUM_BLOCKS, max_batch_tokens=48, max_sequences=4
        )
        self.requests: list[Request] = []
        self.expected: dict[str, list[int]] = {}

    @rule(
        prefix=st.sampled_from([0, 20, 32, 50, 64]),
        rest=st.lists(st.integers(0, 63), min_size=1, max_size=40),
        max_tokens=st.integers(1, 60),
        choices=st.sampled_from([1, 1, 3]),
        salt=st.sampled_from(["", "", "tenant"]),
    )
    def add(self, prefix: int, rest: list[int], max_tokens: int, choices: int, salt: str) -> None:
        params = SamplingParams(max_tokens=max_tokens, temperature=0, n=choices)
        request = self.engine.add([7] * prefix + rest, params, cache_salt=salt)
        self.requests += request.choices

    @precondition(lambda self: self.engine.has_work)
    @rule(steps=st.integers(1, 20))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            self.blocks_are_held_by_the_running_alone()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(self.requests)).id)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.engine.finish(data.draw(st.sampled_from(self.requests)).id)

    @precondition(lambda self: self.engine.has_work)
    @rule()
    def fail(self) -> None:
        def explode(batch: object) -> None:
            raise ValueError("broken")

        self.model.before_forward = explode
        self.engine.step()
        self.model.before_forward = lambda batch: None

    @invariant()
    def blocks_are_held_by_the_running_alone(self) -> None:
        running = [r for r in self.requests if r.state is RequestState.RUNNING]
        tables = [request.block_table for request in running]
        held = {block for table in tables for block in table}
        assert NUM_BLOCKS - len(held) == self.engine.pool.num_free
        assert all(len(set(table)) == len(table) for table in tables)
        for request, table in zip(running, tables, strict=True):
            assert request.num_computed_tokens <= len(table) * BLOCK_SIZE
            assert len(table) <= blocks_for(len(request.tokens))
            assert request.num_computed_tokens < len(request.tokens)
        self.engine.scheduler.check()
        self.engine.check_idle()

    @invariant()
    def only_full_blocks_of_one_salt_are_shared(self) -> None:
        seen: dict[int, tuple[bytes, list[int]]] = {}
        for request in self.requests:
            for index, block in enumerate(request.block_table):
                stop = min((index + 1) * BLOCK_SIZE, request.num_computed_tokens)
                mine = (request.root, request.tokens[:stop])
                theirs = seen.setdefault(block, mine)
                assert theirs == mine
                assert theirs is mine or stop == (index + 1) * BLOCK_SIZE

    def teardown(self) -> None:
        run(self.engine)
        assert self.engine.pool.num_free == NUM_BLOCKS
        oracle = make_engine(PrefixModel(CONTEXT), num_blocks=64)
        for request in self.requests:
            assert request.finish_reason is not None
            if request.output_ids:  # even those cut short: what came out was right
                count = len(request.output_ids)
                params = SamplingParams(max_tokens=count, temperature=0)
                alone = oracle.add(request.prompt_ids, params, cache_salt=request.id)
                run(oracle)
                assert alone.output_ids == request.output_ids


TestPoolWalk = PoolWalk.TestCase
TestPoolWalk.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, derandomize=True
)


def test_the_lowest_priority_goes_first_and_takes_the_place_of_a_higher() -> None:
    engine = make_engine(max_sequences=1)
    params = SamplingParams(max_tokens=4)
    background = engine.add(random_prompt(RNG, 40), params, priority=5)
    engine.step()
    later = engine.add(random_prompt(RNG, 8), params, priority=5)
    person = engine.add(random_prompt(RNG, 8), params)
    finished = []
    while engine.has_work:
        finished += [each.request for each in engine.step() if each.finish_reason is not None]
    assert [person, background, later] == finished
    assert background.num_preemptions == 1
    assert len(background.output_ids) == 4


def test_a_running_request_keeps_its_place_where_there_is_room_for_both() -> None:
    engine = make_engine(max_sequences=2)
    background = engine.add(random_prompt(RNG, 40), SamplingParams(max_tokens=4), priority=5)
    engine.step()
    engine.add(random_prompt(RNG, 8), SamplingParams(max_tokens=4))
    run(engine)
    assert background.num_preemptions == 0
