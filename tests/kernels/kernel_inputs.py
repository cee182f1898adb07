"""Random weights, caches and batches that the kernel tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from dure.kernels.dequantize_reference import LAYOUTS, block_size, row_bytes

# Column counts that end inside, on and past the tiles a kernel may use.
COLS = {1: (1, 7, 33, 64), 32: (32, 96, 576), 256: (256, 768)}
ROWS = (1, 15, 16, 17, 33, 100)


def columns(dtype: str) -> tuple[int, ...]:
    """Column counts to try for `dtype`."""
    return COLS[block_size(dtype)]


def random_raw(rng: np.random.Generator, dtype: str, rows: int, cols: int) -> np.ndarray:
    """Rows of random blocks, uint8 (rows, bytes): every code may occur, every scale is finite."""
    raw = rng.integers(0, 256, (rows, row_bytes(dtype, cols)), dtype=np.uint8)
    return with_scales(raw, dtype, lambda shape: rng.normal(0, 0.1, shape), rng)


def constant_raw(dtype: str, rows: int, cols: int, byte: int, scale: float) -> np.ndarray:
    """Rows whose every byte is `byte` and whose every float16 is `scale`."""
    raw = np.full((rows, row_bytes(dtype, cols)), byte, dtype=np.uint8)
    return with_scales(raw, dtype, lambda shape: np.full(shape, scale))


def with_scales(
    raw: np.ndarray, dtype: str, draw: Any, rng: np.random.Generator | None = None
) -> np.ndarray:
    """`raw` with its floating-point fields drawn anew."""
    blocks = raw.view(LAYOUTS[dtype])
    for name in ("scale", "min", "value"):
        if name not in (LAYOUTS[dtype].names or ()):
            continue
        values = draw(blocks.shape).astype(np.float32)
        if dtype == "BF16":
            blocks[name] = values.view(np.uint32) >> 16
        else:
            blocks[name] = values
    if dtype == "MXFP4":  # 2^-13 to 2^2
        exponents = 124 if rng is None else rng.integers(115, 131, blocks.shape)
        blocks["exponent"] = exponents
    return raw


def random_activations(rng: np.random.Generator, n: int, cols: int) -> np.ndarray:
    """Rows of mixed magnitude, float32 (n, cols), with outliers and zero blocks here and there."""
    x = rng.normal(0, 1, (n, cols)) * np.exp(rng.normal(0, 1, (n, 1)))
    x[rng.random((n, cols)) < 0.01] *= 30
    if cols >= 64:
        x[:: max(1, n // 3), :32] = 0
    return x.astype(np.float32)
