"""The gated activation against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import bits

from dure import kernels
from dure.kernels import reference


@pytest.mark.parametrize(("n", "width"), [(1, 1), (1, 15), (2, 17), (33, 96), (3, 4864), (9, 1000)])
def test_gated_values_are_those_of_the_reference(n: int, width: int) -> None:
    rng = np.random.default_rng(1)
    gate, up = (rng.normal(0, 4, (2, n, width))).astype(np.float32)
    actual = kernels.silu_mul(gate, up, threads=2)
    assert actual.shape == (n, width)
    np.testing.assert_allclose(actual, reference.silu_mul(gate, up), rtol=1e-6, atol=1e-35)


def test_every_size_of_gate_gives_its_value_and_never_nan() -> None:
    gate = np.concatenate([np.linspace(-120, 120, 4801), np.geomspace(1e-45, 1e30, 200)])
    gate = np.concatenate([gate, -gate, [0.0, -0.0]]).astype(np.float32)[None]
    actual = kernels.silu_mul(gate, np.ones_like(gate))
    assert np.isfinite(actual).all()
    # Below -87 the sigmoid is at most 1e-38: the product is as good as 0.
    np.testing.assert_allclose(actual, reference.silu_mul(gate, np.ones_like(gate)), 1e-6, 1e-7)


def test_a_gate_at_the_end_of_float32_is_open_or_shut() -> None:
    largest = np.finfo(np.float32).max
    gate = np.array([[largest, -largest, np.inf]], np.float32)
    actual = kernels.silu_mul(gate, np.ones_like(gate))
    assert [[largest, 0.0, np.inf]] == actual.tolist()


def test_a_value_that_is_not_a_number_stays_one_and_spoils_no_other() -> None:
    gate, up = np.ones((2, 40), np.float32), np.ones((2, 40), np.float32)
    gate[0, 3], up[1, 39] = np.nan, np.nan
    expected = np.zeros((2, 40), bool)
    expected[0, 3] = expected[1, 39] = True
    np.testing.assert_array_equal(np.isnan(kernels.silu_mul(gate, up)), expected)


def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads() -> None:
    rng = np.random.default_rng(2)
    gate, up = rng.normal(0, 3, (2, 60, 333)).astype(np.float32)
    alone = np.concatenate([kernels.silu_mul(gate[i : i + 1], up[i : i + 1]) for i in range(60)])
    for threads in (1, 2, 3):
        batch = kernels.silu_mul(gate, up, threads=threads)
        np.testing.assert_array_equal(bits(batch), bits(alone))


@pytest.mark.parametrize(
    ("gate", "up"),
    [
        (np.zeros((2, 8), np.float32), np.zeros((2, 7), np.float32)),
        (np.zeros((2, 8), np.float32), np.zeros((1, 8), np.float32)),
        (np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float64)),
        (np.zeros((2, 8), np.float16), np.zeros((2, 8), np.float32)),
        (np.zeros(8, np.float32), np.zeros(8, np.float32)),
        (np.zeros((2, 16), np.float32)[:, :8], np.zeros((2, 8), np.float32)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(gate: np.ndarray, up: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.silu_mul(gate, up)
