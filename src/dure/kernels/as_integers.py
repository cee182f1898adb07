"""FP8 and 16-bit floats as whole numbers under a scale: the twin of csrc/pack/as_integers.h.

FP8 (e4m3) has four significant bits: in codes of 8 bits the weights of the peak's power of two, and
of the next three, are exact. Such codes need not use all 127; a finer step loses that and is nearer
where the weights are uneven. Of the two the one is taken that has the smaller squared error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GROUP = 32  # codes of FP8 that share a scale
_EXACT = 8  # codes to a unit of the peak's last bit that make the largest weights exact


def fp8_to_bytes(fp8: npt.NDArray[np.uint8], scale: Array) -> tuple[Array, Array]:
    """Turn codes of FP8 (…, 32) under a scale (…) to signed codes of 8 bits and their scale."""
    rest = fp8 & 127
    peak = rest.max(-1).astype(np.int32)
    power = np.maximum(peak >> 3, 1)
    mantissa = (peak & 7) | np.where(peak > 7, 8, 0)
    fraction = (rest & 7) + 8.0 * (rest > 7)
    # The weights in units of the peak's last bit.
    units = np.ldexp(fraction, np.maximum(rest >> 3, 1) - power[..., None])
    units = np.where(fp8 > 127, -units, units)
    finest = 127 // np.maximum(mantissa, 1)

    def error(step: Array) -> Array:
        x = units * step[..., None]
        total: Array = np.square(np.rint(x) - x).sum(-1)
        return total

    exact = np.full_like(finest, _EXACT)
    better = error(finest) * _EXACT**2 < error(exact) * finest * finest
    step = np.where((finest > _EXACT) & better, finest, _EXACT)
    codes = np.rint(units * step[..., None]).astype(np.int8)
    of_unit = np.ldexp(np.float32(1), power - 10) / step.astype(np.float32)
    scales = np.where(peak > 0, scale.astype(np.float32) * of_unit, np.float32(0))
    return codes, scales


def floats_to_words(values: npt.NDArray[np.float32]) -> tuple[Array, Array]:
    """Turn floats (…, 64) to signed codes of 16 bits and their scale (…).

    No weight is further off than 1/64000 of the largest. Groups so small that a scale would be
    subnormal are as good as zero; one that is not finite has the scale NaN.
    """
    peak = np.abs(values).max(-1)
    most = np.float32(32767)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = most / peak
        kept = np.isfinite(peak) & np.isfinite(inverse)
        codes = np.rint(np.where(kept[..., None], values * inverse[..., None], 0))
    scales = np.where(kept, peak / most, np.where(np.isfinite(peak), np.float32(0), np.nan))
    return codes.astype(np.int16), scales.astype(np.float32)
