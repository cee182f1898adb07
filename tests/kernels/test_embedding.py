"""Rows of an embedding table."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import bits, columns, packed, random_raw

from dure import kernels
from dure.kernels import reference
from dure.kernels.dequantize import LAYOUTS


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_embedded_tokens_are_their_rows_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(1)
    cols = columns(dtype)[-1]
    raw = random_raw(rng, dtype, 50, cols)
    tokens = np.array([49, 0, 0, 17, 31, 49], np.int32)
    actual = kernels.embed(tokens, packed(dtype, raw, cols))
    assert actual.shape == (6, cols)
    expected = reference.embed(tokens, reference.QuantizedMatrix(dtype, raw))
    np.testing.assert_array_equal(bits(actual), bits(expected))


def test_no_tokens_give_no_rows() -> None:
    table = packed("Q4_0", np.zeros((5, 18), np.uint8), 32)
    assert kernels.embed(np.zeros(0, np.int32), table).shape == (0, 32)


@pytest.mark.parametrize(
    "tokens",
    [
        np.array([0, 5], np.int32),
        np.array([-1], np.int32),
        np.array([2**31 - 1], np.int32),
        np.array([-(2**31)], np.int32),
        np.array([0], np.int64),
        np.array([0.0], np.float32),
        np.array([[0]], np.int32),
        np.arange(4, dtype=np.int32)[::2],
        [0, 1],
    ],
)
def test_tokens_that_the_table_does_not_have_are_refused(tokens: np.ndarray) -> None:
    table = packed("Q4_0", np.zeros((5, 18), np.uint8), 32)
    with pytest.raises((TypeError, ValueError)):
        kernels.embed(tokens, table)
