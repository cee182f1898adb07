"""What is in the cache is found again: by whom, how much of it, and by nobody else."""

from __future__ import annotations

import numpy as np
import pytest
from prefix_model import answer, make_engine, random_prompt, run

from dure.batch import BLOCK_SIZE, CacheOps, KVCacheSpec, StateSpec
from dure.engine.block_pool import BlockPool, block_digest, root_digest
from dure.engine.kv_storage import KVStorage
from dure.engine.request import SamplingParams

RNG = np.random.default_rng(7)
ROOT = root_digest("", "model")


@pytest.mark.parametrize("prompt_length", [3, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("output_length", [1, 20, 40])
def test_a_second_turn_computes_only_what_is_new(prompt_length: int, output_length: int) -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, prompt_length)
    first = answer(prompt, SamplingParams(max_tokens=output_length, seed=1), engine=engine)
    turn = [*prompt, *first.output_ids]
    new = random_prompt(RNG, 9)
    computed = engine.stats.computed_tokens
    second = answer([*turn, *new], SamplingParams(max_tokens=1, seed=2), engine=engine)
    # All of the last turn but its last token, which was put out and never put in.
    assert len(turn) - 1 == second.num_cached_tokens
    assert second.num_cached_tokens >= len(turn) // BLOCK_SIZE * BLOCK_SIZE - 1
    assert len(new) + 1 == engine.stats.computed_tokens - computed
    fresh = answer([*turn, *new], SamplingParams(max_tokens=1, seed=2))
    assert fresh.output_ids == second.output_ids


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65])
def test_of_a_repeated_prompt_only_the_last_token_is_computed_again(length: int) -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, length)
    params = SamplingParams(max_tokens=5, seed=1, logprobs=2)
    first = answer(prompt, params, engine=engine)
    again = answer(prompt, params, engine=engine)
    assert length - 1 == again.num_cached_tokens
    assert (first.output_ids, first.logprobs) == (again.output_ids, again.logprobs)


@pytest.mark.parametrize("common", [0, 5, 32, 50, 64, 90])
def test_prompts_with_a_common_beginning_share_it_to_the_token(common: int) -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, 100)
    answer(prompt, SamplingParams(max_tokens=1, seed=1), engine=engine)
    other = [*prompt[:common], (prompt[common] + 1) % 64, *random_prompt(RNG, 20)]
    params = SamplingParams(max_tokens=5, seed=1)
    request = answer(other, params, engine=engine)
    assert common == request.num_cached_tokens
    assert answer(other, params).output_ids == request.output_ids


def test_a_copied_beginning_leaves_the_original_as_it_was() -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, 50)
    params = SamplingParams(max_tokens=8, seed=1)
    first = engine.add(prompt, params)
    while not first.output_ids:
        engine.step()
    other = answer([*prompt[:40], *random_prompt(RNG, 20)], params, engine=engine)
    assert other.num_cached_tokens >= 40
    assert answer(prompt, params).output_ids == first.output_ids


def test_a_prompt_is_found_while_its_first_request_still_decodes() -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, 70)
    first = engine.add(prompt, SamplingParams(max_tokens=50, seed=1))
    while len(first.output_ids) < 3:
        engine.step()
    second = engine.add(prompt, SamplingParams(max_tokens=1))
    engine.step()
    assert (second.num_cached_tokens, first.finish_reason) == (69, None)


def test_equal_prompts_that_come_together_are_computed_once_and_kept_once() -> None:
    engine = make_engine(max_batch_tokens=40)
    prompt = random_prompt(RNG, 96)
    requests = [engine.add(prompt, SamplingParams(max_tokens=40, seed=i)) for i in range(4)]
    while not all(request.output_ids for request in requests):
        engine.step()
    assert 96 + 3 <= engine.stats.computed_tokens <= 96 + 3 + 4 * 40
    assert [request.num_cached_tokens for request in requests] == [0, 95, 95, 95]
    tables = [request.block_table for request in requests]
    # The third block too: each copied 31 tokens of it, and let go of its own when it was full.
    assert [tables[0][:3]] * 4 == [table[:3] for table in tables]
    run(engine)


def test_a_prompt_in_progress_holds_back_only_who_would_repeat_it() -> None:
    engine = make_engine(max_batch_tokens=64)
    prompt = random_prompt(RNG, 200)
    first = engine.add(prompt, SamplingParams(max_tokens=1))
    same = engine.add(prompt, SamplingParams(max_tokens=1))
    other = engine.add(random_prompt(RNG, 10), SamplingParams(max_tokens=1))
    engine.step()
    assert (same.finish_reason, other.finish_reason) == (None, "length")
    engine.abort(first.id)  # who waited for it goes on where it stopped
    run(engine)
    assert 32 <= same.num_cached_tokens <= 64
    assert same.finish_reason == "length"


def test_another_salt_finds_nothing_and_gets_the_same_answer() -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, 100)
    params = SamplingParams(max_tokens=4, seed=1)
    requests = []
    for salt in ("", "tenant", "tenant", ""):
        requests.append(engine.add(prompt, params, cache_salt=salt))
        run(engine)
    assert [request.num_cached_tokens for request in requests] == [0, 0, 99, 99]
    assert len({tuple(request.output_ids) for request in requests}) == 1


def test_salt_and_model_cannot_be_shifted_into_each_other() -> None:
    names = [("", "ab"), ("a", "b"), ("ab", ""), ("a", "bc"), ("ab", "c"), ("\udc80", "b")]
    assert len(names) == len({root_digest(*name) for name in names})


def test_a_digest_names_all_tokens_before_it() -> None:
    tokens = list(range(BLOCK_SIZE))
    digests = {
        block_digest(ROOT, tokens),
        block_digest(ROOT, tokens[::-1]),
        block_digest(ROOT, tokens[:-1]),
        block_digest(block_digest(ROOT, tokens), tokens),
        block_digest(root_digest("x", "model"), tokens),
    }
    assert (5, {32}) == (len(digests), {len(digest) for digest in digests})


def publish_block(pool: BlockPool, parent: bytes, tokens: list[int]) -> int:
    return pool.publish(pool.allocate(), parent, tokens)


def test_the_least_recently_freed_block_is_reused_first_and_found_until_then() -> None:
    pool = BlockPool(3)
    contents = [[i] * BLOCK_SIZE for i in range(3)]
    blocks = [publish_block(pool, ROOT, tokens) for tokens in contents]
    digests = [block_digest(ROOT, tokens) for tokens in contents]
    for index in (1, 2, 0):
        pool.release([blocks[index]])
    assert [[blocks[i]] for i in range(3)] == [pool.find([digest]) for digest in digests]
    pool.hold(blocks[1])  # used again: now it is the most recent
    pool.release([blocks[1]])
    assert blocks[2] == pool.allocate()
    assert [[blocks[0]], [blocks[1]], []] == [pool.find([digest]) for digest in digests]
    assert blocks[0] == pool.allocate()


def test_the_end_of_a_prefix_is_reused_before_its_beginning() -> None:
    pool = BlockPool(2)
    blocks = [publish_block(pool, ROOT, [1] * BLOCK_SIZE)]
    blocks.append(publish_block(pool, block_digest(ROOT, [1] * BLOCK_SIZE), [2] * BLOCK_SIZE))
    pool.release(blocks)
    assert blocks[1] == pool.allocate()


def test_blocks_with_nothing_in_them_are_reused_before_any_that_can_be_found() -> None:
    pool = BlockPool(2)
    full = publish_block(pool, ROOT, [1] * BLOCK_SIZE)
    empty = pool.allocate()
    pool.release([full])
    pool.release([empty])
    assert empty == pool.allocate()


def test_the_longest_common_beginning_wins_among_the_blocks_of_one_parent() -> None:
    pool = BlockPool(4)
    publish_block(pool, ROOT, [1, 2, 3])
    best = publish_block(pool, ROOT, [1, 2, 3, 4, 5])
    publish_block(pool, ROOT, [1, 2, 9, 9, 9, 9])
    publish_block(pool, root_digest("other", ""), [1, 2, 3, 4, 5, 6])
    assert (best, 4) == pool.find_tail(ROOT, [1, 2, 3, 4, 7, 8])
    assert pool.find_tail(ROOT, [8]) == (-1, 0)
    assert pool.find_tail(ROOT, []) == (-1, 0)


def test_an_equal_full_block_is_held_in_place_of_a_second_one() -> None:
    pool = BlockPool(4)
    tokens = [3] * BLOCK_SIZE
    first = publish_block(pool, ROOT, tokens)
    assert first == publish_block(pool, ROOT, tokens)
    assert pool.num_free == 3
    pool.release([first])
    assert pool.num_free == 3
    pool.release([first])
    assert pool.num_free == 4


def test_a_copy_and_a_forgotten_block_are_told_once() -> None:
    pool = BlockPool(2)
    source, target = pool.allocate(), pool.allocate()
    pool.copy(source, target)
    pool.publish(target, ROOT, [1, 2, 3])
    pool.release([target], forget=True)
    assert pool.find_tail(ROOT, [1, 2, 3]) == (-1, 0)
    assert pool.take_ops() == ((target,), ((source, target),))
    assert pool.take_ops() == ((), ())


def test_a_runner_clears_then_copies_blocks_and_states_in_every_layer() -> None:
    rng = np.random.default_rng(1)
    specs = (KVCacheSpec("gqa", 1, 4), StateSpec(3), KVCacheSpec("gqa", 3, 8), StateSpec(5))
    storage = KVStorage(specs, num_blocks=3, num_states=2)
    for array in storage.arrays:
        array[:] = rng.random(array.shape)
    before = [array.copy() for array in storage.arrays]
    storage.apply(CacheOps(clear_blocks=(2,), copy_blocks=((0, 1), (1, 2)), copy_states=((0, 1),)))
    for index in (0, 2):
        for block in range(3):  # the copy of a copy, into the block that was cleared before
            np.testing.assert_array_equal(before[index][0], storage.arrays[index][block])
    for index in (1, 3):
        np.testing.assert_array_equal(before[index][[0, 0]], storage.arrays[index])


def test_a_block_that_was_copied_from_counts_as_used() -> None:
    pool = BlockPool(3)
    blocks = [publish_block(pool, ROOT, [i] * BLOCK_SIZE) for i in range(3)]
    for block in (blocks[1], blocks[2]):
        pool.release([block])
    pool.copy(blocks[1], blocks[0])
    assert blocks[2] == pool.allocate()


def test_the_only_free_block_can_be_the_one_that_is_copied_from() -> None:
    engine = make_engine(num_blocks=1)
    prompt = random_prompt(RNG, 20)
    params = SamplingParams(max_tokens=4, seed=1)
    first = answer(prompt, params, engine=engine)
    again = answer([*prompt[:15], 1, 2], params, engine=engine)
    assert again.num_cached_tokens >= 15
    assert answer([*prompt[:15], 1, 2], params).output_ids == again.output_ids
    assert answer(prompt, params).output_ids == first.output_ids
