"""Sampling against its reference, and against the distribution it stands for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dure import kernels
from dure.kernels import reference

VOCABULARY = 150_000
NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10**9},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 1e-6},
]


def random_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    """Logits of a plausible spread, float32 (size,), with ties."""
    logits = rng.normal(0, 3, size).astype(np.float32)
    logits[rng.integers(0, size, size // 10)] = np.round(logits[: size // 10], 1)
    return logits


def check_draw(logits: np.ndarray, uniform: float, setting: dict[str, Any]) -> None:
    """The kernel draws what the reference does, but for sums that differ by one part in 10^9."""
    drawn = kernels.sample(logits, **setting, uniform=uniform)
    if drawn == reference.sample(logits, **setting, uniform=uniform):
        return
    top_p, near = setting["top_p"], set()
    ranks = np.empty(len(logits), np.int64)
    ranks[np.argsort(-logits, kind="stable")] = np.arange(len(logits))
    for p in {top_p, min(1.0, top_p * (1 + 1e-9)), top_p * (1 - 1e-9)}:
        for u in (max(0.0, uniform - 1e-9), min(1 - 1e-12, uniform + 1e-9)):
            # Ids less likely than 2e-9 may lie between the two ends.
            near.add(ranks[reference.sample(logits, **{**setting, "top_p": p}, uniform=u)])
    assert min(near) <= ranks[drawn] <= max(near)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 100, 3000])
def test_draws_are_those_of_the_reference(size: int, setting: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    setting = {**NEUTRAL, **setting}
    for _ in range(20):
        check_draw(random_logits(rng, size), rng.random(), setting)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_from_a_real_vocabulary_are_those_of_the_reference(setting: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    setting = {**NEUTRAL, **setting}
    logits = random_logits(rng, VOCABULARY)
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        check_draw(logits, uniform, setting)


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.5, "top_k": 6}, {"top_p": 0.8}], ids=str)
def test_a_grid_of_uniforms_draws_each_id_as_often_as_its_probability(
    setting: dict[str, Any],
) -> None:
    setting = {**NEUTRAL, **setting}
    logits = np.random.default_rng(3).normal(0, 1.5, 12).astype(np.float32)
    weights = np.exp(logits.astype(np.float64) / setting["temperature"])
    order = np.argsort(-weights)
    kept = setting["top_k"] or 12
    if setting["top_p"] < 1:
        mass = np.cumsum(weights[order]) / weights.sum()
        kept = int(np.argmax(mass >= setting["top_p"])) + 1
    expected = np.zeros(12)
    expected[order[:kept]] = weights[order[:kept]] / weights[order[:kept]].sum()
    grid = (np.arange(4000) + 0.5) / 4000
    drawn = [kernels.sample(logits, **setting, uniform=float(u)) for u in grid]
    counts = np.bincount(drawn, minlength=12)
    # Inverse CDF on an even grid: each count is its share, give or take the two ends.
    np.testing.assert_allclose(counts, 4000 * expected, rtol=0, atol=1.001)


def test_temperature_zero_is_the_likeliest_and_the_lower_id_of_two() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[149_999, 777, 30_000]] = 5
    for uniform in (0.0, 0.5, 0.999999):
        assert kernels.sample(logits, **{**NEUTRAL, "temperature": 0.0}, uniform=uniform) == 777
    assert kernels.sample(-logits, **{**NEUTRAL, "temperature": 0.0}, uniform=0.5) == 0


def test_of_equal_logits_top_k_keeps_the_lower_ids() -> None:
    logits = np.zeros(1000, np.float32)
    grid = (np.arange(50) + 0.5) / 50
    drawn = {kernels.sample(logits, **{**NEUTRAL, "top_k": 5}, uniform=float(u)) for u in grid}
    assert drawn == set(range(5))


def test_a_forbidden_id_is_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[7, 70]] = 1
    grid = np.linspace(0, 1 - 2.0**-53, 101)
    for setting in ({}, {"top_k": 50}, {"top_p": 1.0 - 1e-12}, {"temperature": 1e-6}):
        drawn = {kernels.sample(logits, **{**NEUTRAL, **setting}, uniform=float(u)) for u in grid}
        assert drawn == {7, 70}


def test_log_probabilities_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(4)
    for size in (1, 30, VOCABULARY):
        logits = random_logits(rng, size)
        count = min(20, size)
        ids, logprobs = kernels.top_logprobs(logits, count)
        expected_ids, expected = reference.top_logprobs(logits, count)
        assert (ids.dtype, logprobs.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(logprobs, expected, rtol=2e-7, atol=1e-9)
        for token_id, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            assert math.isclose(logprob, kernels.logprob(logits, token_id), rel_tol=2e-7)


def test_no_log_probabilities_are_asked_for_and_none_come() -> None:
    ids, logprobs = kernels.top_logprobs(np.zeros(5, np.float32), 0)
    assert (ids.shape, logprobs.shape) == ((0,), (0,))


def test_logits_far_apart_have_finite_log_probabilities() -> None:
    logits = np.array([3e38, -3e38, 0], np.float32)
    assert kernels.logprob(logits, 0) == 0.0
    assert kernels.logprob(np.array([1e4, -1e4], np.float32), 1) == -2e4


def test_the_stream_of_uniforms_is_that_of_the_reference() -> None:
    for seed in (0, 1, 12345, 2**32, 2**63 + 11, 2**64 - 1):
        for position in (0, 1, 2, 31, 4096, 2**32 - 1, 2**32, 2**40):
            assert kernels.uniform(seed, position) == reference.uniform(seed, position)


def test_uniforms_fill_the_interval_evenly() -> None:
    drawn = np.array([kernels.uniform(7, position) for position in range(20_000)])
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    # Kolmogorov-Smirnov: chance passes 1.95 / sqrt(n) once in a thousand, and the seed is fixed.
    gaps = np.abs(np.sort(drawn) - (np.arange(20_000) + 0.5) / 20_000)
    assert gaps.max() < 1.95 / math.sqrt(20_000)


def test_rows_together_draw_what_each_draws_alone() -> None:
    rng = np.random.default_rng(6)
    settings = [{**NEUTRAL, **setting} for setting in SETTINGS]
    logits = np.stack([random_logits(rng, 3001) for _ in settings])
    logits[3, 3000], logits[4, 7], logits[5] = np.nan, np.inf, -np.inf
    uniforms = rng.random(len(settings)).tolist()
    columns = {f"{name}s": [setting[name] for setting in settings] for name in NEUTRAL}
    drawn = kernels.sample_rows(logits, **columns, uniforms=uniforms, threads=3)
    assert drawn[3:6] == reference.sample_rows(logits, **columns, uniforms=uniforms)[3:6]
    assert drawn[3:6] == [-1, -1, -1]
    for index, (setting, uniform) in enumerate(zip(settings, uniforms, strict=True)):
        if index not in (3, 4, 5):
            assert drawn[index] == kernels.sample(logits[index], **setting, uniform=uniform)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_with_a_nan_are_refused_rather_than_drawn_from(bad: float) -> None:
    for at in (0, 50, 99):
        logits = np.zeros(100, np.float32)
        logits[at] = bad
        for setting in ({}, {"temperature": 0.0}, {"top_k": 3}):
            with pytest.raises(ValueError, match="NaN"):
                kernels.sample(logits, **{**NEUTRAL, **setting}, uniform=0.5)


@pytest.mark.parametrize(
    ("logits", "setting"),
    [
        (np.zeros(0, np.float32), {}),
        (np.zeros((2, 3), np.float32), {}),
        (np.zeros(5, np.float64), {}),
        (np.zeros(5, np.float16), {}),
        (np.zeros(10, np.float32)[::2], {}),
        (np.zeros(5, np.float32), {"temperature": -1.0}),
        (np.zeros(5, np.float32), {"temperature": math.nan}),
        (np.zeros(5, np.float32), {"top_k": -1}),
        (np.zeros(5, np.float32), {"top_p": 1.5}),
        (np.zeros(5, np.float32), {"top_p": math.nan}),
        (np.zeros(5, np.float32), {"min_p": -0.1}),
        (np.zeros(5, np.float32), {"min_p": 1.1}),
        (np.zeros(5, np.float32), {"uniform": 1.0}),
        (np.zeros(5, np.float32), {"uniform": -0.1}),
        (np.zeros(5, np.float32), {"uniform": math.nan}),
    ],
)
def test_settings_out_of_range_are_refused(logits: np.ndarray, setting: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.sample(logits, **{**NEUTRAL, "uniform": 0.5, **setting})


def test_ids_and_counts_out_of_range_are_refused() -> None:
    logits = np.zeros(5, np.float32)
    for token_id in (-1, 5, 2**31):
        with pytest.raises((TypeError, ValueError)):
            kernels.logprob(logits, token_id)
    for count in (-1, 6):
        with pytest.raises((TypeError, ValueError)):
            kernels.top_logprobs(logits, count)
    for seed, position in ((-1, 0), (2**64, 0), (0, -1)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            kernels.uniform(seed, position)
