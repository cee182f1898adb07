"""Floats to blocks: the bits of the numpy twin, and errors as small as a search can make them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from dure import kernels
from dure.kernels import quantize_reference
from dure.kernels.dequantize import block_size, dequantize

TYPES = quantize_reference.TYPES


def weights(rows: int, cols: int, *, seed: int = 0) -> np.ndarray:
    """Like a model's: rows of unlike spread, outliers, a block of zeros, one of equal values."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(5, (rows, cols)) * 0.02 * np.exp(rng.normal(0, 0.5, (rows, 1)))
    x[0, :256], x[-1, -256:] = 0, -0.375
    x[rows // 2, ::2] = np.abs(x[rows // 2, ::2])
    return x.astype(np.float32)


def error(dtype: str, raw: np.ndarray, x: np.ndarray) -> float:
    """The mean squared error of the blocks, by our own dequantisation."""
    return float(np.square(dequantize(dtype, raw) - x, dtype=np.float64).mean())


def columns(count: int) -> np.ndarray:
    """Importances of columns as real ones are: a few of them a hundred times the others."""
    drawn = np.random.default_rng(11).lognormal(0, 2, count).astype(np.float32)
    return np.maximum(drawn / drawn.mean(), np.float32(1e-3))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows, width", [(1, 1), (3, 1), (7, 3)])
def test_blocks_are_the_twins_bit_for_bit(dtype: str, rows: int, width: int) -> None:
    x = weights(rows, width * 256, seed=width)
    for importance in (None, columns(width * 256)):
        expected = quantize_reference.quantize_blocks(dtype, x, importance)
        found = kernels.quantize_blocks(dtype, x, importance, threads=2)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype != "Q8_0"])
def test_importance_moves_the_error_to_columns_that_matter_less(dtype: str) -> None:
    x, importance = weights(64, 512, seed=2), columns(512)

    def cost(raw: np.ndarray) -> float:
        return float((importance * np.square(dequantize(dtype, raw) - x)).sum())

    plain, weighed = (kernels.quantize_blocks(dtype, x, each) for each in (None, importance))
    assert cost(weighed) < 0.97 * cost(plain)
    assert error(dtype, weighed, x) > error(dtype, plain, x)


def test_equal_importance_changes_nothing() -> None:
    x = weights(4, 512)
    for dtype in TYPES:
        equal = kernels.quantize_blocks(dtype, x, np.ones(512, np.float32))
        np.testing.assert_array_equal(equal, kernels.quantize_blocks(dtype, x))


def test_importance_of_other_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="one entry a column"):
        kernels.quantize_blocks("Q4_K", weights(1, 512), np.ones(256, np.float32))


@pytest.mark.parametrize("dtype", TYPES)
def test_scales_of_all_sizes_are_the_twins(dtype: str) -> None:
    rng = np.random.default_rng(3)
    sizes = np.float32(2.0) ** np.arange(-40, 15)[:, None]
    x = (rng.normal(0, 1, (len(sizes), 256)) * sizes).astype(np.float32)
    expected = quantize_reference.quantize_blocks(dtype, x)
    np.testing.assert_array_equal(kernels.quantize_blocks(dtype, x), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_has_the_same_bits_in_any_company_and_with_any_threads(dtype: str) -> None:
    x = weights(9, 768)
    whole = kernels.quantize_blocks(dtype, x)
    np.testing.assert_array_equal(kernels.quantize_blocks(dtype, x, threads=3), whole)
    for row in range(9):
        alone = kernels.quantize_blocks(dtype, np.ascontiguousarray(x[row : row + 1]))
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q5_0", "Q5_1", "MXFP4"])
def test_the_error_is_no_worse_than_the_gguf_packages(dtype: str) -> None:
    x = weights(64, 1024, seed=5)
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[dtype])
    assert error(dtype, kernels.quantize_blocks(dtype, x), x) <= 1.001 * error(dtype, theirs, x)


# Shares of the values' own variance. llama.cpp's quantiser leaves 5.09e-3, 3.16e-4, 1.82e-3 and
# 7.41e-3 of it for the first four. A fifth bit halves a step: a quarter of the error is the theory.
@pytest.mark.parametrize(
    "dtype, share",
    [
        *(("Q4_K", 5.15e-3), ("Q6_K", 3.1e-4), ("Q5_0", 1.7e-3), ("Q4_0", 6.9e-3)),
        *(("Q5_K", 5.15e-3 / 4), ("Q5_1", 1.2e-3), ("IQ4_NL", 5.45e-3), ("IQ4_XS", 5.6e-3)),
        ("MXFP4", 1.26e-2),
    ],
)
def test_normal_weights_lose_no_more_than_measured(dtype: str, share: float) -> None:
    x = np.random.default_rng(7).normal(0, 0.02, (64, 1024)).astype(np.float32)
    assert error(dtype, kernels.quantize_blocks(dtype, x), x) <= share * float(x.var())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_gguf_package_reads_the_blocks_as_we_do(dtype: str) -> None:
    x = weights(5, 512)
    raw = kernels.quantize_blocks(dtype, x)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[dtype])
    np.testing.assert_array_equal(theirs, dequantize(dtype, raw))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(dtype: str, value: float) -> None:
    x = weights(2, 512)
    x[1, 300] = value
    with pytest.raises(ValueError, match="finite"):
        kernels.quantize_blocks(dtype, x)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_weight_too_large_for_the_blocks_scale_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="beyond"):
        kernels.quantize_blocks(dtype, np.full((1, 256), -1e20, np.float32))


def test_a_type_or_a_width_without_a_quantiser_is_refused() -> None:
    with pytest.raises(ValueError, match="Q2_K"):
        kernels.quantize_blocks("Q2_K", np.zeros((1, 256), np.float32))
    for dtype in TYPES:
        with pytest.raises(ValueError, match="multiples"):
            kernels.quantize_blocks(dtype, np.zeros((1, block_size(dtype) - 16), np.float32))
