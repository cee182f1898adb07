"""The operations of recurrent layers: a short convolution, the gated delta rule, a gated norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.kernels import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]


def short_conv(
    x: Floats,
    weight: Floats,
    states: Floats,
    positions: Ints,
    sequences: Ints,
    slots: Ints,
    saves: Ints,
    *,
    columns: Ints | None = None,
    with_silu: bool = True,
    threads: int = 1,
) -> Floats:
    """Compute silu of each channel's causal convolution over its sequence, (n, channels).

    weight: (kernel, channels), the oldest token's first. Channel c is column columns[c] of x (n,
    cols), or column c. with_silu: if it is False, the convolution itself is returned. A slot of
    states (slots, size) begins with the last kernel - 1 inputs (kernel - 1, channels); slots and
    saves as in `dure.batch.States`.
    """
    return _core.short_conv(
        x, weight, columns, with_silu, states, positions, sequences, slots, saves, threads
    )


def delta_size(value_heads: int, key_dim: int, value_dim: int) -> int:
    """Return how many numbers the state of `delta_rule` has: values in padded strips of 32."""
    return value_heads * key_dim * (-(-value_dim // 32) * 32)


def delta_rule(
    qkv: Floats,
    a: Floats,
    b: Floats,
    rate: Floats,
    bias: Floats,
    states: Floats,
    positions: Ints,
    sequences: Ints,
    slots: Ints,
    saves: Ints,
    *,
    key_heads: int,
    key_dim: int,
    offset: int = 0,
    bound: float = 0.0,
    threads: int = 1,
) -> Floats:
    """Compute the gated delta rule (Yang et al. 2024) for each token: (n, heads * value_dim).

    qkv: (n, key_heads * key_dim) of queries, as much of keys, and the rest values. Each value head
    has a matrix S: S = decay * S; S += k (beta * (v - S'k))'; the output is S'q. q and k are
    normalised to length 1, q divided by sqrt(key_dim); head i takes those of key head i * key_heads
    // heads. decay = exp(rate * softplus(a + bias)), beta = sigmoid(b); a, b: (n, heads); rate,
    bias: (heads,). S lies at `offset` of a slot, (heads, strips, key_dim, 32); the rest as in
    short_conv.

    With a (n, heads * key_dim) and bias (heads * key_dim,) every channel of the key, which is a row
    of S, has a decay of its own (Kimi Delta Attention, arXiv 2510.26692). If `bound` is below 0,
    that is exp(bound * sigmoid(-rate * (a + bias))), which is never below exp(bound).
    """
    return _core.delta_rule(
        qkv,
        a,
        b,
        rate,
        bias,
        key_heads,
        key_dim,
        offset,
        bound,
        states,
        positions,
        sequences,
        slots,
        saves,
        threads,
    )


def gated_norm(
    x: Floats,
    weight: Floats,
    eps: float,
    gate: Floats,
    *,
    columns: Ints | None = None,
    with_silu: bool = True,
    threads: int = 1,
) -> Floats:
    """Compute rms_norm of each head of x (n, heads * d), times silu of the gate.

    weight: (d,). The gate of x's column c is column columns[c] of gate (n, cols), or column c.
    with_silu: if it is False, the gate's sigmoid is taken. Returns (n, heads * d).
    """
    return _core.gated_norm(x, weight, eps, gate, columns, with_silu, threads)
