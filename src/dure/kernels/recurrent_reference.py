"""Kernels of recurrent layers in numpy, in float64 throughout: the reference for the C++ ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Wide = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

STRIP = 32  # values of a head that lie together in a state


def short_conv(
    x: Float32Array,
    weight: Float32Array,
    states: Float32Array,
    positions: Int32Array,
    sequences: Int32Array,
    slots: Int32Array,
    saves: Int32Array,
    *,
    columns: Int32Array | None = None,
    with_silu: bool = True,
    threads: int = 1,
) -> Float32Array:
    """Compute silu of a causal convolution of each channel, float32 (n, channels)."""
    del threads
    kernel, channels = weight.shape
    kept = (kernel - 1) * channels
    inputs = x[:, columns if columns is not None else np.arange(channels)]
    out = np.empty((len(x), channels), np.float32)
    for rows, fresh, slot in _runs(positions, sequences, slots):
        before = np.zeros(kept) if fresh else states[slot, :kept].astype(np.float64)
        history = np.concatenate([before.reshape(kernel - 1, channels), inputs[rows]])
        for step, row in enumerate(rows):
            total = (history[step : step + kernel] * weight.astype(np.float64)).sum(axis=0)
            out[row] = total * _sigmoid(total) if with_silu else total
            for target in _targets(row, rows, slot, saves):
                states[target, :kept] = history[step + 1 : step + kernel].ravel()
    return out


def delta_rule(
    qkv: Float32Array,
    a: Float32Array,
    b: Float32Array,
    rate: Float32Array,
    bias: Float32Array,
    states: Float32Array,
    positions: Int32Array,
    sequences: Int32Array,
    slots: Int32Array,
    saves: Int32Array,
    *,
    key_heads: int,
    key_dim: int,
    offset: int = 0,
    bound: float = 0.0,
    threads: int = 1,
) -> Float32Array:
    """Compute the gated delta rule for each token, float32 (n, value heads * value_dim)."""
    del threads
    n, heads = b.shape
    split = key_heads * key_dim
    q, k, v = np.split(qkv.astype(np.float64), [split, 2 * split], axis=1)
    q = _unit(q.reshape(n, key_heads, key_dim)) / np.sqrt(key_dim)
    k = _unit(k.reshape(n, key_heads, key_dim))
    q, k = (np.repeat(each, heads // key_heads, axis=1) for each in (q, k))
    v = v.reshape(n, heads, -1)
    opened = (a.astype(np.float64) + bias).reshape(n, heads, -1)
    rates = rate[:, None].astype(np.float64)
    decay = np.exp(bound * _sigmoid(-rates * opened) if bound else rates * np.logaddexp(0, opened))
    beta = _sigmoid(b.astype(np.float64))
    shape = heads, -(-v.shape[2] // STRIP), key_dim, STRIP
    size = int(np.prod(shape))
    out = np.empty(v.shape, np.float32)
    for rows, fresh, slot in _runs(positions, sequences, slots):
        stored = np.zeros(size) if fresh else states[slot, offset : offset + size]
        matrices = stored.reshape(shape).swapaxes(1, 2).reshape(heads, key_dim, -1)
        matrices = matrices[:, :, : v.shape[2]].astype(np.float64)
        for row in rows:
            matrices *= decay[row, :, :, None]  # of each head, or each row of its matrix
            error = v[row] - np.einsum("hkv,hk->hv", matrices, k[row])
            matrices += np.einsum("hk,hv->hkv", k[row], beta[row, :, None] * error)
            out[row] = np.einsum("hkv,hk->hv", matrices, q[row])
            for target in _targets(row, rows, slot, saves):
                padded = np.zeros((heads, key_dim, shape[1] * STRIP))
                padded[:, :, : v.shape[2]] = matrices
                strips = padded.reshape(heads, key_dim, -1, STRIP).swapaxes(1, 2)
                states[target, offset : offset + size] = strips.ravel()
    return out.reshape(n, -1)


def gated_norm(
    x: Float32Array,
    weight: Float32Array,
    eps: float,
    gate: Float32Array,
    *,
    columns: Int32Array | None = None,
    with_silu: bool = True,
    threads: int = 1,
) -> Float32Array:
    """Compute each head's RMSNorm times silu or sigmoid of the gate, float32 of x's shape."""
    del threads
    wide = x.reshape(len(x), -1, len(weight)).astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps) * weight
    gates = gate[:, columns if columns is not None else np.arange(x.shape[1])].astype(np.float64)
    opened = _sigmoid(gates) * (gates if with_silu else 1.0)
    result: Float32Array = (normed.reshape(x.shape) * opened).astype(np.float32)
    return result


def sigmoid_mul(
    x: Float32Array, gate: Float32Array, *, columns: Int32Array | None = None, threads: int = 1
) -> Float32Array:
    """Compute x * sigmoid(gate), float32 of x's shape."""
    del threads
    gates = gate[:, columns if columns is not None else np.arange(x.shape[1])]
    result: Float32Array = (x * _sigmoid(gates.astype(np.float64))).astype(np.float32)
    return result


def _runs(
    positions: Int32Array, sequences: Int32Array, slots: Int32Array
) -> Iterator[tuple[list[int], bool, int]]:
    """Yield for each sequence its rows, whether it starts anew, and its slot."""
    bounds = [0, *(np.flatnonzero(np.diff(sequences)) + 1).tolist(), len(sequences)]
    for first, end in pairwise(bounds):
        if end > first:
            yield list(range(first, end)), positions[first] == 0, int(slots[sequences[first]])


def _targets(row: int, rows: list[int], slot: int, saves: Int32Array) -> list[int]:
    """Return the slots to which the state after `row` is written."""
    return [int(to) for at, to in saves if at == row] + ([slot] if row == rows[-1] else [])


def _unit(x: Wide) -> Wide:
    unit: Wide = x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + 1e-6)
    return unit


def _sigmoid(x: Wide) -> Wide:
    with np.errstate(over="ignore"):  # exp(1000) is infinite, and its sigmoid rightly 0
        return 1.0 / (1.0 + np.exp(-x))
