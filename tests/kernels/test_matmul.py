"""Matrix products against the reference, and their bits against themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_inputs import ROWS, bits, columns, constant_raw, packed, random_activations, random_raw

from dure import kernels
from dure.kernels import reference
from dure.kernels.dequantize import FLOAT_TYPES, FP8_TYPES, LAYOUTS, QUANTIZED_TYPES, block_size

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 17, 33)
BAD = (TypeError, ValueError)
EPSILON = 2.0**-24  # half a unit in the last place of 1


def product_bound(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How far a float32 sum of the products may be off, in any order: K * eps * sum |terms|."""
    terms = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    return (x.shape[1] + 1) * EPSILON * terms


@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_a_quantised_product_has_the_bits_of_its_reference(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for cols in columns(dtype):
        raw, x = random_raw(rng, dtype, 100, cols), random_activations(rng, 33, cols)
        expected = reference.matmul(x, reference.QuantizedMatrix(dtype, raw))
        for rows in ROWS:
            w = packed(dtype, raw[:rows], cols)
            for n in COUNTS if rows == 33 else (1, 4, 33):
                actual = kernels.matmul(x[:n], w)
                assert actual.shape == (n, rows)
                np.testing.assert_array_equal(bits(actual), bits(expected[:n, :rows].copy()))


@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_extreme_codes_and_activations_do_not_saturate(dtype: str) -> None:
    cols = 2 * block_size(dtype)
    patterns = {"high": [127], "low": [-127], "alternating": [127, -127], "one": [127] + 31 * [0]}
    for byte in (0x00, 0xFF, 0x80, 0x7F, 0x88, 0x77, 0x0F, 0xF0):
        raw = constant_raw(dtype, 17, cols, byte, 65504.0)
        w = packed(dtype, raw, cols)
        for activation, pattern in patterns.items():
            x = np.resize(np.array(pattern, np.float32), (17, cols))
            expected = reference.matmul(x, reference.QuantizedMatrix(dtype, raw))
            for n in (1, 4, 17):
                np.testing.assert_array_equal(
                    kernels.matmul(x[:n], w), expected[:n], err_msg=f"{byte:#x} {activation} {n}"
                )


@pytest.mark.parametrize("dtype", LAYOUTS)
def test_exact_products_are_those_of_the_dequantised_weights(dtype: str) -> None:
    rng = np.random.default_rng(2)
    for cols in columns(dtype):
        raw, x = random_raw(rng, dtype, 33, cols), random_activations(rng, 33, cols)
        weights = reference.dequantize(dtype, raw)
        expected = x.astype(np.float64) @ weights.astype(np.float64).T
        for rows in (1, 17, 33):
            w = packed(dtype, raw[:rows], cols)
            for n in (1, 3, 8, 33):
                actual = kernels.matmul(x[:n], w, exact=True)
                bound = product_bound(x[:n], weights[:rows])
                assert (np.abs(actual - expected[:n, :rows]) <= bound).all()


@pytest.mark.parametrize("dtype", [*FLOAT_TYPES, *FP8_TYPES])
def test_float_weights_are_exact_with_or_without_asking(dtype: str) -> None:
    rng, cols = np.random.default_rng(3), columns(dtype)[1]
    x, raw = random_activations(rng, 5, cols), random_raw(rng, dtype, 20, cols)
    w = packed(dtype, raw, cols)
    np.testing.assert_array_equal(kernels.matmul(x, w), kernels.matmul(x, w, exact=True))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", LAYOUTS)
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(dtype: str, exact: bool) -> None:
    rng = np.random.default_rng(4)
    cols = columns(dtype)[-1]
    w = packed(dtype, random_raw(rng, dtype, 100, cols), cols)
    x = random_activations(rng, 100, cols)
    alone = np.concatenate([kernels.matmul(x[i : i + 1], w, exact=exact) for i in range(100)])
    more = {7: (1, 2), 33: (1, 3), 100: (1, 2, 3)}  # threads
    for n in (*COUNTS, 11, 12, 100):
        for threads in more.get(n, (1,)):
            batch = kernels.matmul(x[:n], w, exact=exact, threads=threads)
            np.testing.assert_array_equal(bits(batch), bits(alone[:n]))
    shuffled = rng.permutation(100)
    batch = kernels.matmul(x[shuffled], w, exact=exact)
    np.testing.assert_array_equal(bits(batch), bits(alone[shuffled]))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", LAYOUTS)
def test_a_weight_row_has_the_same_bits_in_any_matrix(dtype: str, exact: bool) -> None:
    rng = np.random.default_rng(5)
    cols = columns(dtype)[-1]
    raw, x = random_raw(rng, dtype, 100, cols), random_activations(rng, 9, cols)
    whole = kernels.matmul(x, packed(dtype, raw, cols), exact=exact)
    for first, stop in ((0, 1), (16, 32), (37, 92)):
        part = kernels.matmul(x, packed(dtype, raw[first:stop], cols), exact=exact)
        np.testing.assert_array_equal(bits(part), bits(whole[:, first:stop].copy()))


@pytest.mark.parametrize("dtype", ["F16", "Q4_K", "I4G32", "F8G32", "I8G32"])
def test_columns_in_another_order_change_nothing_but_the_order(dtype: str) -> None:
    rng, cols = np.random.default_rng(11), columns(dtype)[-1]
    x = random_activations(rng, 9, cols)
    order = rng.permutation(cols).astype(np.int32)
    w, plain = (packed(dtype, raw, cols) for raw in [random_raw(rng, dtype, 33, cols)] * 2)
    w.columns = order
    shuffled = np.ascontiguousarray(x[:, order])
    for exact in (False, True):
        expected = kernels.matmul(shuffled, plain, exact=exact)
        for given in (x, kernels.Activations(x)):
            np.testing.assert_array_equal(kernels.matmul(given, w, exact=exact), expected)
        for actual in kernels.matmuls(x, [w, w], exact=exact):
            np.testing.assert_array_equal(actual, expected)
    rows = np.array([32, 0], np.int32)
    np.testing.assert_array_equal(w.row_values(rows)[:, order], plain.row_values(rows))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "Q4_1", "Q4_K", "Q6_K"])
def test_a_bias_is_added_last(dtype: str) -> None:
    rng = np.random.default_rng(6)
    cols = columns(dtype)[-1]
    w = packed(dtype, random_raw(rng, dtype, 33, cols), cols)
    x, bias = random_activations(rng, 9, cols), rng.normal(0, 1, 33).astype(np.float32)
    for exact in (False, True):
        for n in (1, 4, 9):
            expected = kernels.matmul(x[:n], w, exact=exact) + bias
            actual = kernels.matmul(x[:n], w, bias=bias, exact=exact, threads=2)
            np.testing.assert_array_equal(bits(actual), bits(expected))


@pytest.mark.parametrize("dtype", ["F16", "Q4_K", "Q8_0"])
def test_activations_made_once_serve_several_matrices(dtype: str) -> None:
    rng = np.random.default_rng(7)
    cols = columns(dtype)[-1]
    x = random_activations(rng, 6, cols)
    shared = kernels.Activations(x.copy())  # which nothing else keeps alive
    for rows in (17, 40):
        w = packed(dtype, random_raw(rng, dtype, rows, cols), cols)
        for exact in (False, True, False):
            expected = kernels.matmul(x, w, exact=exact)
            actual = kernels.matmul(shared, w, exact=exact)
            np.testing.assert_array_equal(bits(actual), bits(expected))


def test_quantised_activations_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(8)
    for n, cols in ((1, 32), (3, 96), (100, 256), (7, 4096)):
        x = random_activations(rng, n, cols)
        values, scales = kernels.quantize_rows(x)
        expected_values, expected_scales = reference.quantize_rows(x)
        assert (values.dtype, scales.dtype) == (np.int8, np.float32)
        np.testing.assert_array_equal(values, expected_values)
        np.testing.assert_array_equal(bits(scales), bits(expected_scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_has_no_finite_scale(bad: float) -> None:
    x = np.ones((1, 64), np.float32)
    x[0, 40] = bad
    values, scales = kernels.quantize_rows(x)
    expected_values, expected_scales = reference.quantize_rows(x)
    assert np.isnan(scales).tolist() == [[False, True]]
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(scales, expected_scales)


def test_activations_halfway_between_two_integers_go_to_the_even_one() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 125.5, -126.5]
    values, scales = kernels.quantize_rows(x)
    assert values[0, :8].tolist() == [127, 0, 2, 2, 0, -2, 126, -126]
    assert scales.tolist() == [[1.0]]


def test_rows_of_zeros_quantise_to_zeros_and_multiply_to_the_bias() -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, :32] = -0.0
    values, scales = kernels.quantize_rows(x)
    assert not values.any()
    assert not scales.any()
    w = packed("Q4_1", random_raw(np.random.default_rng(9), "Q4_1", 20, 64), 64)
    bias = np.arange(20, dtype=np.float32)
    np.testing.assert_array_equal(kernels.matmul(x, w, bias=bias), np.stack([bias, bias]))


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38, 3e-37, 3e38])
def test_activations_at_the_ends_of_float32_do_not_turn_into_rubbish(magnitude: float) -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :3] = [magnitude, -magnitude, magnitude / 2]
    x[0, 32:] = 1
    values, scales = kernels.quantize_rows(x)
    restored = values.reshape(2, 32).astype(np.float64) * scales[0, :, None]
    error = np.abs(restored - x.reshape(2, 32)).max(axis=1)
    # 127 / 3.7e-37 is past the largest float32: a block that small counts as zeros.
    assert error[0] <= max(3.8e-37, 0.51 * magnitude / 127)
    assert error[1] <= 0.51 / 127


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_spoils_itself_and_no_other(
    dtype: str, exact: bool, bad: float
) -> None:
    rng = np.random.default_rng(10)
    w = packed(dtype, random_raw(rng, dtype, 20, 256), 256)
    x = random_activations(rng, 9, 256)
    expected = kernels.matmul(x, w, exact=exact)
    for column in (0, 5, 37, 255):
        spoiled = x.copy()
        spoiled[4, column] = bad
        actual = kernels.matmul(spoiled, w, exact=exact)
        assert not np.isfinite(actual[4]).any()
        others = np.arange(9) != 4
        np.testing.assert_array_equal(bits(actual[others]), bits(expected[others]))


def test_callers_in_several_threads_do_not_meet() -> None:
    rng = np.random.default_rng(12)
    w = packed("Q4_K", random_raw(rng, "Q4_K", 200, 512), 512)
    batches = [random_activations(rng, n, 512) for n in (1, 8, 20, 33) * 4]
    expected = [kernels.matmul(x, w) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda x: kernels.matmul(x, w, threads=2), batches))
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(bits(one), bits(other))


def test_no_rows_give_no_rows() -> None:
    w = packed("Q4_0", random_raw(np.random.default_rng(11), "Q4_0", 20, 64), 64)
    assert kernels.matmul(np.zeros((0, 64), np.float32), w).shape == (0, 20)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 32), np.float32),  # columns of another matrix
        np.zeros((2, 65), np.float32),
        np.zeros(64, np.float32),
        np.zeros((1, 2, 64), np.float32),
        np.zeros((2, 64), np.float64),
        np.zeros((2, 64), np.float16),
        np.zeros((2, 64), np.int32),
        np.zeros((4, 64), np.float32)[::2],  # not contiguous
        np.zeros((64, 2), np.float32).T,
        [[0.0] * 64],
        None,
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_rows_that_do_not_fit_the_matrix_are_refused(x: np.ndarray, exact: bool) -> None:
    w = packed("Q4_0", np.zeros((20, 36), np.uint8), 64)
    with pytest.raises(BAD):
        kernels.matmul(x, w, exact=exact)


@pytest.mark.parametrize(
    "bias",
    [
        np.zeros(19, np.float32),
        np.zeros(21, np.float32),
        np.zeros((1, 20), np.float32),
        np.zeros(20, np.float64),
        np.zeros(40, np.float32)[::2],
    ],
)
def test_a_bias_that_does_not_fit_the_matrix_is_refused(bias: np.ndarray) -> None:
    w = packed("Q4_0", np.zeros((20, 36), np.uint8), 64)
    with pytest.raises(BAD):
        kernels.matmul(np.zeros((2, 64), np.float32), w, bias=bias)


def test_rows_of_no_whole_number_of_blocks_are_not_quantised() -> None:
    with pytest.raises(BAD):
        kernels.quantize_rows(np.zeros((2, 33), np.float32))


@pytest.mark.parametrize("threads", [0, -1, 2**40])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    w = packed("Q4_0", np.zeros((20, 36), np.uint8), 64)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        kernels.matmul(np.zeros((2, 64), np.float32), w, threads=threads)
