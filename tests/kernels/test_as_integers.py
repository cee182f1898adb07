"""How far floats move that are multiplied as integers, and that none moves otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_inputs import packed, random_raw

from dure.formats.blocks import AS_INTEGERS
from dure.kernels import reference
from dure.kernels.dequantize import LAYOUTS, block_size

ROWS, COLS = 200, 256


def values(dtype: str, raw: np.ndarray) -> np.ndarray:
    """What memory holds of these blocks."""
    cols = raw.shape[1] // LAYOUTS[dtype].itemsize * block_size(dtype)
    return packed(dtype, raw, cols).row_values(np.arange(len(raw), dtype=np.int32))


def fp8(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Blocks whose groups reach from noise of many powers of two to nothing but zeros."""
    raw = random_raw(rng, dtype, ROWS, COLS)
    codes = raw.view(LAYOUTS[dtype])["codes"]
    rows = np.arange(ROWS)[:, None, None]
    codes[:] = np.where(codes & 127 > rows % 127, codes & 128, codes)  # of every peak
    return raw


@pytest.mark.parametrize("stored", ["F8G32", "F8G128"])
def test_fp8_moves_by_a_128th_of_the_largest_of_32_at_most(stored: str) -> None:
    raw = fp8(np.random.default_rng(1), stored)
    before = reference.dequantize(stored, raw).reshape(ROWS, -1, 32)
    after = values(AS_INTEGERS[stored], raw).reshape(before.shape)
    most = np.abs(before).max(-1, keepdims=True)
    rounding = most * np.float32(2.0**-22)  # of scales and products to float32
    assert (np.abs(after - before) <= most / 128 + rounding).all()
    assert (most == 0).any() and (after != before).any()
    # Groups that reach down to an eighth of their peak are FP8's own values.
    least = np.where(before == 0, np.inf, np.abs(before)).min(-1, keepdims=True)
    even = np.broadcast_to(least >= most / 8, before.shape)
    assert even.any()
    assert (after == before)[even].all()


def test_uneven_groups_of_fp8_get_the_finer_step() -> None:
    """A peak of 8 units and all else far below: 15 codes to a unit are nearer than 8."""
    codes = np.full((1, 32), 0x20, np.uint8)
    codes[0, 0] = 0x50
    codes[0, 1:8] = 0x2B
    blocks = np.zeros((1, 1), LAYOUTS["F8G32"])
    blocks["codes"], blocks["scale"] = codes, 1
    raw = blocks.view(np.uint8)
    before, after = reference.dequantize("F8G32", raw), values("E8G32", raw)
    unit = 2.0 ** (10 - 10)  # the last bit of 0x50
    of_eight = np.rint(before / unit * 8) / 8 * unit
    assert np.square(after - before).sum() < np.square(of_eight - before).sum()


@pytest.mark.parametrize("stored", ["BF16", "F16"])
def test_16_bits_move_by_a_64000th_of_the_largest_of_64_at_most(stored: str) -> None:
    rng = np.random.default_rng(2)
    spread = np.exp2(rng.uniform(-12, 0, (ROWS, COLS)))
    floats = (rng.normal(0, 1, (ROWS, COLS)) * spread).astype(np.float32)
    floats[0] = 0
    if stored == "BF16":
        floats[1] *= np.float32(1e-38)  # too small for a scale
        raw = (floats.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    else:
        raw = floats.astype("<f2").view(np.uint8)
    before = reference.dequantize(stored, raw).reshape(ROWS, -1, 64)
    after = values(AS_INTEGERS[stored], raw).reshape(before.shape)
    most = np.abs(before).max(-1, keepdims=True)
    kept = most > 1e-30
    bound = most / 64000
    assert (np.abs(after - before) <= np.where(kept, bound, most)).all()
    assert (after[~np.broadcast_to(kept, after.shape)] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_none_afterwards(value: float) -> None:
    floats = np.ones((1, 64), np.float16)
    floats[0, 5] = value
    after = values("H16G64", floats.view(np.uint8))
    assert np.isnan(after).all()
    np.testing.assert_array_equal(after, reference.dequantize("H16G64", floats.view(np.uint8)))
