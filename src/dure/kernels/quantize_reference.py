"""Quantisation of floats to blocks in numpy: the twin of csrc/pack/quantize.cpp, bit for bit.

A group of 16 or 32 weights x gets the scale (and minimum) whose nearest codes leave the least
squared error, weighted by rms(x) + |x|: large weights matter more, and small ones still count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dure.kernels.dequantize import LAYOUTS

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

TYPES = ("Q8_0", "Q4_0", "Q5_0", "Q6_K", "Q4_K")

_F = np.float32
_STEP = _F(0.1)  # of a code, between two scales that are tried
_LARGEST = _F(1 << 19)


def quantize_blocks(dtype: str, x: Floats) -> Bytes:
    """Quantise x (n, cols) to blocks, uint8 (n, row bytes).

    Raises ValueError for a weight that no block can hold.
    """
    if dtype not in TYPES:
        raise ValueError(f"floats are quantised to {', '.join(TYPES)}, not to {dtype}")
    if not (np.abs(x) < _LARGEST).all():
        raise ValueError("a weight is not finite or too large")
    with np.errstate(all="ignore"):  # groups of zeros divide by zero, and then keep their zeros
        blocks = {
            "Q8_0": lambda: _q8_0(x.reshape(-1, 32)),
            "Q4_0": lambda: _symmetric(x.reshape(-1, 32), 4),
            "Q5_0": lambda: _symmetric(x.reshape(-1, 32), 5),
            "Q6_K": lambda: _q6_k(x.reshape(-1, 16)),
            "Q4_K": lambda: _q4_k(x.reshape(-1, 32)),
        }[dtype]()
    if not np.isfinite(blocks["scale"]).all():
        raise ValueError(f"a weight is too large for {dtype}")
    return blocks.view(np.uint8).reshape(len(x), -1)


def _sum(values: Floats) -> Floats:
    """Sum along the last axis, term by term: the same order on every instruction set."""
    total = np.zeros(values.shape[:-1], np.float32)
    for index in range(values.shape[-1]):
        total = total + values[..., index]
    return total


def _weights(x: Floats) -> Floats:
    rms = np.sqrt(_sum(x * x) / _F(x.shape[-1]))
    weights: Floats = rms[:, None] + np.abs(x)
    return weights


def _nearest(x: Array, low: int, high: int) -> Floats:
    clipped = np.where(x > low, np.where(x < high, x, _F(high)), _F(low))
    nearest: Floats = np.rint(clipped)
    return nearest


def _half(x: Array) -> Floats:
    return np.asarray(x).astype(np.float16).astype(np.float32)


def _symmetric_scale(x: Floats, low: int, high: int) -> Floats:
    """Find the scale s of each group, x ≈ s · code: for given codes it is Σwxq / Σwqq."""
    weights = _weights(x)
    peak = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)[:, 0]
    best, most = np.zeros((2, len(x)), np.float32)
    for k in range(-9, 10):
        inverse = (_F(low) + _STEP * _F(k)) / peak
        q = _nearest(x * inverse[:, None], low, high)
        xq, qq = _sum(weights * q * x), _sum(weights * q * q)
        scale = xq / qq
        gain = scale * xq
        better = gain > most
        best, most = np.where(better, scale, best), np.where(better, gain, most)
    return best


def _asymmetric_scale(x: Floats, top: int) -> tuple[Floats, Floats]:
    """Find the scale s and minimum m of each group, x ≈ s · code - m, neither negative."""
    weights, two = _weights(x), _F(2)
    low, high = np.minimum(x.min(1), _F(0)), x.max(1)
    w, wx = _sum(weights), _sum(weights * x)
    flat = -wx / w
    minimum = np.where(flat > 0, flat, _F(0))
    scale = np.zeros_like(minimum)
    most = -minimum * (minimum * w + two * wx)
    most = np.where(most > 0, most, _F(0))
    for k in range(21):
        inverse = (_F(top - 1) + _STEP * _F(k)) / (high - low)
        q = _nearest((x - low[:, None]) * inverse[:, None], 0, top)
        weighted = weights * q
        wq, wqq, wxq = _sum(weighted), _sum(weighted * q), _sum(weighted * x)
        s = (w * wxq - wx * wq) / (w * wqq - wq * wq)
        m = (s * wq - wx) / w
        none = m < 0
        s, m = np.where(none, wxq / wqq, s), np.where(none, _F(0), m)
        gain = s * (two * wxq - s * wqq + two * m * wq) - m * (two * wx + m * w)
        better = (gain > most) & (s > 0)
        scale, minimum = np.where(better, s, scale), np.where(better, m, minimum)
        most = np.where(better, gain, most)
    return scale, minimum


def _assigned(x: Floats, scale: Array, minimum: Array, low: int, high: int) -> Floats:
    """Return the codes of each group under its scale; 0 where that is 0."""
    q = _nearest((x + minimum[:, None]) / scale[:, None], low, high)
    return np.where(scale[:, None] != 0, q, _F(0))


def _empty(dtype: str, count: int) -> Array:
    return np.empty(count, LAYOUTS[dtype])


def _pairs(codes: Array) -> Array:
    """Pack codes (..., 2n) as nibbles (..., n): the first half low, the second high."""
    half = codes.shape[-1] // 2
    packed: Array = (codes[..., :half] & 15) | (codes[..., half:] & 15) << 4
    return packed


def _q8_0(x: Floats) -> Array:
    scale = _half(np.abs(x).max(1) / _F(127))
    blocks = _empty("Q8_0", len(x))
    blocks["scale"] = scale
    blocks["codes"] = _assigned(x, scale, np.zeros_like(scale), -127, 127)
    return blocks


def _symmetric(x: Floats, bits: int) -> Array:
    offset = 1 << (bits - 1)
    scale = _half(_symmetric_scale(x, -offset, offset - 1))
    codes = _assigned(x, scale, np.zeros_like(scale), -offset, offset - 1) + _F(offset)
    unsigned = codes.astype(np.uint8)
    blocks = _empty(f"Q{bits}_0", len(x))
    blocks["scale"], blocks["low"] = scale, _pairs(unsigned)
    if bits == 5:
        high = (unsigned >> 4).astype(np.uint32) << np.arange(32, dtype=np.uint32)
        blocks["high"] = np.bitwise_or.reduce(high, axis=1)
    return blocks


def _q6_k(x: Floats) -> Array:
    wanted = _symmetric_scale(x, -32, 31).reshape(-1, 16)
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(1)[:, None], 1)
    d = _half(peak / _F(-128))
    sub = np.where(d != 0, _nearest(wanted / d, -128, 127), _F(0))
    zeros = np.zeros(len(x), np.float32)
    codes = _assigned(x, (d * sub).ravel(), zeros, -32, 31)
    q = sub.reshape(-1, 1) * codes  # the best d for these codes and sub-scales
    weighted = _weights(x) * q
    xq, qq = _sum(_sum(weighted * x).reshape(-1, 16)), _sum(_sum(weighted * q).reshape(-1, 16))
    d = np.where(qq > 0, _half(xq / qq), d[:, 0])[:, None]
    codes = _assigned(x, (d * sub).ravel(), zeros, -32, 31)

    unsigned = (codes + _F(32)).astype(np.uint8).reshape(-1, 2, 4, 32)
    blocks = _empty("Q6_K", len(d))
    blocks["scale"], blocks["groups"] = d[:, 0], sub
    blocks["low"] = _pairs(unsigned.reshape(-1, 2, 128))
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    blocks["high"] = np.bitwise_or.reduce(unsigned >> 4 << shifts, axis=2)
    return blocks


def _q4_k(x: Floats) -> Array:
    scale, minimum = (each.reshape(-1, 8) for each in _asymmetric_scale(x, 15))
    d, least = (_half(each.max(1) / _F(63))[:, None] for each in (scale, minimum))
    sub = np.where(d > 0, _nearest(scale / d, 0, 63), _F(0))
    sub_least = np.where(least > 0, _nearest(minimum / least, 0, 63), _F(0))
    codes = _assigned(x, (d * sub).ravel(), (least * sub_least).ravel(), 0, 15)
    d, least = _refit(x, codes, sub, sub_least, d, least)
    codes = _assigned(x, (d * sub).ravel(), (least * sub_least).ravel(), 0, 15)

    blocks = _empty("Q4_K", len(d))
    blocks["scale"], blocks["min"] = d[:, 0], least[:, 0]
    s, m = sub.astype(np.uint8), sub_least.astype(np.uint8)
    blocks["groups"][:, 0:4] = s[:, :4] | s[:, 4:] >> 4 << 6
    blocks["groups"][:, 4:8] = m[:, :4] | m[:, 4:] >> 4 << 6
    blocks["groups"][:, 8:12] = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    blocks["low"] = _pairs(codes.astype(np.uint8).reshape(-1, 4, 64))
    return blocks


def _refit(
    x: Floats, codes: Floats, sub: Floats, sub_least: Floats, d: Floats, least: Floats
) -> tuple[Floats, Floats]:
    """Fit the scale and minimum (blocks, 1) to the codes, given the groups' integers."""
    weights = _weights(x)
    q, m = sub.reshape(-1, 1) * codes, np.broadcast_to(sub_least.reshape(-1, 1), x.shape)
    wq, wm = weights * q, weights * m
    terms = (wq * q, wq * m, wm * m, wq * x, wm * x)
    a, b, c, y, z = (_sum(_sum(term).reshape(-1, 8))[:, None] for term in terms)
    determinant = a * c - b * b
    new_d, new_least = (y * c - z * b) / determinant, (y * b - z * a) / determinant
    both = (determinant > 0) & (new_d > 0) & (new_least > 0)
    scale_only = ~both & ~(c > 0) & (a > 0) & (y > 0)
    return (
        np.where(both, _half(new_d), np.where(scale_only, _half(y / a), d)),
        np.where(both, _half(new_least), least),
    )
