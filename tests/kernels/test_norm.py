"""RMSNorm against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import bits

from dure import kernels
from dure.kernels import reference

WIDTHS = (1, 7, 15, 16, 17, 64, 100, 896, 2048)


@pytest.mark.parametrize("width", WIDTHS)
def test_norms_are_those_of_the_reference(width: int) -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(0, 1, (33, width)) * np.exp(rng.normal(0, 3, (33, 1)))).astype(np.float32)
    weight = rng.normal(1, 0.3, width).astype(np.float32)
    for eps in (1e-5, 1e-6, 0.5):
        actual = kernels.rms_norm(x, weight, eps)
        np.testing.assert_allclose(actual, reference.rms_norm(x, weight, eps), rtol=2e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(width: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (100, width)).astype(np.float32)
    weight = rng.normal(1, 0.3, width).astype(np.float32)
    alone = np.concatenate([kernels.rms_norm(row[None], weight, 1e-6) for row in x])
    for n in (1, 2, 17, 100):
        for threads in (1, 2, 3):
            batch = kernels.rms_norm(x[:n], weight, 1e-6, threads=threads)
            np.testing.assert_array_equal(bits(batch), bits(alone[:n]))


def test_heads_are_normed_one_by_one() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (5, 3, 24)).astype(np.float32)
    weight = rng.normal(1, 0.3, 24).astype(np.float32)
    actual = kernels.rms_norm(x, weight, 1e-6)
    flat = kernels.rms_norm(x.reshape(15, 24), weight, 1e-6)
    assert actual.shape == x.shape
    np.testing.assert_array_equal(actual.reshape(15, 24), flat)


def test_a_row_of_zeros_stays_zero_and_the_input_stays_as_it_was() -> None:
    x = np.zeros((2, 8), np.float32)
    x[1] = 3
    kept = x.copy()
    actual = kernels.rms_norm(x, np.ones(8, np.float32), 1e-6)
    assert not actual[0].any()
    np.testing.assert_allclose(actual[1], 1, rtol=1e-6)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_spoils_no_other(bad: float) -> None:
    x = np.ones((3, 20), np.float32)
    x[1, 17] = bad
    actual = kernels.rms_norm(x, np.ones(20, np.float32), 1e-6)
    assert not np.isfinite(actual[1, 17])
    np.testing.assert_allclose(actual[[0, 2]], 1, rtol=1e-6)


def test_no_rows_give_no_rows() -> None:
    empty = np.zeros((0, 8), np.float32)
    assert kernels.rms_norm(empty, np.ones(8, np.float32), 1e-6).shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (np.zeros((2, 8), np.float32), np.zeros(7, np.float32)),
        (np.zeros((2, 8), np.float32), np.zeros((1, 8), np.float32)),
        (np.zeros((2, 8), np.float32), np.zeros(8, np.float64)),
        (np.zeros((2, 8), np.float64), np.zeros(8, np.float32)),
        (np.zeros((4, 8), np.float32)[::2], np.zeros(8, np.float32)),
        (np.zeros((2, 8), np.float32), np.zeros(16, np.float32)[::2]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: np.ndarray, weight: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.rms_norm(x, weight, 1e-6)
