"""Dequantisation of every block format in numpy: the reference for the C++ unpacking.

A quantised weight is scale * code - min, with one scale (and min) for a group of 16 or 32 codes.
The scales of a K block are products of one float16 and a small integer, rounded to float32 once. A
weight of dure's own types with a zero point is scale * (code - zero): rounded once, where their
product with activations takes scale * zero for the min. One of its FP8 types is value * scale,
rounded once; one that is floats as integers (`as_integers`) is scale * code. `formats/blocks.py`
describes the blocks of dure's own types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dure.kernels.as_integers import GROUP, floats_to_words, fp8_to_bytes

Array = npt.NDArray[Any]

# Fields of one block in file order. "scale" and "min" are float16; the rest are packed integers.
_FIELDS: Mapping[str, list[Any]] = {
    "F32": [("value", "<f4")],
    "F16": [("value", "<f2")],
    "BF16": [("value", "<u2")],
    "Q4_0": [("scale", "<f2"), ("low", "u1", 16)],
    "Q4_1": [("scale", "<f2"), ("min", "<f2"), ("low", "u1", 16)],
    "Q5_0": [("scale", "<f2"), ("high", "<u4"), ("low", "u1", 16)],
    "Q5_1": [("scale", "<f2"), ("min", "<f2"), ("high", "<u4"), ("low", "u1", 16)],
    "Q8_0": [("scale", "<f2"), ("codes", "i1", 32)],
    "Q2_K": [("groups", "u1", 16), ("low", "u1", (2, 32)), ("scale", "<f2"), ("min", "<f2")],
    "Q3_K": [
        ("high", "u1", 32),
        ("low", "u1", (2, 32)),
        ("groups", "u1", 12),
        ("scale", "<f2"),
    ],
    "Q4_K": [("scale", "<f2"), ("min", "<f2"), ("groups", "u1", 12), ("low", "u1", (4, 32))],
    "Q5_K": [
        ("scale", "<f2"),
        ("min", "<f2"),
        ("groups", "u1", 12),
        ("high", "u1", 32),
        ("low", "u1", (4, 32)),
    ],
    "Q6_K": [
        ("low", "u1", (2, 64)),
        ("high", "u1", (2, 32)),
        ("groups", "i1", 16),
        ("scale", "<f2"),
    ],
    "IQ4_NL": [("scale", "<f2"), ("low", "u1", 16)],
    "IQ4_XS": [
        ("scale", "<f2"),
        ("group_high", "<u2"),
        ("group_low", "u1", 4),
        ("low", "u1", (8, 16)),
    ],
    "MXFP4": [("exponent", "u1"), ("low", "u1", 16)],
    "I4G32": [("low", "u1", 16), ("scale", "<f4"), ("zero", "u1")],
    "I4G64": [("low", "u1", 32), ("scale", "<f4"), ("zero", "u1")],
    "I4G128": [("low", "u1", 64), ("scale", "<f4"), ("zero", "u1")],
    "F8G32": [("codes", "u1", 32), ("scale", "<f4")],
    "F8G128": [("codes", "u1", 128), ("scale", "<f4")],
    "I8G32": [("codes", "i1", 32), ("scale", "<f4")],
    "I8G128": [("codes", "i1", 128), ("scale", "<f4")],
    "U8G32": [("codes", "u1", 32), ("scale", "<f4"), ("zero", "u1")],
    "U8G128": [("codes", "u1", 128), ("scale", "<f4"), ("zero", "u1")],
    "A4G32": [("low", "u1", 16), ("scale", "<f4"), ("min", "<f4")],
    "A4G64": [("low", "u1", 32), ("scale", "<f4"), ("min", "<f4")],
    "A8G32": [("codes", "u1", 32), ("scale", "<f4"), ("min", "<f4")],
    "A8G64": [("codes", "u1", 64), ("scale", "<f4"), ("min", "<f4")],
    "A2G64": [("codes", "u1", 64), ("scale", "<f4"), ("min", "<f4")],
    "A6G32": [("codes", "u1", 32), ("scale", "<f4"), ("min", "<f4")],
    "A6G64": [("codes", "u1", 64), ("scale", "<f4"), ("min", "<f4")],
    "A4G16": [("codes", "u1", 32), ("scale", "<f4", 2), ("min", "<f4", 2)],
    "A8G16": [("codes", "u1", 32), ("scale", "<f4", 2), ("min", "<f4", 2)],
    "NV4G32": [("low", "u1", 16), ("scale", "<f4"), ("groups", "u1", 2)],
    "NV4G128": [("low", "u1", 64), ("scale", "<f4"), ("groups", "u1", 8)],
    "E8G32": [("codes", "u1", 32), ("scale", "<f4")],
    "E8G128": [("codes", "u1", 128), ("scale", "<f4")],
    "B16G64": [("value", "<u2", 64)],
    "H16G64": [("value", "<f2", 64)],
}
LAYOUTS: Mapping[str, np.dtype[Any]] = {name: np.dtype(f) for name, f in _FIELDS.items()}
FLOAT_TYPES = ("F32", "F16", "BF16")
# dure's own; all others are GGUF's.
GROUPED_TYPES = ("I4G32", "I4G64", "I4G128", "U8G32", "U8G128")
AFFINE_TYPES = tuple(name for name in LAYOUTS if name.startswith("A"))
FP8_TYPES = ("F8G32", "F8G128")
INT8_TYPES = ("I8G32", "I8G128")
NVFP4_TYPES = ("NV4G32", "NV4G128")
WORD_TYPES = ("B16G64", "H16G64")
ROUNDED_TYPES = ("E8G32", "E8G128", *WORD_TYPES)
OWN_TYPES = (
    *GROUPED_TYPES,
    *AFFINE_TYPES,
    *FP8_TYPES,
    *INT8_TYPES,
    *NVFP4_TYPES,
    *ROUNDED_TYPES,
)
QUANTIZED_TYPES = tuple(name for name in LAYOUTS if name not in (*FLOAT_TYPES, *FP8_TYPES))

# IQ4's sixteen levels, spaced more finely near zero.
IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
# Twice the values of a 4-bit float of 2 exponent bits and 1 fraction bit; the scale is halved.
FP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _fp8_values() -> npt.NDArray[np.float32]:
    """Return the 256 values of e4m3: 1 sign, 4 exponent (bias 7), 3 fraction bits, no infinity."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    sizes = np.ldexp(fraction + 8.0 * (exponent > 0), np.maximum(exponent, 1) - 10)
    values: npt.NDArray[np.float32] = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return values


_FP8_VALUES = _fp8_values()


@dataclass(frozen=True)
class IntegerBlocks:
    """Quantised rows taken apart: weight = scales * codes - mins, `group` codes to a scale."""

    codes: npt.NDArray[np.int8] | npt.NDArray[np.int16]  # (rows, cols)
    scales: npt.NDArray[np.float32]  # (rows, cols / group)
    mins: npt.NDArray[np.float32] | None  # (rows, cols / group)

    @property
    def group(self) -> int:
        """Codes that share a scale: 16 or 32."""
        return int(self.codes.shape[1] // self.scales.shape[1])


def block_size(dtype: str) -> int:
    """Return the number of weights in one block of `dtype`: 1, or 32 to 256."""
    if dtype in FLOAT_TYPES:
        return 1
    if dtype in OWN_TYPES:
        return max(32, int(dtype.partition("G")[2]))
    return 256 if dtype.endswith("_K") or dtype == "IQ4_XS" else 32


def row_bytes(dtype: str, cols: int) -> int:
    """Return the bytes of one row of `cols` weights in a model file."""
    if cols % block_size(dtype):
        raise ValueError(f"{dtype} rows are multiples of {block_size(dtype)} weights, not {cols}")
    return cols // block_size(dtype) * int(LAYOUTS[dtype].itemsize)


def dequantize(dtype: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Dequantise rows of a model file, uint8 (rows, bytes), to float32 (rows, cols).

    Raises ValueError for an unknown type, or a row that is not a whole number of blocks.
    """
    if dtype in FLOAT_TYPES:
        return _values(_blocks(dtype, raw))
    if dtype in GROUPED_TYPES:
        grouped = _blocks(dtype, raw)
        whole = _own_codes(grouped).astype(np.float32) - grouped["zero"][..., None]
        product: Array = _scale(grouped) * whole
        return product.reshape(len(raw), -1)
    if dtype in AFFINE_TYPES:
        affine = _blocks(dtype, raw)
        scales, minima = (_each(affine, name)[..., None] for name in ("scale", "min"))
        codes = _own_codes(affine).reshape(*scales.shape[:-1], -1)
        with np.errstate(over="ignore", invalid="ignore"):
            product = scales * codes.astype(np.float32) + minima
        return product.reshape(len(raw), -1)
    if dtype in FP8_TYPES:
        units = _blocks(dtype, raw)
        product = _FP8_VALUES[units["codes"]] * _scale(units)
        return product.reshape(len(raw), -1)
    blocks = integer_blocks(dtype, raw)
    codes = blocks.codes.reshape(*blocks.scales.shape, blocks.group)
    with np.errstate(over="ignore", invalid="ignore"):  # what a damaged scale gives is its weight
        weights: Array = blocks.scales[..., None] * codes.astype(np.float32)
        if blocks.mins is not None:
            weights = weights - blocks.mins[..., None]
    return weights.reshape(blocks.codes.shape)


def integer_blocks(dtype: str, raw: npt.NDArray[np.uint8]) -> IntegerBlocks:
    """Unpack quantised rows of a model file, uint8 (rows, bytes), to integers and scales."""
    if dtype not in _UNPACK:
        raise ValueError(f"{dtype} is not a quantised type; known: {', '.join(QUANTIZED_TYPES)}")
    blocks = _blocks(dtype, raw)
    with np.errstate(over="ignore", invalid="ignore"):
        codes, scales, mins = _UNPACK[dtype](blocks)
    rows = raw.shape[0]
    codes = codes.reshape(rows, -1)
    return IntegerBlocks(
        codes.astype(np.int16) if dtype in WORD_TYPES else codes.astype(np.int8),
        scales.astype(np.float32).reshape(rows, -1),
        None if mins is None else mins.astype(np.float32).reshape(rows, -1),
    )


def _values(blocks: Array) -> npt.NDArray[np.float32]:
    """Return floats of 16 or 32 bits as float32."""
    values = blocks["value"]
    if values.dtype.kind == "u":  # BF16: the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    widened: npt.NDArray[np.float32] = values.astype(np.float32)
    return widened


Unpacked = tuple[Array, Array, Array | None]  # codes, scales, mins, each (rows, blocks, ...)


def _blocks(dtype: str, raw: npt.NDArray[np.uint8]) -> Array:
    if dtype not in LAYOUTS:
        raise ValueError(f"{dtype} is not a known type; known: {', '.join(LAYOUTS)}")
    if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] % LAYOUTS[dtype].itemsize:
        raise ValueError(f"{dtype} rows are uint8 (rows, k * {LAYOUTS[dtype].itemsize})")
    return np.ascontiguousarray(raw).view(LAYOUTS[dtype])


def _bits(packed: Array, width: int) -> Array:
    """Unpack fields of `width` bits, lowest first, to a new axis before the last."""
    shifts = np.arange(0, 8 * packed.dtype.itemsize, width, dtype=packed.dtype)
    fields: Array = packed[..., None, :] >> shifts[:, None]
    fields &= packed.dtype.type((1 << width) - 1)
    return fields


def _nibbles(blocks: Array) -> Array:
    """Unpack the low halves of 16 (or 32) bytes, then the high halves: (..., 2 * bytes)."""
    halves = _bits(blocks["low"], 4)
    return halves.reshape(*halves.shape[:-2], -1)


def _neighbours(blocks: Array) -> Array:
    """Unpack the low and the high half of the first byte, then of the second: (..., 2 * bytes)."""
    halves = np.stack([blocks["low"] & 15, blocks["low"] >> 4], axis=-1)
    return halves.reshape(*halves.shape[:-2], -1)


def _own_codes(blocks: Array) -> Array:
    """Return the codes of a block of dure's own types, one a byte."""
    return blocks["codes"] if "codes" in (blocks.dtype.names or ()) else _neighbours(blocks)


def _fifth_bits(blocks: Array) -> Array:
    """Return bit i of the block's 32-bit word, worth 16, for weight i."""
    bits = _bits(blocks["high"][..., None], 1)[..., 0]
    return (bits << np.uint32(4)).astype(np.uint8)


def _scale(blocks: Array, name: str = "scale") -> Array:
    return blocks[name].astype(np.float32)[..., None]


def _q4_0(blocks: Array) -> Unpacked:
    return _nibbles(blocks).astype(np.int8) - 8, _scale(blocks), None


def _q4_1(blocks: Array) -> Unpacked:
    return _nibbles(blocks), _scale(blocks), -_scale(blocks, "min")


def _q5_0(blocks: Array) -> Unpacked:
    codes = (_nibbles(blocks) | _fifth_bits(blocks)).astype(np.int8) - 16
    return codes, _scale(blocks), None


def _q5_1(blocks: Array) -> Unpacked:
    return _nibbles(blocks) | _fifth_bits(blocks), _scale(blocks), -_scale(blocks, "min")


def _q8_0(blocks: Array) -> Unpacked:
    return blocks["codes"], _scale(blocks), None


def _q2_k(blocks: Array) -> Unpacked:
    groups = blocks["groups"]
    scales = _scale(blocks) * (groups & 15).astype(np.float32)
    mins = _scale(blocks, "min") * (groups >> 4).astype(np.float32)
    return _bits(blocks["low"], 2), scales, mins


def _q3_k(blocks: Array) -> Unpacked:
    low = _bits(blocks["low"], 2)  # (..., halves of 128, 4 of 32, 32)
    high = _bits(blocks["high"], 1).reshape(low.shape)  # a set bit means: do not subtract 4
    codes = low.astype(np.int8) - 4 * (1 - high.astype(np.int8))
    packed = blocks["groups"]
    nibbles = _bits(packed[..., :8], 4).reshape(*blocks.shape, 16)
    pairs = _bits(packed[..., 8:], 2).reshape(*blocks.shape, 16)
    groups = (nibbles | pairs << 4).astype(np.int8) - 32
    return codes, _scale(blocks) * groups.astype(np.float32), None


def _six_bit_groups(blocks: Array) -> tuple[Array, Array]:
    """Unpack the scales and mins of the 8 groups of a Q4_K or Q5_K block, from 12 bytes.

    Bytes 0-3 and 4-7 hold the first four scales and mins in their low 6 bits; the upper 2 bits,
    with the nibbles of bytes 8-11, make the last four.
    """
    packed = blocks["groups"]
    scales, mins, rest = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    late_scales = (rest & 15) | (scales >> 6 << 4)
    late_mins = (rest >> 4) | (mins >> 6 << 4)
    all_scales = np.concatenate([scales & 63, late_scales], axis=-1).astype(np.float32)
    all_mins = np.concatenate([mins & 63, late_mins], axis=-1).astype(np.float32)
    return _scale(blocks) * all_scales, _scale(blocks, "min") * all_mins


def _q4_k(blocks: Array) -> Unpacked:
    return _nibbles(blocks), *_six_bit_groups(blocks)


def _q5_k(blocks: Array) -> Unpacked:
    low = _nibbles(blocks).reshape(*blocks.shape, 8, 32)
    return low | _bits(blocks["high"], 1) << 4, *_six_bit_groups(blocks)


def _q6_k(blocks: Array) -> Unpacked:
    high = _bits(blocks["high"], 2)  # (..., halves of 128, 4 of 32, 32)
    low = _nibbles(blocks).reshape(high.shape)
    codes = (low | high << 4).astype(np.int8) - 32
    return codes, _scale(blocks) * blocks["groups"].astype(np.float32), None


def _iq4_nl(blocks: Array) -> Unpacked:
    return IQ4_LEVELS[_nibbles(blocks)], _scale(blocks), None


def _iq4_xs(blocks: Array) -> Unpacked:
    # Group i's low nibble is nibble i of four bytes, counted low half first within each byte.
    low = _bits(blocks["group_low"], 4).swapaxes(-1, -2).reshape(*blocks.shape, 8)
    high = _bits(blocks["group_high"][..., None], 2)[..., 0].astype(np.uint8)
    groups = (low | high << 4).astype(np.int8) - 32
    return IQ4_LEVELS[_nibbles(blocks)], _scale(blocks) * groups.astype(np.float32), None


def _mxfp4(blocks: Array) -> Unpacked:
    exponents = blocks["exponent"].astype(np.int32)
    # 2^(e - 127), halved because the levels are doubled: exact, down into the subnormals at e < 2.
    scales = np.ldexp(np.float32(1.0), exponents - 128)
    return FP4_LEVELS[_nibbles(blocks)], scales[..., None], None


# Products are added up per 32 codes, whatever shares a scale. Codes of 8 bits are taken less 128.


def _signed_codes(blocks: Array) -> tuple[Array, int]:
    codes = _own_codes(blocks)
    offset = 128 if "codes" in (blocks.dtype.names or ()) else 0
    return codes.astype(np.int16) - offset, offset


def _grouped(blocks: Array) -> Unpacked:
    codes, offset = _signed_codes(blocks)
    scales = _scale(blocks).repeat(codes.shape[-1] // 32, axis=-1)
    return codes, scales, scales * (blocks["zero"].astype(np.float32) - offset)[..., None]


def _each(blocks: Array, name: str) -> Array:
    """Return a field of one or more floats a block, (…, floats)."""
    return blocks[name].reshape(*blocks.shape, -1).astype(np.float32)


def _affine(blocks: Array, *, offset: int) -> Unpacked:
    codes = _own_codes(blocks).astype(np.int16) - offset
    scales, mins = _each(blocks, "scale"), _each(blocks, "min")
    times = max(1, codes.shape[-1] // 32 // scales.shape[-1])
    mins = -(mins + scales * np.float32(offset)) if offset else -mins
    return codes, scales.repeat(times, axis=-1), mins.repeat(times, axis=-1)


def _int8(blocks: Array) -> Unpacked:
    return blocks["codes"], _scale(blocks).repeat(blocks["codes"].shape[-1] // 32, axis=-1), None


def _nvfp4(blocks: Array) -> Unpacked:
    own, whole = _FP8_VALUES[blocks["groups"]] * np.float32(0.5), _scale(blocks)
    divides = whole.flat[0] < 0  # all of a matrix, or none
    return FP4_LEVELS[_neighbours(blocks)], -own / whole if divides else own * whole, None


def _fp8_as_bytes(blocks: Array) -> Unpacked:
    fp8 = blocks["codes"].reshape(*blocks.shape, -1, GROUP)
    codes, scales = fp8_to_bytes(fp8, _scale(blocks))
    return codes, scales, None


def _floats_as_words(blocks: Array) -> Unpacked:
    codes, scales = floats_to_words(_values(blocks))
    return codes, scales[..., None].repeat(codes.shape[-1] // 32, axis=-1), None


_UNPACK: Mapping[str, Callable[[Array], Unpacked]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    **dict.fromkeys(GROUPED_TYPES, _grouped),
    **{n: partial(_affine, offset=128 if n[1] == "8" else 0) for n in AFFINE_TYPES},
    **dict.fromkeys(INT8_TYPES, _int8),
    **dict.fromkeys(NVFP4_TYPES, _nvfp4),
    **dict.fromkeys(("E8G32", "E8G128"), _fp8_as_bytes),
    **dict.fromkeys(WORD_TYPES, _floats_as_words),
}
