"""The engine as its callers see it: what comes out, when it ends, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from prefix_model import (
    VOCAB_SIZE,
    PrefixModel,
    StateModel,
    answer,
    make_engine,
    random_prompt,
    run,
)

from dure.batch import BLOCK_SIZE, Batch
from dure.engine.request import RequestState, SamplingParams, choice_seed
from dure.errors import ContextLengthError, InvalidRequestError, ModelFileError
from dure.kernels import sampling_reference

RNG = np.random.default_rng(2)
GREEDY = SamplingParams(max_tokens=8, temperature=0)


def test_each_step_gives_one_token_a_request_and_the_last_says_why_it_ended() -> None:
    engine = make_engine()
    first = engine.add([1, 2, 3], SamplingParams(max_tokens=3, temperature=0))
    second = engine.add([4, 5], SamplingParams(max_tokens=2, temperature=0))
    outputs = run(engine)
    assert [
        (first, None),
        (second, None),
        (first, None),
        (second, "length"),
        (first, "length"),
    ] == [(output.request, output.finish_reason) for output in outputs]
    assert first.output_ids == [o.token_ids[0] for o in outputs if o.request is first]
    assert RequestState.FINISHED is first.state
    assert not engine.has_work
    assert engine.step() == []


def test_max_tokens_none_goes_on_to_the_end_of_the_context() -> None:
    request = answer([1] * 5, SamplingParams(), engine=make_engine(PrefixModel(50)))
    assert (len(request.output_ids), request.finish_reason) == (45, "length")


def test_max_tokens_none_goes_on_to_the_end_of_a_cache_smaller_than_the_context() -> None:
    request = answer([1] * 5, SamplingParams(), engine=make_engine(num_blocks=2))
    assert (len(request.output_ids), request.finish_reason) == (60, "length")


def test_an_end_of_generation_token_stops_and_ignore_eos_goes_on() -> None:
    free = answer([7, 8], GREEDY)
    eos = free.output_ids[3]
    assert eos not in free.output_ids[:3]
    stopped = answer([7, 8], GREEDY, engine=make_engine(eos_ids={eos}))
    assert free.output_ids[:4] == stopped.output_ids
    assert ("stop", eos) == (stopped.finish_reason, stopped.stop_token_id)
    ignoring = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    ignored = answer([7, 8], ignoring, engine=make_engine(eos_ids={eos}))
    assert (free.output_ids, "length") == (ignored.output_ids, ignored.finish_reason)
    assert ignored.stop_token_id is None


def test_a_stop_token_of_the_request_stops_even_with_ignore_eos() -> None:
    free = answer([7, 8], GREEDY)
    stop = free.output_ids[2]
    params = SamplingParams(max_tokens=8, temperature=0, stop_token_ids=[stop], ignore_eos=True)
    request = answer([7, 8], params)
    assert (free.output_ids[:3], "stop", stop) == (
        request.output_ids,
        request.finish_reason,
        request.stop_token_id,
    )


def test_choices_differ_from_each_other_and_are_repeatable() -> None:
    params = SamplingParams(max_tokens=12, seed=5, n=4)
    first, second = answer([1, 2, 3], params), answer([1, 2, 3], params)
    outputs = [choice.output_ids for choice in first.choices]
    assert len({tuple(output) for output in outputs}) == 4
    assert outputs == [choice.output_ids for choice in second.choices]
    assert [choice.finish_reason for choice in first.choices] == ["length"] * 4
    assert first is first.choices[0]


def test_choice_i_is_what_a_single_request_with_its_derived_seed_gives() -> None:
    many = answer([1, 2, 3], SamplingParams(max_tokens=12, seed=5, n=3))
    for index, choice in enumerate(many.choices):
        single = SamplingParams(max_tokens=12, seed=choice_seed(5, index))
        assert answer([1, 2, 3], single).output_ids == choice.output_ids


@pytest.mark.parametrize("length", [5, 33, 64, 70])
def test_choices_compute_their_common_prompt_once(length: int) -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=1, n=8, seed=1)
    engine.add(random_prompt(RNG, length), params)
    run(engine)
    assert length + 7 == engine.stats.computed_tokens  # each computes the last prompt token


def test_requests_without_a_seed_differ() -> None:
    params = SamplingParams(max_tokens=16)
    assert answer([1, 2], params).output_ids != answer([1, 2], params).output_ids


def test_negative_seeds_are_taken_modulo_two_to_the_64() -> None:
    left = answer([1], SamplingParams(max_tokens=9, seed=-1))
    right = answer([1], SamplingParams(max_tokens=9, seed=2**64 - 1))
    assert right.output_ids == left.output_ids


def test_logprobs_come_one_a_token_with_the_likeliest_first() -> None:
    request = answer([9, 9], SamplingParams(max_tokens=5, temperature=0, logprobs=3))
    assert request.output_ids == [entry.token_id for entry in request.logprobs]
    for entry in request.logprobs:
        assert (entry.token_id, entry.logprob) == entry.top[0]
        assert sorted((p for _, p in entry.top), reverse=True) == [p for _, p in entry.top]
        assert len(entry.top) == 3
    zero = answer([9, 9], SamplingParams(max_tokens=5, temperature=0, logprobs=0))
    assert [entry.logprob for entry in request.logprobs] == [e.logprob for e in zero.logprobs]
    assert [entry.top for entry in zero.logprobs] == [()] * 5


def test_finish_ends_one_choice_and_abort_of_the_request_the_others() -> None:
    engine = make_engine()
    leader = engine.add([1, 2, 3], SamplingParams(max_tokens=50, n=3, seed=1))
    while not all(choice.output_ids for choice in leader.choices):
        engine.step()
    engine.finish(leader.id, reason="stop")
    assert [choice.finish_reason for choice in leader.choices] == ["stop", None, None]
    engine.finish(leader.choices[1].id)
    engine.abort(leader.id)
    assert [choice.finish_reason for choice in leader.choices] == ["stop", "stop", "abort"]
    assert not engine.has_work
    assert engine.pool.num_blocks == engine.pool.num_free


def test_abort_gives_every_block_back_at_any_moment() -> None:
    prompt = random_prompt(RNG, 100)
    for steps in range(8):
        engine = make_engine(max_batch_tokens=32)
        request = engine.add(prompt, SamplingParams(max_tokens=3))
        for _ in range(steps):
            engine.step()
        engine.abort(request.id)
        assert (steps < 6) is (request.finish_reason == "abort")
        assert engine.pool.num_blocks == engine.pool.num_free
        engine.abort(request.id)
        engine.abort("never there")
        engine.finish("never there")
        engine.check_idle()
        assert engine.step() == []


def test_check_idle_raises_if_a_block_leaked() -> None:
    engine = make_engine()
    answer([1, 2, 3], GREEDY, engine=engine)
    engine.pool.allocate()
    with pytest.raises(RuntimeError, match="1 cache blocks leaked"):
        engine.check_idle()


def test_a_leak_is_noticed_while_others_still_run() -> None:
    engine = make_engine()
    engine.add([1, 2, 3], GREEDY)
    engine.step()
    engine.pool.allocate()
    with pytest.raises(RuntimeError, match="leaked"):
        engine.scheduler.check()


def test_a_request_on_which_the_model_raises_fails_alone_and_the_engine_serves_on() -> None:
    model = PrefixModel()
    engine = make_engine(model, max_sequences=3)
    params = SamplingParams(max_tokens=6, seed=3)
    expected = [answer(prompt, params).output_ids for prompt in ([5, 6], [1, 2])]
    failing = engine.add([3, 4], params)
    others = [engine.add([5, 6], params), engine.add([1, 2], params)]
    engine.step()
    broken = ValueError("kernel says no")

    def explode(batch: Batch) -> None:
        if failing.output_ids[-1] in batch.tokens:
            raise broken

    model.before_forward = explode
    outputs = engine.step()
    assert [failing] == [each.request for each in outputs if each.finish_reason == "error"]
    assert (broken, 1) == (failing.error, len(failing.output_ids))
    model.before_forward = lambda batch: None
    run(engine)
    assert expected == [request.output_ids for request in others]
    assert engine.pool.num_blocks == engine.pool.num_free
    assert engine.stats.failed == 1


def test_all_requests_of_a_step_fail_if_their_states_may_have_been_left_in_its_midst() -> None:
    model = StateModel()
    engine = make_engine(model)
    requests = [engine.add([1, 2], SamplingParams()), engine.add([3, 4], SamplingParams())]
    engine.step()

    def explode(batch: Batch) -> None:
        model.before_forward = lambda batch: None
        raise ValueError("kernel says no")

    model.before_forward = explode
    assert ["error"] * 2 == [output.finish_reason for output in engine.step()]
    assert all(request.is_finished for request in requests)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_of_bad_logits_fails_alone_and_its_blocks_are_not_found_again(value: float) -> None:
    model = PrefixModel()
    engine = make_engine(model)
    prompt = random_prompt(RNG, 70)
    params = SamplingParams(max_tokens=4, seed=3)
    expected_bad, expected_good = answer(prompt, params), answer([5, 6], params)
    engine.add(prompt, params)  # its blocks are in the cache, and then shared
    run(engine)
    bad, good = engine.add(prompt, params), engine.add([5, 6], params)
    engine.step()

    def poison(batch: object, logits: np.ndarray) -> None:
        logits[0, 17] = value
        engine.runner.storage.arrays[0][bad.block_table[-1]] = np.nan

    model.change_logits = poison
    outputs = engine.step()
    model.change_logits = lambda batch, logits: None
    assert [(bad, "error"), (good, None)] == [(o.request, o.finish_reason) for o in outputs]
    assert isinstance(bad.error, ModelFileError)
    run(engine)
    assert expected_good.output_ids == good.output_ids
    assert not np.isnan(engine.runner.storage.arrays[0]).any()
    again = answer(prompt, params, engine=engine)
    assert (0, expected_bad.output_ids) == (again.num_cached_tokens, again.output_ids)


def test_a_kernel_that_raises_while_sampling_fails_that_request_alone() -> None:
    class Refusing:
        def __getattr__(self, name: str) -> object:
            return getattr(sampling_reference, name)

        def sample_rows(self, logits: np.ndarray, *, top_ks: list[int], **rest: Any) -> list[int]:
            if 13 in top_ks:
                raise ValueError("unlucky")
            return sampling_reference.sample_rows(logits, top_ks=top_ks, **rest)

    engine = make_engine()
    engine.sampler._functions = Refusing()
    bad = engine.add([1, 2], SamplingParams(max_tokens=4, top_k=13))
    good = engine.add([3, 4], GREEDY)
    run(engine)
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
    assert answer([3, 4], GREEDY).output_ids == good.output_ids


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    engine = make_engine(PrefixModel(100))
    with pytest.raises(ContextLengthError, match=r"101 tokens.*context holds 100"):
        engine.add([1] * 101, SamplingParams())
    with pytest.raises(ContextLengthError, match=r"100 tokens.*context holds 100"):
        engine.add([1] * 100, SamplingParams())
    engine.add([1] * 99, SamplingParams())


def test_more_tokens_than_the_context_has_left_are_refused_with_the_numbers() -> None:
    engine = make_engine(PrefixModel(100))
    with pytest.raises(ContextLengthError, match=r"60 tokens.*41.*101.*100") as caught:
        engine.add([1] * 60, SamplingParams(max_tokens=41))
    assert "at most 40" in caught.value.hint
    engine.add([1] * 60, SamplingParams(max_tokens=40))


def test_a_request_that_never_fits_the_cache_is_refused_with_the_numbers() -> None:
    engine = make_engine(num_blocks=2)
    with pytest.raises(ContextLengthError, match=r"60 tokens.*6 are 66.*cache holds 65"):
        engine.add([1] * 60, SamplingParams(max_tokens=6))
    with pytest.raises(ContextLengthError, match=r"66 tokens.*cache holds 65"):
        engine.add([1] * 66, SamplingParams())
    request = answer([1] * 60, SamplingParams(max_tokens=5), engine=engine)
    assert request.finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "no tokens"),
        ([1, VOCAB_SIZE], "Token id 64.*0 to 63"),
        ([-1, 5], "Token id -1"),
        ([10**40], "outside the vocabulary"),
        ([1.5], "whole token ids"),
        (["1"], "whole token ids"),
        ([True], "whole token ids"),
        ([[1, 2], [3]], "whole token ids"),
        ([[1, 2]], "whole token ids"),
    ],
)
def test_a_prompt_that_is_no_list_of_known_ids_is_refused(prompt: list, says: str) -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequestError, match=says):
        engine.add(prompt, GREEDY)
    assert not engine.has_work


def test_a_prompt_may_be_a_numpy_array() -> None:
    assert answer([1, 2], GREEDY).output_ids == answer(np.array([1, 2]), GREEDY).output_ids


@pytest.mark.parametrize(
    "params", [{"logit_bias": {VOCAB_SIZE: 1.0}}, {"stop_token_ids": [3, VOCAB_SIZE]}]
)
def test_ids_outside_the_vocabulary_are_refused_in_params_too(params: dict) -> None:
    with pytest.raises(InvalidRequestError, match=r"Token id 64.*0 to 63"):
        make_engine().add([1], SamplingParams(**params))


def test_an_id_in_use_is_refused_and_may_be_used_again_afterwards() -> None:
    engine = make_engine()
    engine.add([1], SamplingParams(max_tokens=2, n=2), request_id="a")
    for taken in ("a", "a:1"):
        with pytest.raises(InvalidRequestError, match="still running"):
            engine.add([1], GREEDY, request_id=taken)
    run(engine)
    assert engine.add([1], GREEDY, request_id="a").id == "a"


@pytest.mark.parametrize("name", ["num_blocks", "max_batch_tokens", "max_sequences"])
def test_an_engine_without_room_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be at least 1"):
        make_engine(**{name: 0})


def test_stats_count_what_was_computed_and_what_was_found() -> None:
    engine = make_engine()
    prompt = random_prompt(RNG, 2 * BLOCK_SIZE + 5)
    answer(prompt, SamplingParams(max_tokens=3), engine=engine)
    answer(prompt, SamplingParams(max_tokens=3), engine=engine)
    stats = engine.stats
    assert (stats.prompt_tokens, stats.cached_tokens) == (2 * 69, 68)
    assert (stats.computed_tokens, stats.output_tokens) == (69 + 2 + 1 + 2, 6)
    assert (stats.finished, stats.failed, stats.preemptions) == (2, 0, 0)
