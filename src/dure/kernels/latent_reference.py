"""Latent attention in numpy: the reference for the C++ kernels."""

from __future__ import annotations

import numpy as np

from dure.kernels.dequantize import dequantize
from dure.kernels.reference import (
    ACTIVATION_BLOCK,
    CACHE_BLOCK,
    Array,
    Float32Array,
    Int32Array,
    Matrix,
    QuantizedMatrix,
    cache_codes,
    matmul,
)

__all__ = ["head_matmul", "latent_attention", "write_latent"]


def _entries(cache: Array, width: int) -> Array:
    """Return the entries (blocks, 32, width) of a latent cache; int8 codes if it is of bytes."""
    numbers = cache.view(np.int8) if cache.dtype == np.uint8 else cache
    return numbers[..., : CACHE_BLOCK * width].reshape(len(cache), CACHE_BLOCK, width)


def _scales(cache: Array, width: int) -> Float32Array:
    """Return the scales (blocks, groups, 32) of a latent cache of bytes."""
    return cache[..., CACHE_BLOCK * width :].view(np.float32).reshape(len(cache), -1, CACHE_BLOCK)


def write_latent(
    latent: Float32Array,
    rotated: Float32Array,
    cache: Array,
    positions: Int32Array,
    sequences: Int32Array,
    block_tables: Int32Array,
) -> None:
    """Write latent (n, c) and rotated (n, r) to cache (blocks, 1, 32 * (c + r)).

    In a cache of bytes the scales (groups, 32) follow.
    """
    blocks, slots = block_tables[sequences, positions // CACHE_BLOCK], positions % CACHE_BLOCK
    entries = np.concatenate([latent, rotated], axis=1)
    width = entries.shape[1]
    if cache.dtype == np.uint8:
        entries, scales = cache_codes(entries)
        _scales(cache, width)[blocks, :, slots] = scales
    _entries(cache, width)[blocks, slots] = entries


def latent_attention(
    q: Float32Array,
    cache: Array,
    positions: Int32Array,
    sequences: Int32Array,
    block_tables: Int32Array,
    *,
    latent: int,
    scale: float,
    threads: int = 1,
) -> Float32Array:
    """Compute each head's softmax-weighted sum of the cached latents, (n, heads, c)."""
    del threads
    out = np.empty((*q.shape[:2], latent), np.float32)
    stored = _entries(cache, q.shape[2])
    for row, position in enumerate(positions):
        seen = np.arange(int(position) + 1)
        blocks = block_tables[sequences[row], seen // CACHE_BLOCK]
        entries = stored[blocks, seen % CACHE_BLOCK].astype(np.float64)  # (seen, c + r)
        if cache.dtype == np.uint8:
            scales = _scales(cache, q.shape[2])[blocks, :, seen % CACHE_BLOCK]
            entries *= np.repeat(scales, ACTIVATION_BLOCK, axis=1)[:, : q.shape[2]]
        scores = q[row].astype(np.float64) @ entries.T * scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[row] = weights @ entries[:, :latent] / weights.sum(axis=1, keepdims=True)
    return out


def head_matmul(
    x: Float32Array,
    w: Matrix,
    *,
    outputs: int,
    first: int = 0,
    exact: bool = False,
    threads: int = 1,
) -> Float32Array:
    """Multiply each head's x (n, heads, ≥ cols) with its rows of w: (n, heads, outputs)."""
    del threads
    heads = x.shape[1]
    period = len(w.raw if isinstance(w, QuantizedMatrix) else w) // heads
    results = []
    for head in range(heads):
        rows = slice(head * period + first, head * period + first + outputs)
        own: Matrix
        if isinstance(w, QuantizedMatrix):
            own, cols = QuantizedMatrix(w.dtype, w.raw[rows]), dequantize(w.dtype, w.raw[:1]).size
        else:
            own, cols = w[rows], w.shape[1]
        results.append(matmul(np.ascontiguousarray(x[:, head, :cols]), own, exact=exact))
    return np.stack(results, axis=1)
