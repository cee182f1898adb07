"""Rotary position embedding against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import bits

from dure import kernels
from dure.kernels import reference


def turns(rng: np.random.Generator, n: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of random angles, float32 (n, half)."""
    angles = rng.uniform(-1e4, 1e4, (n, half))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("d", "half"), [(2, 1), (24, 12), (64, 32), (128, 64), (80, 20), (128, 5)])
def test_rotated_heads_are_those_of_the_reference(d: int, half: int, interleaved: bool) -> None:
    rng = np.random.default_rng(1)
    for n, heads in ((1, 1), (3, 5), (100, 14)):
        x = rng.normal(0, 1, (n, heads, d)).astype(np.float32)
        cos, sin = turns(rng, n, half)
        expected, actual = x.copy(), x.copy()
        reference.rope(expected, cos, sin, interleaved=interleaved)
        assert kernels.rope(actual, cos, sin, interleaved=interleaved, threads=2) is None
        # Two products and a sum, each rounded: up to three half-units of the pair's length.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-7 * np.abs(x).max())
        np.testing.assert_array_equal(bits(actual[..., 2 * half :]), bits(x[..., 2 * half :]))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(interleaved: bool) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (100, 6, 64)).astype(np.float32)
    cos, sin = turns(rng, 100, 32)
    alone = x.copy()
    for i in range(100):
        row = alone[i : i + 1].copy()
        kernels.rope(row, cos[i : i + 1], sin[i : i + 1], interleaved=interleaved)
        alone[i] = row[0]
    for threads in (1, 2, 3):
        batch = x.copy()
        kernels.rope(batch, cos, sin, interleaved=interleaved, threads=threads)
        np.testing.assert_array_equal(bits(batch), bits(alone))


def read_only(x: np.ndarray) -> np.ndarray:
    """The array, closed to writing."""
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("x", "cos", "sin"),
    [
        (np.zeros((3, 2, 8), np.float32), (2, 4), (2, 4)),  # rows of another batch
        (np.zeros((3, 2, 8), np.float32), (3, 5), (3, 5)),  # more dims than a head has
        (np.zeros((3, 2, 8), np.float32), (3, 4), (3, 3)),
        (np.zeros((3, 2, 8), np.float32), (3, 4), (2, 4)),
        (np.zeros((3, 16), np.float32), (3, 4), (3, 4)),
        (np.zeros((3, 2, 8), np.float64), (3, 4), (3, 4)),
        (np.zeros((3, 2, 8), np.float16), (3, 4), (3, 4)),
        (np.zeros((6, 2, 8), np.float32)[::2], (3, 4), (3, 4)),
        (np.zeros((3, 2, 16), np.float32)[..., :8], (3, 4), (3, 4)),
        (read_only(np.zeros((3, 2, 8), np.float32)), (3, 4), (3, 4)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_left_alone(
    x: np.ndarray, cos: tuple[int, int], sin: tuple[int, int]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.rope(x, np.ones(cos, np.float32), np.ones(sin, np.float32), interleaved=False)
    assert not x.any()
