"""Random weights, caches and batches that the kernel tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dure import kernels
from dure.kernels import reference
from dure.kernels.dequantize import LAYOUTS, NVFP4_TYPES, block_size, row_bytes

# Column counts that end inside, on and past the tiles a kernel may use.
COLS = {
    1: (1, 7, 33, 576),
    32: (32, 96, 1056),
    64: (64, 192, 1088),
    128: (128, 1280),
    256: (256, 1280),
}
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
        values = draw(blocks[name].shape).astype(np.float32)
        if blocks[name].dtype.kind == "u":  # BF16
            blocks[name] = values.view(np.uint32) >> 16
        else:
            blocks[name] = values
    if dtype.startswith("I4G"):
        blocks["zero"] %= 17
    if dtype in NVFP4_TYPES:  # one sign for all: whether global scales divide
        sign = -1 if rng is not None and rng.integers(2) else 1
        blocks["scale"] = sign * np.maximum(np.abs(blocks["scale"]), np.float32(1e-3))
    if dtype.startswith("A") and "codes" in (LAYOUTS[dtype].names or ()):
        blocks["codes"] &= (1 << int(dtype[1])) - 1
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


def cache_shape(
    num_blocks: int, kv_heads: int, d: int, dtype: DTypeLike, values: int | None = None
) -> tuple[int, int, int]:
    """Of a cache; one of bytes holds a scale of four bytes for 32 columns of a key or value."""
    parts = d, d if values is None else values
    columns = sum(part + 4 * -(-part // 32) if dtype == np.uint8 else part for part in parts)
    return num_blocks, kv_heads, 32 * columns


@dataclass(frozen=True)
class PagedSequences:
    """Rows of several sequences over a paged cache whose unused slots hold garbage."""

    cache: np.ndarray  # (blocks, kv_heads, 2 * 32 * d)
    positions: np.ndarray  # (n,)
    sequences: np.ndarray  # (n,)
    block_tables: np.ndarray  # (sequences, blocks of the longest), padded with -1
    histories: list[tuple[np.ndarray, np.ndarray]]  # k and v (tokens, kv_heads, d), as cached

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What attention takes after its queries."""
        return self.cache, self.positions, self.sequences, self.block_tables

    def only(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same for some of the rows."""
        return self.cache, self.positions[rows], self.sequences[rows], self.block_tables


def paged_sequences(
    rng: np.random.Generator,
    spans: Sequence[tuple[int, int]],
    kv_heads: int,
    d: int,
    dtype: DTypeLike,
    values: int | None = None,
) -> PagedSequences:
    """Sequences with `past` cached tokens and `new` rows, for (past, new) of each span.

    Blocks lie in random order, others between them; every slot that holds no token of a sequence
    is NaN, infinite, huge or random, so that reading one shows.
    """
    used = [-(-(past + new) // 32) for past, new in spans]
    num_blocks = sum(used) + 3
    e = d if values is None else values
    shape = cache_shape(num_blocks, kv_heads, d, dtype, e)
    if dtype == np.uint8:
        # Random codes, and scales of which every second is not a number.
        cache = rng.integers(0, 256, shape, dtype=np.uint8)
        cache[..., 32 * (d + e) :].view(np.float32)[..., ::2] = np.nan
    else:
        cache = rng.choice([np.nan, np.inf, -np.inf, 6e4], shape).astype(dtype)
    free = rng.permutation(num_blocks)
    tables = np.full((len(spans), max(used) + 1), -1, np.int32)
    histories, positions, sequences = [], [], []
    for sequence, ((past, new), count) in enumerate(zip(spans, used, strict=True)):
        tables[sequence, :count], free = free[:count], free[count:]
        both = rng.normal(0, 1, (past + new) * kv_heads * (d + e))
        k, v = (
            part.reshape(past + new, kv_heads, -1).astype(
                np.float32 if dtype == np.uint8 else dtype
            )
            for part in np.split(both, [(past + new) * kv_heads * d])
        )
        every = np.arange(past + new, dtype=np.int32)
        own = np.full(past + new, sequence, np.int32)
        reference.write_cache(k, v, cache, every, own, tables)
        histories.append((k.astype(np.float32), v.astype(np.float32)))
        positions.append(every[past:])
        sequences.append(own[past:])
    return PagedSequences(
        cache, np.concatenate(positions), np.concatenate(sequences), tables, histories
    )


@dataclass(frozen=True)
class PagedLatents:
    """Rows of several sequences over a latent cache whose unused slots hold garbage."""

    cache: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    tables: np.ndarray

    def only(self, rows: slice) -> tuple[np.ndarray, ...]:
        """What latent_attention takes after its queries, for some of the rows."""
        return self.cache, self.positions[rows], self.sequences[rows], self.tables


def paged_latents(
    rng: np.random.Generator,
    spans: Sequence[tuple[int, int]],
    latent: int,
    rotated: int,
    dtype: DTypeLike,
) -> PagedLatents:
    """As paged_sequences, for a latent cache."""
    used = [-(-sum(span) // 32) for span in spans]
    blocks, columns = sum(used) + 3, latent + rotated
    if dtype == np.uint8:
        groups = -(-columns // 32)
        cache = rng.integers(0, 256, (blocks, 1, 32 * (columns + 4 * groups)), dtype=np.uint8)
        cache[..., 32 * columns :].view(np.float32)[..., ::2] = np.nan
    else:
        cache = rng.choice([np.nan, np.inf, -np.inf, 6e4], (blocks, 1, 32 * columns)).astype(dtype)
    free = rng.permutation(len(cache))
    tables = np.full((len(spans), max(used)), -1, np.int32)
    positions, sequences = [], []
    for sequence, (span, count) in enumerate(zip(spans, used, strict=True)):
        tables[sequence, :count], free = free[:count], free[count:]
        every = np.arange(sum(span), dtype=np.int32)
        own = np.full(sum(span), sequence, np.int32)
        entries = rng.normal(0, 1, (sum(span), columns)).astype(np.float32)
        parts = np.split(entries, [latent], axis=1)
        kernels.write_latent(*map(np.ascontiguousarray, parts), cache, every, own, tables)
        positions.append(every[span[0] :])
        sequences.append(own[span[0] :])
    return PagedLatents(cache, np.concatenate(positions), np.concatenate(sequences), tables)


def packed(dtype: str, raw: np.ndarray, cols: int) -> kernels.Matrix:
    """A matrix of these rows in the kernels' own layout."""
    matrix = kernels.Matrix(dtype, raw.shape[0], cols)
    matrix.fill(0, raw)
    return matrix


def bits(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values, so that -0 and 0 differ and NaN equals itself."""
    assert values.dtype == np.float32
    return np.ascontiguousarray(values).view(np.uint32)
