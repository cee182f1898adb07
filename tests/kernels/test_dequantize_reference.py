"""The numpy meaning of each block format against the gguf package."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest
from kernel_inputs import columns, constant_raw, random_raw

from dure.kernels.dequantize import (
    AFFINE_TYPES,
    FLOAT_TYPES,
    FP8_TYPES,
    GROUPED_TYPES,
    INT8_TYPES,
    LAYOUTS,
    NVFP4_TYPES,
    OWN_TYPES,
    QUANTIZED_TYPES,
    block_size,
    dequantize,
    integer_blocks,
    row_bytes,
)

IN_GGUF = tuple(name for name in LAYOUTS if name not in OWN_TYPES)


def oracle(dtype: str, raw: np.ndarray) -> np.ndarray:
    """What the gguf package reads from the same bytes."""
    with np.errstate(over="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[dtype])


def bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values, so that -0 and 0 differ."""
    return values.view(np.uint32)


@pytest.mark.parametrize("dtype", IN_GGUF)
def test_block_sizes_are_those_of_gguf(dtype: str) -> None:
    expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    assert expected == (block_size(dtype), LAYOUTS[dtype].itemsize)


@pytest.mark.parametrize("dtype", IN_GGUF)
def test_random_blocks_have_the_bits_that_gguf_reads(dtype: str) -> None:
    rng = np.random.default_rng(1)
    for cols in columns(dtype):
        raw = random_raw(rng, dtype, 21, cols)
        expected = oracle(dtype, raw)
        actual = dequantize(dtype, raw)
        assert actual.dtype == np.float32
        assert actual.shape == (21, cols)
        np.testing.assert_array_equal(bits(actual), bits(expected))


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0])
@pytest.mark.parametrize("dtype", [name for name in IN_GGUF if name not in FLOAT_TYPES])
def test_extreme_codes_have_the_bits_that_gguf_reads(dtype: str, byte: int) -> None:
    for scale in (65504.0, -65504.0, 6e-8, 0.0, -0.0):
        raw = constant_raw(dtype, 2, block_size(dtype), byte, scale)
        np.testing.assert_array_equal(bits(dequantize(dtype, raw)), bits(oracle(dtype, raw)))


@pytest.mark.parametrize("dtype", ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_blocks_quantised_by_gguf_come_back_close_to_their_values(dtype: str) -> None:
    values = np.random.default_rng(2).normal(0, 1, (8, 256)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[dtype])
    np.testing.assert_array_equal(dequantize(dtype, raw), oracle(dtype, raw))
    # The coarsest of these, 4-bit floats, err by at most a quarter of the block's largest value.
    assert np.abs(dequantize(dtype, raw) - values).max() < 0.25 * np.abs(values).max()


def test_every_exponent_of_mxfp4_has_the_bits_that_gguf_reads() -> None:
    raw = constant_raw("MXFP4", 256, 32, 0x75, 0.0)
    raw.view(LAYOUTS["MXFP4"])["exponent"] = np.arange(256)[:, None]
    np.testing.assert_array_equal(bits(dequantize("MXFP4", raw)), bits(oracle("MXFP4", raw)))


@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_a_damaged_scale_stays_within_its_block(dtype: str) -> None:
    cols = 2 * block_size(dtype)
    raw = random_raw(np.random.default_rng(3), dtype, 1, cols)
    whole = dequantize(dtype, raw)
    blocks = raw.view(LAYOUTS[dtype])
    if dtype == "MXFP4":
        blocks["exponent"][:, 1] = 255  # 2^127, times up to 6: past the largest float32
        assert np.isinf(dequantize(dtype, raw)[:, cols // 2 :]).any()
    elif dtype in ("B16G64", "H16G64"):  # whose scale is made from the values
        blocks["value"][:, 1, 5] = 0x7FC0 if dtype == "B16G64" else np.nan
        assert np.isnan(dequantize(dtype, raw)[:, cols // 2 :]).all()
    else:
        blocks["scale"][:, 1] = np.nan
        assert np.isnan(dequantize(dtype, raw)[:, cols // 2 :]).all()
    np.testing.assert_array_equal(dequantize(dtype, raw)[:, : cols // 2], whole[:, : cols // 2])


@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_codes_fit_their_bits_and_groups_are_16_or_32(dtype: str) -> None:
    raw = random_raw(np.random.default_rng(4), dtype, 3, 512)
    blocks = integer_blocks(dtype, raw)
    assert blocks.codes.dtype == (np.int16 if dtype in ("B16G64", "H16G64") else np.int8)
    of_16 = ("Q2_K", "Q3_K", "Q6_K", "A4G16", "A8G16", *NVFP4_TYPES)
    assert blocks.group == (16 if dtype in of_16 else 32)
    with_mins = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K", *GROUPED_TYPES, *AFFINE_TYPES)
    assert (blocks.mins is not None) == (dtype in with_mins)


@pytest.mark.parametrize("dtype", GROUPED_TYPES)
def test_a_grouped_weight_is_the_scale_times_code_less_zero_point(dtype: str) -> None:
    codes, scales, raw = own_blocks(dtype, lambda _i: bytes([9]))
    expected = scales.repeat(block_size(dtype)) * (codes.astype(np.float32) - 9)
    np.testing.assert_array_equal(bits(dequantize(dtype, raw)[0]), bits(expected))


def own_blocks(
    dtype: str, rest: Callable[[int], bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and scales of two blocks, and their bytes; rest: what follows a block's scale."""
    size, four = block_size(dtype), dtype.startswith(("I4", "A4", "NV4"))
    codes = (np.arange(2 * size) * 7 % (16 if four else 256)).astype(np.uint8)
    scales = np.array([0.1, 3e-5], np.float32)
    data = b""
    for i in (0, size):
        own = codes[i : i + size]
        data += (own[::2] | own[1::2] << 4 if four else own).tobytes()
        data += scales[i // size].tobytes() + rest(i // size)
    return codes, scales, np.frombuffer(data, np.uint8)[None]


@pytest.mark.parametrize("dtype", INT8_TYPES)
def test_an_int8_weight_is_scale_times_code(dtype: str) -> None:
    codes, scales, raw = own_blocks(dtype, lambda _i: b"")
    expected = scales.repeat(block_size(dtype)) * codes.view(np.int8).astype(np.float32)
    np.testing.assert_array_equal(bits(dequantize(dtype, raw)[0]), bits(expected))


@pytest.mark.parametrize("dtype", ["A4G16", "A8G16"])
def test_an_affine_weight_of_16_columns_has_a_scale_and_minimum_of_its_own(dtype: str) -> None:
    codes = (np.arange(64) * 7 % (1 << int(dtype[1]))).astype(np.uint8)
    scales, minima = np.array([0.1, 3e-5, 2, 7], "<f4"), np.array([-0.37, 1e-4, 5, -1], "<f4")
    data = b"".join(
        codes[32 * i : 32 * i + 32].tobytes()
        + scales[2 * i : 2 * i + 2].tobytes()
        + minima[2 * i : 2 * i + 2].tobytes()
        for i in range(2)
    )
    raw = np.frombuffer(data, np.uint8)[None]
    expected = scales.repeat(16) * codes.astype(np.float32) + minima.repeat(16)
    np.testing.assert_array_equal(bits(dequantize(dtype, raw)[0]), bits(expected))


@pytest.mark.parametrize("dtype", [name for name in AFFINE_TYPES if not name.endswith("G16")])
def test_an_affine_weight_is_scale_times_code_plus_minimum(dtype: str) -> None:
    minima = np.array([-0.37, 1e-4], np.float32)
    codes, scales, raw = own_blocks(dtype, lambda i: minima[i].tobytes())
    size = block_size(dtype)
    expected = scales.repeat(size) * codes.astype(np.float32) + minima.repeat(size)
    np.testing.assert_array_equal(bits(dequantize(dtype, raw)[0]), bits(expected))


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("dtype", NVFP4_TYPES)
def test_an_nvfp4_weight_is_value_times_scale_times_or_by_the_global(
    dtype: str, divides: bool
) -> None:
    import torch  # noqa: PLC0415  # seconds

    count = block_size(dtype) // 16
    groups = np.arange(2 * count, dtype=np.uint8) * 7 + 3
    codes, whole, raw = own_blocks(dtype, lambda i: groups[i * count : (i + 1) * count].tobytes())
    own = torch.from_numpy(groups).view(torch.float8_e4m3fn).float().numpy()
    each = whole.repeat(count)
    if divides:
        blocks = raw.copy().view(LAYOUTS[dtype])
        blocks["scale"] *= -1
        raw = blocks.view(np.uint8)
    scales = own / each if divides else own * each
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.where(codes < 8, e2m1[codes % 8], -e2m1[codes % 8])
    np.testing.assert_array_equal(dequantize(dtype, raw)[0], values * scales.repeat(16))


@pytest.mark.parametrize("dtype", FP8_TYPES)
def test_an_fp8_weight_is_the_value_that_torch_reads_times_the_scale(dtype: str) -> None:
    import torch  # noqa: PLC0415  # seconds

    codes = np.array([code for code in range(256) if code & 127 != 127] * 64, np.uint8)
    codes = codes.reshape(-1, block_size(dtype))
    scales = np.random.default_rng(5).normal(0, 1e-3, len(codes)).astype(np.float32)
    raw = np.concatenate([codes, scales[:, None].view(np.uint8)], axis=1)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy() * scales[:, None]
    np.testing.assert_array_equal(bits(dequantize(dtype, raw)), bits(expected))


def test_rows_that_are_no_whole_number_of_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="Q4_K"):
        dequantize("Q4_K", np.zeros((1, 145), np.uint8))
    with pytest.raises(ValueError, match="multiples of 256"):
        row_bytes("Q4_K", 128)
    with pytest.raises(ValueError, match="Q9_9"):
        dequantize("Q9_9", np.zeros((1, 32), np.uint8))
    for dtype in FLOAT_TYPES:
        with pytest.raises(ValueError, match="not a quantised type"):
            integer_blocks(dtype, np.zeros((1, 32), np.uint8))
