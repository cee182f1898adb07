"""Every kernel in numpy: slow and plain; the C++ kernels are tested against it.

Names and arguments are those of `dure.kernels`. A weight matrix is either a float32 array (rows,
cols) or QuantizedMatrix, rows as they lie in a model file. `threads` changes nothing here.

Integer arithmetic is followed bit for bit. Everything else is computed in float64 and rounded once,
so that a kernel's distance from it is the kernel's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dure.kernels.dequantize import dequantize, integer_blocks
from dure.kernels.recurrent_reference import delta_rule, gated_norm, short_conv, sigmoid_mul
from dure.kernels.sampling_reference import logprob, sample, sample_rows, top_logprobs, uniform

__all__ = [
    "ExpertMatrices",
    "QuantizedMatrix",
    "clamped_mul",
    "delta_rule",
    "dequantize",
    "embed",
    "experts_mlp",
    "gated_norm",
    "gelu_mul",
    "limited_mul",
    "logprob",
    "matmul",
    "paged_attention",
    "quantize_rows",
    "rms_norm",
    "rope",
    "rope_cache_attention",
    "route",
    "sample",
    "sample_rows",
    "short_conv",
    "sigmoid_mul",
    "silu_mul",
    "top_logprobs",
    "uniform",
    "write_cache",
]

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

ACTIVATION_BLOCK = 32  # activations that share one int8 scale
CACHE_BLOCK = 32  # tokens in one block of the cache


@dataclass(frozen=True)
class QuantizedMatrix:
    """Quantised rows as they lie in a model file: `raw` is uint8 (rows, bytes)."""

    dtype: str
    raw: npt.NDArray[np.uint8]


Matrix = Float32Array | QuantizedMatrix


def quantize_rows(x: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Quantise x (n, cols) to int8 values (n, cols) and float32 scales (n, cols / 32).

    A block's scale is its largest magnitude / 127; a value is x * (127 / largest), rounded to
    nearest, ties to even. A block of zeros, or so small that 127 / largest is infinite, has scale 0
    and values 0; one that holds a NaN or an infinity has scale NaN and values 0.
    """
    blocks = x.reshape(x.shape[0], -1, ACTIVATION_BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    most = np.float32(127.0)
    with np.errstate(over="ignore", divide="ignore"):
        inverse = most / largest
    whole = np.isfinite(largest) & np.isfinite(inverse)
    products = np.multiply(blocks, inverse, out=np.zeros_like(blocks), where=whole)
    scales = np.where(whole, largest, np.where(np.isfinite(largest), 0, np.nan)) / most
    return np.rint(products).astype(np.int8).reshape(x.shape), scales[..., 0].astype(np.float32)


def matmul(
    x: Float32Array,
    w: Matrix,
    *,
    bias: Float32Array | None = None,
    exact: bool = False,
    threads: int = 1,
) -> Float32Array:
    """Compute x @ w.T (+ bias), float32 (n, rows).

    Quantised weights are multiplied with int8 activations unless `exact`: integer sums of a block,
    then one fused multiply-add a block, in order, which this follows bit for bit.
    """
    del threads
    if isinstance(w, QuantizedMatrix) and not exact:
        y = _integer_matmul(x, w)
        return y if bias is None else y + bias
    weights = dequantize(w.dtype, w.raw) if isinstance(w, QuantizedMatrix) else w
    product = x.astype(np.float64) @ weights.astype(np.float64).T
    return (product if bias is None else product + bias).astype(np.float32)


def _integer_matmul(x: Float32Array, w: QuantizedMatrix) -> Float32Array:
    blocks = integer_blocks(w.dtype, w.raw)
    values, scales = quantize_rows(x)
    group = blocks.group
    # A group's sum is at most 32 * 128 * 127 < 2^24: float32 products of integers are exact. Of
    # codes of 16 bits they are exact in float64, and rounded once.
    exact: type[np.floating[Any]] = np.float32 if blocks.codes.dtype == np.int8 else np.float64
    codes: npt.NDArray[Any] = blocks.codes.reshape(-1, blocks.scales.shape[1], group).astype(exact)
    grouped: npt.NDArray[Any] = values.reshape(x.shape[0], -1, group).astype(exact)
    total: Float32Array = np.zeros((x.shape[0], w.raw.shape[0]), np.float32)
    for index in range(blocks.scales.shape[1]):
        scale = scales[:, index * group // ACTIVATION_BLOCK, None]
        dots = (grouped[:, index] @ codes[:, index].T).astype(np.float32) * scale
        total = _fused_multiply_add(dots, blocks.scales[None, :, index], total)
        if blocks.mins is not None:
            sums = grouped[:, index].sum(axis=1, keepdims=True) * scale
            total = _fused_multiply_add(sums, -blocks.mins[None, :, index], total)
    return total


def _fused_multiply_add(a: Float32Array, b: Float32Array, c: Float32Array) -> Float32Array:
    """Compute a * b + c rounded once to float32.

    The product is exact in float64. The sum is rounded to odd there (its last bit is set when
    anything was lost), and then rounding to float32 cannot round twice.
    """
    product = a.astype(np.float64) * b
    addend = np.broadcast_to(c, product.shape).astype(np.float64)
    total = product + addend
    of_addend = total - product
    lost = (product - (total - of_addend)) + (addend - of_addend)
    bits = total.view(np.int64)
    to_odd = (lost != 0) & np.isfinite(total) & (bits & 1 == 0)
    outward = (lost > 0) == (total > 0)
    bits += np.where(to_odd, np.where(outward, 1, -1), 0)
    rounded: Float32Array = total.astype(np.float32)
    return rounded


def embed(tokens: Int32Array, w: Matrix) -> Float32Array:
    """Look up the table's rows for tokens (n,), float32 (n, cols)."""
    rows: Float32Array = (
        dequantize(w.dtype, w.raw[tokens]) if isinstance(w, QuantizedMatrix) else w[tokens]
    )
    return rows


def rms_norm(
    x: Float32Array, weight: Float32Array, eps: float, *, threads: int = 1
) -> Float32Array:
    """Compute x / sqrt(mean(x^2) + eps) * weight along the last axis, float32 of x's shape."""
    del threads
    wide = x.astype(np.float64)
    normed = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps)
    scaled: Float32Array = (normed * weight).astype(np.float32)
    return scaled


def rope(
    x: Float32Array, cos: Float32Array, sin: Float32Array, *, interleaved: bool, threads: int = 1
) -> None:
    """Rotate x (n, heads, d) in place by cos, sin (n, r / 2); dims past r stay as they are.

    Pairs are (2i, 2i + 1) when interleaved, else (i, i + r / 2).
    """
    del threads
    half = cos.shape[1]
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    c, s = cos[:, None, :].astype(np.float64), sin[:, None, :].astype(np.float64)
    x[..., first] = a * c - b * s
    x[..., second] = b * c + a * s


def write_cache(
    k: Float32Array,
    v: Float32Array,
    cache: Array,
    positions: Int32Array,
    sequences: Int32Array,
    block_tables: Int32Array,
) -> None:
    """Write k (n, kv_heads, d) and v (n, kv_heads, e) to cache (blocks, kv_heads, 32 * (d + e)).

    Within one block and head, keys come first as (d, 32) and then values as (32, e). In a cache of
    bytes they are int8, and their scales follow, of each 32 columns: K's (groups, 32), then V's;
    keys are `_turned` before.
    """
    d, e = k.shape[2], v.shape[2]
    keys, values = _cache_views(cache, d, e)
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        block, slot = block_tables[sequence, position // CACHE_BLOCK], position % CACHE_BLOCK
        if cache.dtype == np.uint8:
            key_scales, value_scales = _cache_scales(cache, d, e)
            turned = _turned(k[row])
            keys[block, :, :, slot], key_scales[block, :, :, slot] = cache_codes(turned)
            values[block, :, slot, :], value_scales[block, :, :, slot] = cache_codes(v[row])
        else:
            keys[block, :, :, slot] = k[row]
            values[block, :, slot, :] = v[row]


def paged_attention(
    q: Float32Array,
    cache: Array,
    positions: Int32Array,
    sequences: Int32Array,
    block_tables: Int32Array,
    *,
    scale: float,
    window: int | None = None,
    sinks: Float32Array | None = None,
    values: int | None = None,
    value_scale: float = 1.0,
    threads: int = 1,
) -> Float32Array:
    """Compute attention of each query (n, heads, d) over its sequence's cache, (n, heads, values).

    Row i sees cached positions j <= positions[i], and j > positions[i] - window if there is one.
    Each head's sink is one more score, whose value is zero.
    """
    del threads
    n, heads, d = q.shape
    width = d if values is None else values
    cached_keys, cached_values = _cache_floats(cache, d, width)
    if cache.dtype == np.uint8:
        q, scale = _turned(q), scale / _turned_columns(d)
    group = heads // cache.shape[1]
    out = np.empty((n, heads, width), np.float32)
    for row in range(n):
        last = int(positions[row])
        seen = np.arange(0 if window is None else max(0, last - window + 1), last + 1)
        blocks, slots = block_tables[sequences[row], seen // CACHE_BLOCK], seen % CACHE_BLOCK
        k = cached_keys[blocks, :, :, slots].astype(np.float64)  # (seen, kv_heads, d)
        v = cached_values[blocks, :, slots, :].astype(np.float64)
        queries = q[row].reshape(-1, group, d).astype(np.float64)
        scores = np.einsum("hgd,shd->hgs", queries, k) * scale
        peak, rest = scores.max(axis=-1, keepdims=True), np.float64(0)
        if sinks is not None:
            sink = sinks.astype(np.float64).reshape(-1, group, 1)
            peak = np.maximum(peak, sink)
            rest = np.exp(sink - peak)
        weights = np.exp(scores - peak)
        total = weights.sum(axis=-1, keepdims=True) + rest
        gathered = np.einsum("hgs,shd->hgd", weights, v) / total * value_scale
        out[row] = gathered.reshape(heads, width)
    return out


def rope_cache_attention(
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    cache: Array,
    positions: Int32Array,
    sequences: Int32Array,
    block_tables: Int32Array,
    *,
    scale: float,
    chosen: Int32Array | None = None,
    rotation: tuple[Float32Array, Float32Array] | None = None,
    interleaved: bool = False,
    norms: tuple[Float32Array, Float32Array] | None = None,
    eps: float = 0.0,
    norm_last: bool = False,
    window: int | None = None,
    sinks: Float32Array | None = None,
    value_scale: float = 1.0,
    threads: int = 1,
) -> Float32Array:
    """Norm, rotate and cache k and v (n, kv_heads * …), then attend with q (m, heads * d).

    q is of the rows `chosen`, or of all. Returns (m, heads * the width of a value).
    """
    del threads
    kv_heads = cache.shape[1]
    d = k.shape[1] // kv_heads
    rows = np.arange(len(k)) if chosen is None else chosen

    def prepared(x: Float32Array, which: Array, index: int) -> Float32Array:
        x = x.reshape(len(x), x.shape[1] // d, d)
        if norms is not None and not norm_last:
            x = rms_norm(x, norms[index], eps)
        if rotation is not None:
            rope(x, rotation[0][which], rotation[1][which], interleaved=interleaved)
        if norms is not None and norm_last:
            x = rms_norm(x, norms[index], eps)
        return x

    keys = prepared(k, np.arange(len(k)), 1)
    v = v.reshape(len(v), kv_heads, -1)
    write_cache(keys, v, cache, positions, sequences, block_tables)
    queries = prepared(q, rows, 0)
    where = (positions[rows], sequences[rows], block_tables)
    gathered = paged_attention(
        queries,
        cache,
        *where,
        scale=scale,
        window=window,
        sinks=sinks,
        values=v.shape[2],
        value_scale=value_scale,
    )
    return gathered.reshape(len(q), gathered.shape[1] * gathered.shape[2])


def _cache_views(cache: Array, d: int, e: int) -> tuple[Array, Array]:
    """View a cache as keys (blocks, kv_heads, d, 32) and values (blocks, kv_heads, 32, e)."""
    numbers = cache.view(np.int8) if cache.dtype == np.uint8 else cache
    keys = numbers[..., : CACHE_BLOCK * d].reshape(*cache.shape[:2], d, CACHE_BLOCK)
    values = numbers[..., CACHE_BLOCK * d : CACHE_BLOCK * (d + e)]
    return keys, values.reshape(*cache.shape[:2], CACHE_BLOCK, e)


def _cache_scales(cache: Array, d: int, e: int) -> tuple[Float32Array, Float32Array]:
    """Return the scales (blocks, kv_heads, groups, 32) of a cache of bytes, K's and V's."""
    scales = cache[..., CACHE_BLOCK * (d + e) :].view(np.float32)
    rows = scales.reshape(*cache.shape[:2], -1, CACHE_BLOCK)
    groups = -(-d // ACTIVATION_BLOCK)
    return rows[:, :, :groups], rows[:, :, groups:]


def cache_codes(x: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Quantise x (heads, d) to int8 values (heads, d) and scales (heads, ceil(d / 32))."""
    heads, d = x.shape
    padded = np.zeros((heads, -(-d // ACTIVATION_BLOCK) * ACTIVATION_BLOCK), np.float32)
    padded[:, :d] = x
    values, scales = quantize_rows(padded)
    return values[:, :d], scales


def _turned_columns(d: int) -> int:
    """Return how many columns are mixed: the largest power of two that divides d, up to 128."""
    return min(d & -d, 128)


def _turned(x: Float32Array) -> Float32Array:
    """Multiply x (…, d) by the unscaled Hadamard matrix, which spreads outlier columns."""
    shape, half = x.shape, 1
    while half < _turned_columns(shape[-1]):
        pairs = x.reshape(*shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(shape)
        half *= 2
    return x


def _cache_floats(cache: Array, d: int, e: int) -> tuple[Array, Array]:
    """Return `_cache_views` as dequantised numbers."""
    keys, values = _cache_views(cache, d, e)
    if cache.dtype != np.uint8:
        return keys, values
    k, v = (np.repeat(each, ACTIVATION_BLOCK, axis=2) for each in _cache_scales(cache, d, e))
    with np.errstate(over="ignore", invalid="ignore"):  # slots that nobody sees hold anything
        return keys * k[:, :, :d], values * v[:, :, :e].swapaxes(2, 3)


def silu_mul(gate: Float32Array, up: Float32Array, *, threads: int = 1) -> Float32Array:
    """Compute gate * sigmoid(gate) * up, float32 (n, i)."""
    del threads
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):  # exp(1000) is infinite, and its sigmoid rightly 0
        return (wide / (1.0 + np.exp(-wide)) * up).astype(np.float32)


def gelu_mul(gate: Float32Array, up: Float32Array, *, threads: int = 1) -> Float32Array:
    """Compute gelu(gate) * up, GELU in its form by tanh, float32 (n, i)."""
    del threads
    wide = gate.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    gated: Float32Array = (0.5 * wide * (1.0 + np.tanh(inner)) * up).astype(np.float32)
    return gated


def clamped_mul(
    gate: Float32Array, up: Float32Array, *, alpha: float, limit: float, threads: int = 1
) -> Float32Array:
    """Compute (clip(up) + 1) * g * sigmoid(alpha * g) for g = min(gate, limit), float32 (n, i)."""
    del threads
    g = np.minimum(gate.astype(np.float64), limit)
    with np.errstate(over="ignore"):
        share = g / (1.0 + np.exp(-alpha * g))
    return ((np.clip(up.astype(np.float64), -limit, limit) + 1.0) * share).astype(np.float32)


def limited_mul(
    gate: Float32Array, up: Float32Array, *, limit: float, threads: int = 1
) -> Float32Array:
    """Compute min(silu(gate), limit) * up, up clipped to ±limit, float32 (n, i)."""
    silu = silu_mul(gate, np.ones_like(gate), threads=threads)
    return np.asarray(np.minimum(silu, limit) * np.clip(up, -limit, limit))


def route(
    logits: Float32Array,
    *,
    top_k: int,
    normalize: bool,
    score: Literal["softmax", "sigmoid"] = "softmax",
    bias: Float32Array | None = None,
    group_rule: Literal["none", "max", "top2", "each"] = "none",
    groups: int = 1,
    kept_groups: int = 1,
    scale: float = 1.0,
    scales: Float32Array | None = None,
) -> tuple[Int32Array, Float32Array]:
    """Choose the top_k experts of each row of logits (n, experts).

    Returns ids (int32) and weights (float32), each (n, top_k), by falling score + bias, ties by
    lower id; of the groups kept by their best expert or best two, or the best of each group.
    `normalize` makes a row's weights sum to 1; the scales come after.
    """
    wide = logits.astype(np.float64)
    if score == "softmax":
        scores = np.exp(wide - wide.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        with np.errstate(over="ignore"):
            scores = 1.0 / (1.0 + np.exp(-wide))
    ranks = scores if bias is None else scores + bias
    allowed = _allowed(ranks, top_k, group_rule, groups, kept_groups)
    ids = np.argsort(np.where(allowed, -ranks, np.inf), axis=1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, axis=1)
    if normalize:
        weights /= weights.sum(axis=1, keepdims=True) + 1e-20
    weights *= scale if scales is None else scale * scales[ids]
    return ids.astype(np.int32), weights.astype(np.float32)


def _allowed(ranks: Array, top_k: int, rule: str, groups: int, kept: int) -> Array:
    """Return which experts (n, experts) may be chosen under a group rule."""
    if rule == "none":
        return np.ones(ranks.shape, bool)
    grouped = ranks.reshape(len(ranks), groups, -1)
    if rule == "each":
        order = np.argsort(np.argsort(-grouped, axis=2, kind="stable"), axis=2)
        return (order < top_k // groups).reshape(ranks.shape)
    best = -np.sort(-grouped, axis=2)
    worth = best[..., 0] if rule == "max" else best[..., :2].sum(axis=2)
    order = np.argsort(np.argsort(-worth, axis=1, kind="stable"), axis=1)
    return np.repeat(order < kept, grouped.shape[2], axis=1)


@dataclass(frozen=True)
class ExpertMatrices:
    """One expert: gate and up (intermediate, hidden), down (hidden, intermediate).

    biases: of the three, if there are some; clamp: alpha and limit of `clamped_mul`, not silu;
    limit: that of `limited_mul`; gelu: whether with GELU, not silu.
    """

    gate: Matrix
    up: Matrix
    down: Matrix
    biases: tuple[Float32Array, Float32Array, Float32Array] | None = None
    clamp: tuple[float, float] | None = None
    limit: float | None = None
    gelu: bool = False


def experts_mlp(
    x: Float32Array,
    ids: Int32Array,
    weights: Float32Array,
    experts: Sequence[ExpertMatrices],
    *,
    exact: bool = False,
    threads: int = 1,
) -> Float32Array:
    """Sum over a row's experts weight * down(silu(gate x) * up x), float32 (n, hidden)."""
    del threads
    out = np.zeros(x.shape, np.float64)
    for row, (row_ids, row_weights) in enumerate(zip(ids, weights, strict=True)):
        one = x[row : row + 1]
        for expert_id, weight in zip(row_ids, row_weights, strict=True):
            expert = experts[expert_id]
            biases = expert.biases or (None, None, None)
            gate = matmul(one, expert.gate, bias=biases[0], exact=exact)
            up = matmul(one, expert.up, bias=biases[1], exact=exact)
            if expert.clamp is not None:
                inner = clamped_mul(gate, up, alpha=expert.clamp[0], limit=expert.clamp[1])
            elif expert.limit is not None:
                inner = limited_mul(gate, up, limit=expert.limit)
            else:
                inner = (gelu_mul if expert.gelu else silu_mul)(gate, up)
            product = matmul(inner, expert.down, bias=biases[2], exact=exact)
            out[row] += float(weight) * product[0]
    return out.astype(np.float32)
