"""The sampling kernels in numpy, float64 inside: the reference for the C++ ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = 0xFFFFFFFF
# Multipliers and key steps of Philox-4x32 (Salmon et al., "Parallel random numbers: as easy as
# 1, 2, 3", SC'11, table 2 and section 4.3).
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10

# Above it, the rounding of sums would decide what is drawn, and not the probabilities.
HIGHEST_UNIFORM = 1 - 2.0**-30


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Compute four 32-bit words: Philox-4x32-10 of a 128-bit counter under a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        low, high = _PHILOX_MULTIPLIERS[0] * c0, _PHILOX_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _MASK, (low >> 32) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _MASK, (k1 + _PHILOX_KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """Return the random number in [0, 1), a multiple of 2**-53, of stream `seed` at `position`.

    Philox-4x32-10 with key (seed low, seed high) and counter (position low, position high, 0, 0);
    the top 27 bits of word 0 and the top 26 bits of word 1 are the 53 bits.
    """
    words = philox((position & _MASK, position >> 32 & _MASK, 0, 0), (seed & _MASK, seed >> 32))
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)) / 2**53


def sample(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int:
    """Draw a token id from logits (V,) at `uniform` in [0, 1); temperature 0 gives the likeliest.

    Order: temperature, top_k (0 = off), top_p (the smallest prefix whose share of what top_k kept
    is at least top_p), min_p (at least min_p times the highest probability); then inverse CDF over
    the kept ids by falling probability, ties by lower id. A uniform above 1 - 2**-30 counts as
    that.
    """
    if temperature == 0.0:
        return int(np.argmax(logits))
    order = _descending(logits)
    if top_k > 0:
        order = order[:top_k]
    values = logits[order].astype(np.float64)
    # Relative to the highest, so that a temperature near 0 underflows and never overflows.
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((values - values[0]) / temperature)
    kept = weights.size
    if top_p < 1.0:
        cumulative = np.cumsum(weights)
        kept = int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1
    # Falling weights: those that pass min_p are a prefix; the highest (1.0) always passes.
    kept = min(kept, int(np.count_nonzero(weights >= min_p)))
    cumulative = np.cumsum(weights[:kept])
    point = min(uniform, HIGHEST_UNIFORM) * cumulative[-1]
    drawn = int(np.searchsorted(cumulative, point, side="right"))
    return int(order[min(drawn, kept - 1)])


def sample_rows(
    logits: NDArray[np.float32],
    *,
    temperatures: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    min_ps: Sequence[float],
    uniforms: Sequence[float],
    threads: int = 1,
) -> list[int]:
    """Draw a token id from each row of logits (n, V); -1 if its highest is not finite."""
    del threads
    settings = zip(temperatures, top_ks, top_ps, min_ps, uniforms, strict=True)
    return [
        sample(row, temperature=t, top_k=k, top_p=p, min_p=m, uniform=u)
        if np.isfinite(row.max())
        else -1
        for row, (t, k, p, m, u) in zip(logits, settings, strict=True)
    ]


def top_logprobs(
    logits: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the `count` likeliest ids (count,) and their log-softmax (count,).

    They fall by probability; ties go to the lower id.
    """
    ids = _descending(logits)[:count].astype(np.int32)
    return ids, (logits[ids].astype(np.float64) - _log_sum_exp(logits)).astype(np.float32)


def logprob(logits: NDArray[np.float32], token_id: int) -> float:
    """Return the log-softmax of one id, rounded to float32 to equal its `top_logprobs` entry."""
    return float(np.float32(float(logits[token_id]) - _log_sum_exp(logits)))


def _descending(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.argsort(-logits, kind="stable")


def _log_sum_exp(logits: NDArray[Any]) -> float:
    values = logits.astype(np.float64)
    highest = float(values.max())
    return highest + float(np.log(np.exp(values - highest).sum()))
