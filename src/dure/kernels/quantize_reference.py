"""Quantisation of floats to blocks in numpy: the twin of csrc/pack/quantize.cpp, bit for bit.

A group of 16 or 32 weights x gets the scale (and minimum) whose nearest codes leave the least
squared error, weighted by rms(x) + |x|: large weights matter more, and small ones still count. An
importance of the columns is multiplied with that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dure.kernels.dequantize import FP4_LEVELS, IQ4_LEVELS, LAYOUTS

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

TYPES = ("Q8_0", "Q4_0", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "Q6_K", "Q4_K", "Q5_K", "IQ4_XS")

_F = np.float32
_STEP = _F(0.1)  # of a code, between two scales that are tried
_LARGEST = _F(1 << 19)
_LEVELS = IQ4_LEVELS.astype(np.float32)
_FLOATS = FP4_LEVELS[:8].astype(np.float32)  # magnitudes, doubled


def quantize_blocks(dtype: str, x: Floats, importance: Floats | None = None) -> Bytes:
    """Quantise x (n, cols) to blocks, uint8 (n, row bytes); importance: (cols,).

    Raises ValueError for a weight that no block can hold.
    """
    if dtype not in TYPES:
        raise ValueError(f"floats are quantised to {', '.join(TYPES)}, not to {dtype}")
    if not (np.abs(x) < _LARGEST).all():
        raise ValueError("a weight is not finite or too large")
    size = 16 if dtype == "Q6_K" else 32
    counts = np.ones_like(x) if importance is None else np.broadcast_to(importance, x.shape)
    with np.errstate(all="ignore"):  # groups of zeros divide by zero, and then keep their zeros
        blocks = _BLOCKS[dtype](_Groups(x.reshape(-1, size), counts.reshape(-1, size)))
    if not (dtype == "MXFP4" or np.isfinite(blocks["scale"]).all()):
        raise ValueError(f"a weight is too large for {dtype}")
    return blocks.view(np.uint8).reshape(len(x), -1)


@dataclass
class _Groups:
    """Weights that share a scale, (groups, 16 or 32), and what the error of each counts."""

    x: Floats
    weights: Floats

    def __init__(self, x: Floats, counts: Floats) -> None:
        rms = np.sqrt(_sum(x * x) / _F(x.shape[-1]))
        self.x, self.weights = x, (rms[:, None] + np.abs(x)) * counts

    @property
    def peak(self) -> Floats:
        """The weight of the largest magnitude of each group."""
        at = np.abs(self.x).argmax(1)[:, None]
        return np.take_along_axis(self.x, at, 1)[:, 0]


def _sum(values: Floats) -> Floats:
    """Sum along the last axis, term by term: the same order on every instruction set."""
    total = np.zeros(values.shape[:-1], np.float32)
    for index in range(values.shape[-1]):
        total = total + values[..., index]
    return total


def _nearest(x: Array, low: int, high: int) -> Floats:
    clipped = np.where(x > low, np.where(x < high, x, _F(high)), _F(low))
    nearest: Floats = np.rint(clipped)
    return nearest


def _half(x: Array) -> Floats:
    return np.asarray(x).astype(np.float16).astype(np.float32)


def _symmetric_scale(g: _Groups, low: int, high: int) -> Floats:
    """Find the scale s of each group, x ≈ s · code: for given codes it is Σwxq / Σwqq."""
    x, weights, peak = g.x, g.weights, g.peak
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


def _asymmetric_scale(g: _Groups, top: int) -> tuple[Floats, Floats]:
    """Find the scale s and minimum m of each group, x ≈ s · code - m, neither negative."""
    x, weights, two = g.x, g.weights, _F(2)
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


def _q8_0(g: _Groups) -> Array:
    scale = _half(np.abs(g.x).max(1) / _F(127))
    blocks = _empty("Q8_0", len(g.x))
    blocks["scale"] = scale
    blocks["codes"] = _assigned(g.x, scale, np.zeros_like(scale), -127, 127)
    return blocks


def _symmetric(g: _Groups, bits: int) -> Array:
    offset = 1 << (bits - 1)
    scale = _half(_symmetric_scale(g, -offset, offset - 1))
    codes = _assigned(g.x, scale, np.zeros_like(scale), -offset, offset - 1) + _F(offset)
    blocks = _empty(f"Q{bits}_0", len(g.x))
    blocks["scale"], blocks["low"] = scale, _pairs(codes.astype(np.uint8))
    if bits == 5:
        blocks["high"] = _fifth_bits(codes)
    return blocks


def _q5_1(g: _Groups) -> Array:
    scale, minimum = (_half(each) for each in _asymmetric_scale(g, 31))
    codes = _assigned(g.x, scale, minimum, 0, 31)
    blocks = _empty("Q5_1", len(g.x))
    blocks["scale"], blocks["min"] = scale, -minimum
    blocks["high"], blocks["low"] = _fifth_bits(codes), _pairs(codes.astype(np.uint8))
    return blocks


def _fifth_bits(codes: Floats) -> Array:
    """Return bit 4 of each of 32 codes, as one number."""
    bits = (codes.astype(np.uint8) >> 4).astype(np.uint32) << np.arange(32, dtype=np.uint32)
    packed: Array = np.bitwise_or.reduce(bits, axis=1)
    return packed


def _q6_k(g: _Groups) -> Array:
    wanted = _symmetric_scale(g, -32, 31).reshape(-1, 16)
    d, sub = _whole_scales(wanted, -128, 127)
    zeros = np.zeros(len(g.x), np.float32)
    codes = _assigned(g.x, (d * sub).ravel(), zeros, -32, 31)
    d = _fitted(g, sub, codes, d)
    codes = _assigned(g.x, (d * sub).ravel(), zeros, -32, 31)

    unsigned = (codes + _F(32)).astype(np.uint8).reshape(-1, 2, 4, 32)
    blocks = _empty("Q6_K", len(d))
    blocks["scale"], blocks["groups"] = d[:, 0], sub
    blocks["low"] = _pairs(unsigned.reshape(-1, 2, 128))
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    blocks["high"] = np.bitwise_or.reduce(unsigned >> 4 << shifts, axis=2)
    return blocks


def _whole_scales(wanted: Floats, low: int, high: int) -> tuple[Floats, Floats]:
    """Find the scale of each block and the whole numbers of its groups, from low to high."""
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(1)[:, None], 1)
    d = _half(peak / _F(low))
    return d, np.where(d != 0, _nearest(wanted / d, low, high), _F(0))


def _fitted(g: _Groups, sub: Floats, levels: Floats, d: Floats) -> Floats:
    """Return the best scale (blocks, 1) for these levels of the weights and groups' numbers."""
    groups = sub.shape[1]
    q = sub.reshape(-1, 1) * levels
    weighted = g.weights * q
    xq, qq = (_sum(_sum(weighted * each).reshape(-1, groups)) for each in (g.x, q))
    fitted: Floats = np.where(qq > 0, _half(xq / qq), d[:, 0])[:, None]
    return fitted


def _k_block(g: _Groups, bits: int) -> Array:
    top = (1 << bits) - 1
    scale, minimum = (each.reshape(-1, 8) for each in _asymmetric_scale(g, top))
    d, least = (_half(each.max(1) / _F(63))[:, None] for each in (scale, minimum))
    sub = np.where(d > 0, _nearest(scale / d, 0, 63), _F(0))
    sub_least = np.where(least > 0, _nearest(minimum / least, 0, 63), _F(0))
    codes = _assigned(g.x, (d * sub).ravel(), (least * sub_least).ravel(), 0, top)
    d, least = _refit(g, codes, sub, sub_least, d, least)
    codes = _assigned(g.x, (d * sub).ravel(), (least * sub_least).ravel(), 0, top)

    blocks = _empty(f"Q{bits}_K", len(d))
    blocks["scale"], blocks["min"] = d[:, 0], least[:, 0]
    s, m = sub.astype(np.uint8), sub_least.astype(np.uint8)
    blocks["groups"][:, 0:4] = s[:, :4] | s[:, 4:] >> 4 << 6
    blocks["groups"][:, 4:8] = m[:, :4] | m[:, 4:] >> 4 << 6
    blocks["groups"][:, 8:12] = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    unsigned = codes.astype(np.uint8)
    blocks["low"] = _pairs(unsigned.reshape(-1, 4, 64))
    if bits == 5:
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        blocks["high"] = np.bitwise_or.reduce(unsigned.reshape(-1, 8, 32) >> 4 << shifts, axis=1)
    return blocks


def _refit(
    g: _Groups, codes: Floats, sub: Floats, sub_least: Floats, d: Floats, least: Floats
) -> tuple[Floats, Floats]:
    """Fit the scale and minimum (blocks, 1) to the codes, given the groups' integers."""
    q, m = sub.reshape(-1, 1) * codes, np.broadcast_to(sub_least.reshape(-1, 1), g.x.shape)
    wq, wm = g.weights * q, g.weights * m
    terms = (wq * q, wq * m, wm * m, wq * g.x, wm * g.x)
    a, b, c, y, z = (_sum(_sum(term).reshape(-1, 8))[:, None] for term in terms)
    determinant = a * c - b * b
    new_d, new_least = (y * c - z * b) / determinant, (y * b - z * a) / determinant
    both = (determinant > 0) & (new_d > 0) & (new_least > 0)
    scale_only = ~both & ~(c > 0) & (a > 0) & (y > 0)
    return (
        np.where(both, _half(new_d), np.where(scale_only, _half(y / a), d)),
        np.where(both, _half(new_least), least),
    )


def _level_codes(x: Floats, levels: Floats) -> Array:
    """Return the number of the nearest of the levels, which ascend; of two, the lower."""
    return np.searchsorted((levels[:-1] + levels[1:]) / _F(2), x)


def _level_scale(g: _Groups) -> Floats:
    """Find the scale s of each group, x ≈ s · level; the peak may be either end of the levels."""
    best, most = np.zeros((2, len(g.x)), np.float32)
    for end in (_LEVELS[0], _LEVELS[-1]):
        for k in range(-7, 8):
            inverse = (end + _F(5) * _F(k)) / g.peak
            q = _LEVELS[_level_codes(g.x * inverse[:, None], _LEVELS)]
            xq, qq = _sum(g.weights * q * g.x), _sum(g.weights * q * q)
            scale = xq / qq
            gain = scale * xq
            better = gain > most
            best, most = np.where(better, scale, best), np.where(better, gain, most)
    return best


def _assigned_levels(x: Floats, scale: Array) -> Array:
    """Return the codes of each group under its scale; where that is 0, the one nearest to 0."""
    return _level_codes(np.where(scale[:, None] != 0, x / scale[:, None], _F(0)), _LEVELS)


def _iq4_nl(g: _Groups) -> Array:
    scale = _half(_level_scale(g))
    blocks = _empty("IQ4_NL", len(g.x))
    blocks["scale"] = scale
    blocks["low"] = _pairs(_assigned_levels(g.x, scale).astype(np.uint8))
    return blocks


def _iq4_xs(g: _Groups) -> Array:
    d, sub = _whole_scales(_level_scale(g).reshape(-1, 8), -32, 31)
    codes = _assigned_levels(g.x, (d * sub).ravel())
    d = _fitted(g, sub, _LEVELS[codes], d)
    codes = _assigned_levels(g.x, (d * sub).ravel())

    blocks = _empty("IQ4_XS", len(d))
    groups = (sub + _F(32)).astype(np.uint16)
    blocks["scale"] = d[:, 0]
    blocks["group_low"] = (groups[:, ::2] & 15) | (groups[:, 1::2] & 15) << 4
    blocks["group_high"] = np.bitwise_or.reduce(
        groups >> 4 << np.arange(0, 16, 2, dtype=np.uint16), axis=1
    )
    blocks["low"] = _pairs(codes.astype(np.uint8).reshape(-1, 8, 32))
    return blocks


def _mxfp4(g: _Groups) -> Array:
    """Make blocks under the power of two by which the peak keeps its exponent, or one beside it."""
    top = np.abs(g.x).max(1).view(np.int32) >> 23
    best = np.zeros(len(g.x), np.int32)
    most = np.zeros(len(g.x), np.float32)
    for k in (-1, 0, 1):
        exponent = np.clip(top - 2 + k, 0, 254)
        scale = np.ldexp(_F(1), exponent - 128)[:, None]
        q = (
            scale
            * np.where(g.x < 0, -_F(1), _F(1))
            * _FLOATS[_level_codes(np.abs(g.x) / scale, _FLOATS)]
        )
        weighted = g.weights * q
        xq, qq = _sum(weighted * g.x), _sum(weighted * q)
        gain = xq + xq - qq
        better = gain > most
        best, most = np.where(better, exponent, best), np.where(better, gain, most)
    some = (most > 0)[:, None]
    scale = np.where(some, np.ldexp(_F(1), best - 128)[:, None], _F(1))
    codes = _level_codes((np.abs(g.x) / scale).astype(np.float32), _FLOATS)
    codes = np.where(some, codes + 8 * ((g.x < 0) & (codes > 0)), 0)
    blocks = _empty("MXFP4", len(g.x))
    blocks["exponent"], blocks["low"] = best, _pairs(codes.astype(np.uint8))
    return blocks


_BLOCKS: Mapping[str, Callable[[_Groups], Array]] = {
    "Q8_0": _q8_0,
    "Q4_0": partial(_symmetric, bits=4),
    "Q5_0": partial(_symmetric, bits=5),
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
    "Q6_K": _q6_k,
    "Q4_K": partial(_k_block, bits=4),
    "Q5_K": partial(_k_block, bits=5),
    "IQ4_XS": _iq4_xs,
}
