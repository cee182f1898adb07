"""Packed weights give back exactly the weights that went in."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import ROWS, bits, columns, constant_raw, packed, random_raw

from dure import kernels
from dure.kernels import reference
from dure.kernels.dequantize import LAYOUTS, QUANTIZED_TYPES, block_size, row_bytes

BAD = (TypeError, ValueError)


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_packed_rows_come_back_with_every_bit(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for cols in columns(dtype):
        for rows in ROWS:
            raw = random_raw(rng, dtype, rows, cols)
            matrix = packed(dtype, raw, cols)
            assert (matrix.dtype, matrix.rows, matrix.cols) == (dtype, rows, cols)
            actual = matrix.row_values(np.arange(rows, dtype=np.int32))
            assert actual.shape == (rows, cols)
            np.testing.assert_array_equal(bits(actual), bits(reference.dequantize(dtype, raw)))


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F])
@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_extreme_codes_come_back_with_every_bit(dtype: str, byte: int) -> None:
    cols = block_size(dtype)
    for scale in (65504.0, -65504.0, 6e-8, 0.0):
        raw = constant_raw(dtype, 3, cols, byte, scale)
        actual = packed(dtype, raw, cols).row_values(np.arange(3, dtype=np.int32))
        np.testing.assert_array_equal(bits(actual), bits(reference.dequantize(dtype, raw)))


def test_every_exponent_of_mxfp4_comes_back_with_every_bit() -> None:
    raw = constant_raw("MXFP4", 256, 32, 0x75, 0.0)
    raw.view(LAYOUTS["MXFP4"])["exponent"] = np.arange(256)[:, None]
    actual = packed("MXFP4", raw, 32).row_values(np.arange(256, dtype=np.int32))
    np.testing.assert_array_equal(bits(actual), bits(reference.dequantize("MXFP4", raw)))


def test_every_float16_comes_back_with_every_bit() -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    finite = halves[np.isfinite(halves.view(np.float16))].reshape(-1, 64)
    raw = finite.view(np.uint8)
    actual = packed("F16", raw, 64).row_values(np.arange(len(raw), dtype=np.int32))
    np.testing.assert_array_equal(bits(actual), bits(finite.view(np.float16).astype(np.float32)))


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_a_matrix_filled_in_pieces_is_the_matrix_filled_at_once(dtype: str) -> None:
    cols = columns(dtype)[-1]
    raw = random_raw(np.random.default_rng(2), dtype, 100, cols)
    matrix = kernels.Matrix(dtype, 100, cols)
    for first, stop in ((48, 96), (96, 100), (0, 16), (16, 48)):
        matrix.fill(first, raw[first:stop], threads=2)
    actual = matrix.row_values(np.arange(100, dtype=np.int32))
    np.testing.assert_array_equal(bits(actual), bits(reference.dequantize(dtype, raw)))


def test_row_values_takes_rows_in_any_order_and_twice() -> None:
    raw = random_raw(np.random.default_rng(3), "Q6_K", 40, 256)
    rows = np.array([39, 0, 17, 17], np.int32)
    actual = packed("Q6_K", raw, 256).row_values(rows)
    np.testing.assert_array_equal(actual, reference.dequantize("Q6_K", raw[rows]))


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_a_packed_matrix_is_hardly_larger_than_its_file(dtype: str) -> None:
    # The roomiest, Q4_K and Q5_K, store their 6-bit scales in bytes: 20 bytes for 16 (of 144).
    matrix = kernels.Matrix(dtype, 160, 2048)
    in_file = 160 * row_bytes(dtype, 2048)
    if dtype.startswith("A") and "codes" in (LAYOUTS[dtype].names or ()):
        in_file -= 160 * 2048 * (8 - int(dtype[1])) // 8  # its blocks have a byte a code
    assert in_file <= matrix.nbytes <= 1.15 * in_file + 64


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_a_fresh_matrix_shows_nothing_of_what_was_in_memory(dtype: str) -> None:
    cols = columns(dtype)[-1]
    packed(dtype, np.full((64, row_bytes(dtype, cols)), 0x3C, np.uint8), cols)  # then freed
    values = kernels.Matrix(dtype, 64, cols).row_values(np.arange(64, dtype=np.int32))
    # A scale of zero makes every weight zero; MXFP4's has no zero, and its smallest is 2^-128.
    assert np.abs(values).max() <= 12 * 2.0**-128


@pytest.mark.parametrize(
    ("dtype", "rows", "cols"),
    [
        ("Q9_9", 16, 256),
        ("q4_0", 16, 256),
        ("Q4_0", 16, 33),
        ("Q4_K", 16, 128),
        ("F32", 0, 8),
        ("F32", -1, 8),
        ("F32", 8, 0),
        ("F32", 8, -32),
        ("Q4_0", 2**40, 2**40),
    ],
)
def test_a_matrix_of_impossible_type_or_size_is_refused(dtype: str, rows: int, cols: int) -> None:
    with pytest.raises((TypeError, ValueError, MemoryError)):
        kernels.Matrix(dtype, rows, cols)


@pytest.mark.parametrize(
    ("first_row", "raw"),
    [
        (8, np.zeros((16, 36), np.uint8)),  # not a multiple of 16
        (-16, np.zeros((16, 36), np.uint8)),
        (32, np.zeros((16, 36), np.uint8)),  # past the end
        (16, np.zeros((17, 36), np.uint8)),
        (2**40, np.zeros((1, 36), np.uint8)),
        (2**63 - 16, np.zeros((16, 36), np.uint8)),  # the end of which is past int64
        (2**64, np.zeros((16, 36), np.uint8)),
        (0, np.zeros((16, 35), np.uint8)),  # rows of a wrong size
        (0, np.zeros((16, 54), np.uint8)),
        (0, np.zeros(36, np.uint8)),
        (0, np.zeros((16, 36), np.int8)),
        (0, np.zeros((16, 36), np.float32)),
        (0, np.zeros((32, 36), np.uint8)[::2]),  # not contiguous
        (0, np.zeros((36, 16), np.uint8).T),
        (0, None),
    ],
)
def test_rows_that_do_not_fit_a_matrix_are_refused(first_row: int, raw: np.ndarray) -> None:
    matrix = kernels.Matrix("Q4_0", 32, 64)
    with pytest.raises(BAD):
        matrix.fill(first_row, raw)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([32], np.int32),
        np.array([0, -1], np.int32),
        np.array([2**31 - 1], np.int32),
        np.array([0], np.int64),
        np.array([[0]], np.int32),
        np.arange(8, dtype=np.int32)[::2],
    ],
)
def test_rows_that_a_matrix_does_not_have_are_refused(rows: np.ndarray) -> None:
    matrix = packed("Q4_0", np.zeros((32, 36), np.uint8), 64)
    with pytest.raises(BAD):
        matrix.row_values(rows)
