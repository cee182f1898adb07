"""The operations that models are made of: the typed Python interface of the C++ extension.

Arrays are C-contiguous and of the dtype stated; anything else is a TypeError, a wrong shape or an
id out of range a ValueError. Results do not depend, in any bit, on how many rows share a call, on
the number of threads, or on the instruction set. `reference` has the same functions in numpy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

# OpenMP's threads wait for each other by spinning, 20 ms by default here. A thread that was
# preempted for another program then waits for a core that its own team keeps busy, and a step takes
# ten times as long. 2,000 rounds are 30 to 140 µs: longer than the gaps inside a step. OpenMP reads
# the variable when it loads, so it is set before the import below; a user's own value is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from dure.kernels import _core, packed, recurrent, streaming, suffix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Bytes = NDArray[np.uint8]
    GroupRule = Literal["none", "max", "top2", "each"]

# Rows (n, cols) as input of matrix products, quantised once for all of them. `Activations(x)`, or
# `Activations(x, weight, eps)` for the RMSNorm of x, which is computed in the pass that quantises.
# `floats(threads)` returns the rows as floats; `take(rows)` the Activations of some of them.
Activations = _core.Activations
# A layer's attention in one call, since calls are a fifth of a small model's step: the projections
# `weights` (q, k, v, o) with their `biases`, and `rope_cache_attention` between them. It is called
# with the rows as Activations (n, hidden), then cache, positions, sequences and block_tables as for
# rope_cache_attention, then chosen, cos, sin, and add (m, hidden), which is added to the result
# (m, hidden).
AttentionLayerKernel = _core.AttentionLayerKernel
short_conv = recurrent.short_conv
delta_size = recurrent.delta_size
delta_rule = recurrent.delta_rule
gated_norm = recurrent.gated_norm
Matrix = packed.Matrix
Experts = packed.Experts
ExpertBuffer = packed.ExpertBuffer
FilePacker = packed.FilePacker
LAYOUT = packed.LAYOUT
NotFiniteError = packed.NotFiniteError
DirectFile = streaming.DirectFile
ExpertReader = streaming.ExpertReader
ExpertsPass = streaming.ExpertsPass
SuffixAutomaton = suffix.SuffixAutomaton
SuffixMatch = suffix.SuffixMatch
SuffixReader = suffix.SuffixReader
uniform = _core.uniform


def isa() -> str:
    """Return the instruction set in use.

    It is the best that the processor has, or the one that DURE_ISA names: "amx", "avx512",
    "avxvnni" or "avx2", on ARM "i8mm", "dotprod" or "neon", on both "portable".
    """
    return _core.isa()


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this machine can run, best first."""
    return tuple(_core.available_isas())


def release_free_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it."""
    _core.release_free_memory()


def packed_bytes(dtype: str, rows: int, cols: int) -> int:
    """Return the bytes that a (rows, cols) matrix of `dtype` takes once packed."""
    return _core.packed_bytes(dtype, rows, cols)


def quantize_rows(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Quantise x (n, cols) to int8 with one scale for 32 columns.

    Returns values (n, cols), round(x * 127 / amax), and scales (n, cols / 32). A block that holds a
    NaN or an infinity gets a NaN scale.
    """
    return _core.quantize_rows(x)


def quantize_blocks(
    dtype: str, x: Floats, importance: Floats | None = None, *, threads: int = 1
) -> Bytes:
    """Quantise x (n, cols) to the blocks of a model file, of `quantize_reference.TYPES`.

    A search minimises the weighted squared error. importance: (cols,), what an error in a column
    counts. Returns uint8 (n, row bytes). Raises ValueError for any other type, and for weights that
    are not finite or too large.
    """
    return _core.quantize_blocks(dtype, x, importance, threads)


def matmul(
    x: Floats | _core.Activations,
    w: Matrix,
    *,
    bias: Floats | None = None,
    add: Floats | None = None,
    exact: bool = False,
    threads: int = 1,
) -> Floats:
    """Compute x @ w.T + bias + add, (n, rows).

    x: (n, cols), or its Activations; add: (n, rows). Quantised weights are multiplied with int8
    activations in integer dot products; `exact` multiplies the dequantised weights in float32
    instead, as F32, F16 and BF16 weights always are.
    """
    rows = _activations(x, w.columns, threads)
    return _core.matmul(rows, (w.packed,), (bias,), add, exact, threads)[0]


def matmuls(
    x: Floats | _core.Activations,
    weights: Sequence[Matrix],
    *,
    biases: Sequence[Floats | None] | None = None,
    exact: bool = False,
    threads: int = 1,
) -> list[Floats]:
    """Compute the matmul of several matrices with the same x in one call: threads wait less."""
    each = biases or [None] * len(weights)
    if any(w.columns is not None for w in weights):
        pairs = zip(weights, each, strict=True)
        return [matmul(x, w, bias=bias, exact=exact, threads=threads) for w, bias in pairs]
    return _core.matmul(_activations(x), [w.packed for w in weights], each, None, exact, threads)


def _activations(
    x: Floats | _core.Activations, columns: Ints | None = None, threads: int = 1
) -> _core.Activations:
    """Return x as Activations, quantised once; its columns in another order if one is given."""
    if columns is not None:
        x = np.take(x.floats(threads) if isinstance(x, _core.Activations) else x, columns, axis=1)
    return x if isinstance(x, _core.Activations) else _core.Activations(x)


def embed(tokens: Ints, w: Matrix, *, threads: int = 1) -> Floats:
    """Look up the row of w for each token: (n, cols)."""
    return w.row_values(tokens, threads=threads)


def rms_norm(x: Floats, weight: Floats, eps: float, *, threads: int = 1) -> Floats:
    """Compute x / sqrt(mean(x²) + eps) * weight over the last axis, shaped as x.

    RMSNorm (Zhang & Sennrich 2019).
    """
    out = _core.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps, threads)
    return out.reshape(x.shape)


def rope(x: Floats, cos: Floats, sin: Floats, *, interleaved: bool, threads: int = 1) -> None:
    """Rotate x (n, heads, d) in place by angles given as cos and sin (n, r / 2).

    Rotary embedding (Su et al. 2021). The first r dimensions are rotated, in pairs (i, i + r/2), or
    (2i, 2i + 1) if interleaved.
    """
    _core.rope(x, cos, sin, interleaved, threads)


def silu_mul(gate: Floats, up: Floats, *, threads: int = 1) -> Floats:
    """Compute silu(gate) * up, elementwise on (n, i): the SwiGLU activation (Shazeer 2020)."""
    return _core.silu_mul(gate, up, threads)


def write_cache(
    k: Floats,
    v: Floats,
    cache: NDArray[np.float16] | Floats | Bytes,
    positions: Ints,
    sequences: Ints,
    block_tables: Ints,
) -> None:
    """Write k (n, kv_heads, d) and v (n, kv_heads, e) to the paged cache, at their rows' positions.

    cache: (num_blocks, kv_heads, 32 * (d + e)), of each block and head K transposed (d, 32), then V
    (32, e). In a cache of bytes these are int8, followed by the float32 scales of each 32 columns
    of K, (groups, 32), and of V, (groups, 32), as quantize_rows makes them; K is first multiplied
    by a Hadamard matrix, which spreads outlier columns. positions, sequences: (n,); block_tables:
    (num_sequences, blocks).
    """
    _core.write_cache(k, v, cache, positions, sequences, block_tables)


def paged_attention(
    q: Floats,
    cache: NDArray[np.float16] | Floats | Bytes,
    positions: Ints,
    sequences: Ints,
    block_tables: Ints,
    *,
    scale: float,
    window: int | None = None,
    sinks: Floats | None = None,
    values: int | None = None,
    value_scale: float = 1.0,
    threads: int = 1,
) -> Floats:
    """Compute causal grouped-query attention of q (n, heads, d) over the paged cache.

    Row i sees the keys j <= positions[i] of its sequence; with a window, j > positions[i] - window.
    sinks: (heads,), scores that take their share of the softmax and have no value. values: the
    width e of a value, d if None. Returns (n, heads, e), times value_scale.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    if values is not None and values < 1:
        raise ValueError(f"the values of a cache block are at least 1 wide, not {values}")
    return _core.paged_attention(
        q,
        cache,
        positions,
        sequences,
        block_tables,
        scale,
        window or 0,
        sinks,
        q.shape[-1] if values is None else values,
        value_scale,
        threads,
    )


def rope_cache_attention(
    q: Floats,
    k: Floats,
    v: Floats,
    cache: NDArray[np.float16] | Floats | Bytes,
    positions: Ints,
    sequences: Ints,
    block_tables: Ints,
    *,
    scale: float,
    chosen: Ints | None = None,
    rotation: tuple[Floats, Floats] | None = None,
    interleaved: bool = False,
    norms: tuple[Floats, Floats] | None = None,
    eps: float = 0.0,
    norm_last: bool = False,
    window: int | None = None,
    sinks: Floats | None = None,
    value_scale: float = 1.0,
    threads: int = 1,
) -> Floats:
    """Compute a layer's attention from its projections: rms_norm, rope, write_cache, attention.

    k: (n, kv_heads * d) and v: (n, kv_heads * e), for the n rows of positions and sequences (n,);
    q: (m, heads * d), for all of them, or for the rows `chosen` (m,). q and k are changed in place.
    norms: weights (d,) of each head's q and k norm, before RoPE, or after it if norm_last.
    rotation: cos and sin (n, r / 2). The cache is as for write_cache, the rest as for
    paged_attention. Returns (m, heads * e).
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    cos, sin = rotation or (None, None)
    q_norm, k_norm = norms or (None, None)
    return _core.rope_cache_attention(
        q,
        k,
        v,
        cache,
        positions,
        sequences,
        block_tables,
        chosen,
        cos,
        sin,
        interleaved,
        q_norm,
        k_norm,
        eps,
        norm_last,
        scale,
        window or 0,
        sinks,
        value_scale,
        threads,
    )


def sigmoid_mul(
    x: Floats, gate: Floats, *, columns: Ints | None = None, threads: int = 1
) -> Floats:
    """Compute x * sigmoid(gate), elementwise on (n, cols); columns as in gated_norm."""
    return _core.sigmoid_mul(x, gate, columns, threads)


def write_latent(
    latent: Floats,
    rotated: Floats,
    cache: NDArray[np.float16] | Floats | Bytes,
    positions: Ints,
    sequences: Ints,
    block_tables: Ints,
) -> None:
    """Write latent (n, c) and rotated (n, r) side by side to the cache, at their rows' positions.

    cache: (num_blocks, 1, 32 * (c + r)), one entry a token. In a cache of bytes the scales of 32
    columns each follow, (groups, 32).
    """
    _core.write_latent(latent, rotated, cache, positions, sequences, block_tables)


def latent_attention(
    q: Floats,
    cache: NDArray[np.float16] | Floats | Bytes,
    positions: Ints,
    sequences: Ints,
    block_tables: Ints,
    *,
    latent: int,
    scale: float,
    threads: int = 1,
) -> Floats:
    """Compute latent attention: each head's softmax-weighted sum of the cached latents.

    q: (n, heads, c + r). All heads share one key a token, its cache entry (see write_latent), and
    one value, the entry's first c = `latent` columns (a multiple of 16): multi-head latent
    attention in its absorbed form (arXiv 2405.04434). Returns (n, heads, c).
    """
    return _core.latent_attention(
        q, cache, positions, sequences, block_tables, latent, scale, threads
    )


def head_matmul(
    x: Floats,
    w: Matrix,
    *,
    outputs: int,
    first: int = 0,
    room: int | None = None,
    exact: bool = False,
    threads: int = 1,
) -> Floats:
    """Multiply each head's x with its own rows of w, transposed: (n, heads, room).

    x: (n, heads, ≥ w.cols), of which the first w.cols columns count. w holds w.rows / heads rows a
    head, of which `outputs` from `first` on are taken; a head's rows begin at multiples of 16. The
    result has `room` columns, `outputs` if that is None; those beyond `outputs` hold anything.
    """
    room = outputs if room is None else room
    if w.columns is not None:
        x = np.take(x, w.columns, axis=2)
    return _core.head_matmul(x, w.packed, first, outputs, room, exact, threads)


def route(
    logits: Floats,
    *,
    top_k: int,
    normalize: bool,
    score: Literal["softmax", "sigmoid"] = "softmax",
    bias: Floats | None = None,
    group_rule: GroupRule = "none",
    groups: int = 1,
    kept_groups: int = 1,
    scale: float = 1.0,
    scales: Floats | None = None,
) -> tuple[Ints, Floats]:
    """Choose each row's top_k experts from router logits (n, e), by falling score.

    Returns ids (n, k) and weights (n, k). Ties go to the lower id. bias (e,) is added to the scores
    for the choice and not to the weights. group_rule: "max" and "top2" choose from the
    `kept_groups` groups with the highest score, that of their best expert or the sum of their best
    two; "each" takes the best of each group; `groups` groups are of successive ids. normalize makes
    a row's weights sum to 1; scale, and an expert's own of scales (e,), multiply them after.
    """
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score must be softmax or sigmoid, not {score!r}")
    return _core.route(
        logits,
        top_k,
        score == "sigmoid",
        bias,
        group_rule,
        groups,
        kept_groups,
        normalize,
        scale,
        scales,
    )


def near_uses(scores: Floats, *, top_k: int, near: float) -> NDArray[np.float64]:
    """Sum over rows of router scores (n, e): 1 for the top_k of a row, less for the others, (e,).

    An expert whose score lies d * near standard deviations of its row below the last that was
    chosen counts exp(-d). A row with a score that is not finite counts nothing.
    """
    return _core.near_uses(scores, top_k, near)


def experts_mlp(
    x: Floats | _core.Activations,
    ids: Ints,
    weights: Floats,
    experts: Experts,
    *,
    add: Floats | None = None,
    exact: bool = False,
    threads: int = 1,
) -> Floats:
    """Compute the sum over a row's experts of weight * down(silu(gate x) * up x), + add.

    x: (n, hidden), or its Activations; ids and weights: (n, k). Rows are sorted by expert, each
    expert's rows are one product, and a row's experts are added in the order of its ids. Biases and
    another activation are the experts' own (`Experts.add_biases`, `Experts.clamp`). Returns (n,
    hidden).
    """
    rows = _activations(x, experts.columns, threads)
    return _core.experts_mlp(rows, ids, weights, experts.packed, add, exact, threads)


def experts_pass(
    x: Floats | _core.Activations,
    ids: Ints,
    weights: Floats,
    experts: Experts,
    *,
    exact: bool = False,
    threads: int = 1,
) -> streaming.ExpertsPass:
    """Begin an `experts_mlp` whose experts come one after another: see streaming.ExpertsPass."""
    rows = _activations(x, experts.columns, threads)
    return streaming.ExpertsPass(rows, ids, weights, experts, exact=exact, threads=threads)


def gated_mlp(
    x: Floats | _core.Activations,
    expert: Experts,
    *,
    add: Floats | None = None,
    exact: bool = False,
    threads: int = 1,
) -> Floats:
    """Compute down(silu(gate x) * up x) + add, (n, hidden): one expert that takes all rows."""
    rows = _activations(x, expert.columns, threads)
    return _core.gated_mlp(rows, expert.packed, add, exact, threads)


def sample(
    logits: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """Draw a token id from logits (V,) at `uniform` in [0, 1); temperature 0 gives the likeliest.

    Order: temperature, top_k (0 = off), top_p (the smallest prefix whose share of what top_k kept
    is at least top_p), min_p (at least min_p times the highest probability); then inverse CDF over
    the kept ids by falling probability, ties by lower id. Raises ValueError if a logit is NaN or
    positive infinity, or none is finite.
    """
    (drawn,) = sample_rows(
        logits[None],
        temperatures=[temperature],
        top_ks=[top_k],
        top_ps=[top_p],
        min_ps=[min_p],
        uniforms=[uniform],
    )
    if drawn < 0:
        raise ValueError("the logits hold a NaN or an infinity, or nothing finite")
    return drawn


def sample_rows(
    logits: Floats,
    *,
    temperatures: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    min_ps: Sequence[float],
    uniforms: Sequence[float],
    threads: int = 1,
) -> list[int]:
    """Draw a token id from each row of logits (n, V), as `sample` does; -1 instead of an error."""
    return _core.sample_rows(logits, temperatures, top_ks, top_ps, min_ps, uniforms, threads)


def top_logprobs(logits: Floats, count: int) -> tuple[Ints, Floats]:
    """Return the `count` likeliest ids (count,) and their log-softmax (count,).

    They fall by probability; ties go to the lower id.
    """
    return _core.top_logprobs(logits, count)


def logprob(logits: Floats, token_id: int) -> float:
    """Return the log-softmax of one id, rounded to float32 to equal its `top_logprobs` entry."""
    if not 0 <= token_id < len(logits):
        raise ValueError(f"token {token_id} is not one of {len(logits)}")
    return float(np.float32(float(logits[token_id]) - _core.log_sum_exp(logits)))
