"""Penalties, filters and draws, against the logits processors of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dure.engine.request import Request, SamplingParams, TokenCounts
from dure.engine.sampler import Sampler, adjust
from dure.errors import ModelFileError
from dure.kernels import sampling_reference

VOCAB = 200
SAMPLER = Sampler(sampling_reference)


def request(prompt: list[int], output: list[int], **params: Any) -> Request:
    made = Request(
        id="r",
        prompt_ids=tuple(prompt),
        params=SamplingParams(**params).resolve({}),
        seed=1,
        max_output=100,
        root=b"",
    )
    for token in output:
        made.append(token)
    return made


def adjusted(asked: Request, values: np.ndarray) -> np.ndarray:
    """The logits after penalties and bias; `values` stay as they are."""
    changed = values.copy()
    adjust(asked, changed)
    return changed


def sampled(asked: Request, values: np.ndarray) -> Any:
    """What is drawn for one request from its row."""
    return SAMPLER.sample([asked], values[None])[0]


def logits(rng: np.random.Generator, scale: float = 3.0) -> np.ndarray:
    return (rng.standard_normal(VOCAB) * scale).astype(np.float32)


def transformed(values: np.ndarray, ids: list[int], processors: list[Any]) -> np.ndarray:
    """What transformers makes of the logits."""
    chain = LogitsProcessorList(processors)
    return chain(torch.tensor([ids]), torch.tensor(values[None].copy()))[0].numpy()


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.1, 5.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, VOCAB, 30).tolist()
    output = rng.integers(0, VOCAB, 30).tolist()
    values = logits(rng)
    expected = transformed(values, prompt + output, [RepetitionPenaltyLogitsProcessor(penalty)])
    actual = adjusted(request(prompt, output, repetition_penalty=penalty), values)
    np.testing.assert_array_equal(expected, actual)


def test_presence_and_frequency_count_the_output_and_not_the_prompt() -> None:
    values = np.zeros(VOCAB, dtype=np.float32)
    asked = request([1, 2, 2], [2, 3, 3, 3], presence_penalty=0.5, frequency_penalty=0.25)
    expected = np.zeros(VOCAB, dtype=np.float32)
    expected[2], expected[3] = -0.75, -1.25
    np.testing.assert_array_equal(expected, adjusted(asked, values))


def test_bias_is_added_after_the_penalties() -> None:
    values = np.full(VOCAB, 4.0, dtype=np.float32)
    asked = request([7], [], repetition_penalty=2.0, logit_bias={7: 1.5, 9: -100.0})
    expected = values.copy()
    expected[7], expected[9] = 3.5, -96.0
    np.testing.assert_array_equal(expected, adjusted(asked, values))


def test_logits_are_left_alone() -> None:
    values = logits(np.random.default_rng(1))
    before = values.copy()
    assert adjust(request([1], [2], temperature=0.5, top_k=3), values) == []
    bias = {3: 1.0, 1: -7.0}
    asked = request([1, 5], [3, 9], repetition_penalty=1.5, logit_bias=bias, temperature=0)
    sampled(asked, values)
    np.testing.assert_array_equal(before, values)


def test_each_request_draws_from_its_own_row() -> None:
    rng = np.random.default_rng(8)
    asked = [
        request([1], [2] * n, temperature=n / 2, repetition_penalty=1 + n / 9, top_k=9 * n)
        for n in range(4)
    ]
    rows = np.stack([logits(rng) for _ in asked])
    rows[2, 5] = np.nan
    together = SAMPLER.sample(asked, rows)
    assert isinstance(together[2], ModelFileError)
    for n in (0, 1, 3):
        assert together[n] == sampled(asked[n], rows[n])


def test_counts_kept_token_by_token_are_those_counted_afresh() -> None:
    rng = np.random.default_rng(3)
    prompt, output = rng.integers(0, 50, 9).tolist(), rng.integers(0, 150, 400).tolist()
    asked = request(prompt, [], frequency_penalty=0.1, repetition_penalty=1.1)
    for token in output:
        sampled(asked, logits(rng))
        asked.append(token)
    assert isinstance(asked.token_counts, TokenCounts)
    counts = dict(
        zip(asked.token_counts.ids.tolist(), asked.token_counts.counts.tolist(), strict=True)
    )
    assert {token: output.count(token) for token in {*prompt, *output}} == counts
    fresh = request(prompt, output, frequency_penalty=0.1, repetition_penalty=1.1)
    values = logits(rng)
    np.testing.assert_array_equal(adjusted(fresh, values), adjusted(asked, values))


@pytest.mark.parametrize("trial", range(20))
def test_what_can_be_drawn_and_how_often_is_as_in_transformers(trial: int) -> None:
    rng = np.random.default_rng(trial)
    temperature = float(rng.uniform(0.3, 2.0))
    top_k = int(rng.choice([0, 1, 5, 50, 300]))
    top_p = float(rng.choice([1.0, 0.95, 0.5, 0.05]))
    min_p = float(rng.choice([0.0, 0.02, 0.3, 1.0]))
    values = logits(rng)
    processors: list[Any] = [TemperatureLogitsWarper(temperature)]
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []
    expected = torch.tensor(transformed(values, [0], processors)).double().softmax(0).numpy()
    draws = 2000  # at evenly spaced points, so that an id's count is its probability to 1/2000
    counts = np.zeros(VOCAB)
    for point in range(draws):
        token = sampling_reference.sample(
            values,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            uniform=(point + 0.5) / draws,
        )
        counts[token] += 1
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    np.testing.assert_allclose(expected, counts / draws, atol=1.01 / draws)


def draw(values: list[float], **changes: Any) -> int:
    settings: dict = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.0}
    return sampling_reference.sample(np.array(values, dtype=np.float32), **{**settings, **changes})


def test_ties_go_to_the_lower_id() -> None:
    assert draw([1, 5, 5, 5], temperature=0.0) == 1
    assert draw([1, 5, 5, 5], uniform=0.0) == 1
    assert draw([5, 1, 5, 5], top_k=2, uniform=0.999) == 2
    ids, _ = sampling_reference.top_logprobs(np.array([1, 5, 5, 0], dtype=np.float32), 3)
    assert ids.tolist() == [1, 2, 0]


def test_the_last_point_of_the_stream_still_draws_a_kept_token() -> None:
    highest = 1 - 2.0**-53
    assert draw([0.0] * 7, uniform=highest) == 6
    assert draw([3.0, 2.0, 1.0], top_p=0.9, uniform=highest) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-4])
def test_a_temperature_near_zero_is_the_likeliest_token_and_no_overflow(temperature: float) -> None:
    assert draw([-50.0, 90.0, 80.0], temperature=temperature, uniform=0.999) == 1


def test_logprobs_are_the_log_softmax_of_the_raw_logits() -> None:
    values = logits(np.random.default_rng(5))
    expected = torch.tensor(values).double().log_softmax(0)
    asked = request([1], [4, 4], logprobs=20, temperature=0.2, logit_bias={3: 100.0}, top_k=1)
    token, entry = sampled(asked, values)
    assert (token, entry.token_id) == (3, 3)
    assert entry.logprob == pytest.approx(float(expected[3]), abs=1e-6)
    top = expected.topk(20)
    assert [i for i, _ in entry.top] == top.indices.tolist()
    np.testing.assert_allclose(top.values.numpy(), [p for _, p in entry.top], atol=1e-6)
    assert 3 not in [i for i, _ in entry.top] or dict(entry.top)[3] == entry.logprob


def test_more_logprobs_than_the_vocabulary_has_ids_gives_them_all() -> None:
    _, entry = sampled(request([1], [], logprobs=20), np.zeros(4, dtype=np.float32))
    assert len(entry.top) == 4


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    values = np.zeros(VOCAB, dtype=np.float32)
    first = sampled(request([1], [2, 3]), values)
    assert first == sampled(request([9, 9], [4, 5]), values)
    assert first != sampled(request([1], [2, 3, 4]), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_an_error(bad: float) -> None:
    values = np.zeros(VOCAB, dtype=np.float32)
    values[VOCAB - 1] = bad
    for row in (values, np.full(VOCAB, -np.inf, dtype=np.float32)):
        error = sampled(request([1], []), row)
        assert isinstance(error, ModelFileError)
        assert "logits" in str(error)


def test_philox_gives_the_known_answers_of_its_authors() -> None:
    """The kat_vectors file of Random123, lines philox4x32 10."""
    assert sampling_reference.philox((0, 0, 0, 0), (0, 0)) == (
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    )
    ones = 0xFFFFFFFF
    assert sampling_reference.philox((ones,) * 4, (ones, ones)) == (
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    )
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert sampling_reference.philox(counter, (0xA4093822, 0x299F31D0)) == (
        0xD16CFE09,
        0x94FDCCEB,
        0x5001E420,
        0x24126EA1,
    )


def test_uniform_numbers_are_even_and_below_one() -> None:
    numbers = [sampling_reference.uniform(seed, i) for seed in (0, 2**64 - 1) for i in range(5000)]
    assert 0 <= min(numbers) < 0.001
    assert 0.999 < max(numbers) < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert abs(counts - 1000).max() < 120  # four standard deviations
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("trial", range(30))
def test_the_kernels_draw_what_their_numpy_reference_draws(trial: int) -> None:
    rng = np.random.default_rng(trial)
    values = logits(rng)
    asked = request(
        [1],
        rng.integers(0, VOCAB, trial).tolist(),
        temperature=float(rng.choice([0.0, 0.3, 1.0])),
        top_k=int(rng.choice([0, 20])),
        top_p=float(rng.choice([0.9, 1.0])),
        min_p=float(rng.choice([0.0, 0.05])),
        frequency_penalty=0.1,
        logprobs=5,
    )
    token, entry = Sampler().sample([asked], values[None])[0]  # type: ignore[misc]
    expected_token, expected = sampled(asked, values)
    assert expected_token == token
    assert [i for i, _ in expected.top] == [i for i, _ in entry.top]
    np.testing.assert_allclose([p for _, p in expected.top], [p for _, p in entry.top], rtol=1e-6)
    assert expected.logprob == pytest.approx(entry.logprob, rel=1e-6)
    assert dict(entry.top).get(token, entry.logprob) == entry.logprob


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draw_leaves_the_logits_as_they_were_whatever_has_no_token(temperature: float) -> None:
    rows = [[1.0, 9.0, 2.0, 0.5, 8.0], [np.nan, 9.0, 2.0, 0.5, 8.0]]
    values = np.array(rows, np.float32)
    sampler = Sampler(sampling_reference, unused_ids=[1, 4])
    asked = [request([0], [], temperature=temperature, logit_bias={4: 90.0}) for _ in rows]
    first, second = sampler.sample(asked, values)
    np.testing.assert_array_equal(values, np.array(rows, np.float32))
    assert isinstance(first, tuple)
    assert first[0] in (0, 2, 3)
    assert isinstance(second, ModelFileError)
