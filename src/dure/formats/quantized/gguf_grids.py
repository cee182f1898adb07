"""GGUF's types of 1 to 3 bits, as rows of the affine types that hold their values.

A code of these types names a row of a grid of small integers, a bit its sign, and a float16 with a
few bits its scale: weight = scale * integer, which an affine type holds exactly, in more bytes
(3 to 10 bits a weight). The definitions are those of llama.cpp's ggml-quants.c; the grids in
gguf_grids.bin are its ggml-common.h's, as indices into their levels, low bits first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.formats.blocks import BLOCKS
from dure.formats.quantized.affine import affine_rows, unpack_bits
from dure.formats.quantized.base import QuantizedMatrix, check_finite, read_part_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]
    # Codes (blocks, columns), then scales and addends (blocks, groups).
    Affine = tuple[Bytes, Floats, Floats]

# Grid -> rows, columns, and the integers that its indices mean, in the order of the file.
_GRIDS: Mapping[str, tuple[int, int, tuple[int, ...]]] = {
    "IQ1": (2048, 8, (-1, 0, 1)),
    "IQ2_XXS": (256, 8, (8, 25, 43)),
    "IQ2_XS": (512, 8, (8, 25, 43)),
    "IQ2_S": (1024, 8, (8, 25, 43)),
    "IQ3_XXS": (256, 4, (4, 12, 20, 28, 36, 44, 52, 62)),
    "IQ3_S": (512, 4, (1, 3, 5, 7, 9, 11, 13, 15)),
}


class GgufGridMatrix(QuantizedMatrix):
    """A tensor of a GGUF type that the kernels have no planes for."""

    def __init__(self, name: str, tensor: TensorInfo) -> None:
        super().__init__(name, tensor.shape, GRID_TYPES[tensor.dtype], tensor)
        self._tensor = tensor
        self.stored = tensor.dtype

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of an affine type; see `QuantizedMatrix.read_rows`."""
        raw = read_part_rows(self._tensor, start, stop)
        size = BLOCKS[self._tensor.dtype].block_bytes
        codes, scales, adds = _DECODERS[self._tensor.dtype](raw.reshape(-1, size))
        check_finite(scales, self.name)
        check_finite(adds, self.name)
        group = codes.shape[1] // scales.shape[1]
        return affine_rows(codes, scales, adds, group, self.dtype).reshape(stop - start, -1)


def _even(values: Array, scales: Floats, most: int) -> Affine:
    """Convert integers -most, -most + 2, …, most, or what of them occurs, to codes from 0 on."""
    codes = (values.reshape(len(values), -1).astype(np.int16) + most) >> 1
    return codes.astype(np.uint8), scales * np.float32(2), scales * np.float32(-most)


def _signed(values: Array, scales: Floats) -> Affine:
    """Convert integers from -128 to 127 to unsigned codes."""
    codes = (values.reshape(len(values), -1).astype(np.int16) + 128).astype(np.uint8)
    return codes, scales, scales * np.float32(-128)


def _half(raw: Bytes) -> Floats:
    """Read two bytes a block as float16, float32 (blocks, 1)."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _words(raw: Bytes, kind: str) -> Array:
    return np.ascontiguousarray(raw).view(kind)


def _nibbles(raw: Bytes) -> Bytes:
    """Unpack the low and the high half of each byte, in turn."""
    return unpack_bits(raw, 4)


def _signs(bits: Array) -> Array:
    """Unpack bytes (…) to signs (…, 8): -1 for a set bit, 1 for an unset one."""
    signs: Array = 1 - 2 * (bits[..., None] >> np.arange(8, dtype=bits.dtype) & 1).astype(np.int16)
    return signs


def _even_signs(codes: Array) -> Array:
    """Unpack seven signs each; the eighth makes the number of negative ones even, (…, 8)."""
    ones = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1).sum(axis=-1)
    return _signs((codes | (ones & 1) << 7).astype(np.uint8))


def _iq1_s(raw: Bytes) -> Affine:
    low, high = raw[:, 2:34], _words(raw[:, 34:], "<u2")
    index = low | (high[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 32) << 8
    shift = 1 - 2 * (high >> 15).astype(np.int16)
    values = 8 * _grid("IQ1")[index].reshape(-1, 8, 32) + shift[..., None]
    scales = _half(raw[:, :2]) * (2 * (high >> 12 & 7) + 1).astype(np.float32)
    return _even(values, scales / np.float32(8), 9)


def _iq1_m(raw: Bytes) -> Affine:
    low, high, packed = raw[:, :32], _nibbles(raw[:, 32:48]), _words(raw[:, 48:], "<u2")
    # The float16 is in the highest four bits of the four words, the lowest first.
    parts = packed >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    scale = np.bitwise_or.reduce(parts, axis=1)[:, None].astype("<u2").view("<f2")
    groups = (packed[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 16)
    shift = 1 - 2 * (high >> 3 & 1).astype(np.int16)
    values = 8 * _grid("IQ1")[low | (high & 7).astype(np.uint16) << 8] + shift[..., None]
    scales = scale.astype(np.float32) * (2 * groups + 1).astype(np.float32)
    return _even(values, scales / np.float32(8), 9)


def _iq2_xxs(raw: Bytes) -> Affine:
    words = _words(raw[:, 2:], "<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8)
    signs = words[..., 1:] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    values = _grid("IQ2_XXS")[index].reshape(-1, 8, 4, 8) * _even_signs(signs)
    return _signed(values, _quarters(raw, words[..., 1] >> 28))


def _iq2_xs(raw: Bytes) -> Affine:
    words = _words(raw[:, 2:66], "<u2")
    values = _grid("IQ2_XS")[words & 511] * _even_signs(words >> 9)
    return _signed(values, _quarters(raw, _nibbles(raw[:, 66:])))


def _iq2_s(raw: Bytes) -> Affine:
    index = raw[:, 2:34] | unpack_bits(raw[:, 66:74], 2).astype(np.uint16) << 8
    values = _grid("IQ2_S")[index] * _signs(raw[:, 34:66])
    return _signed(values, _quarters(raw, _nibbles(raw[:, 74:])))


def _quarters(raw: Bytes, groups: Array) -> Floats:
    """Compute the scales of IQ2: a float16 * (0.5 + 4 bits) / 4."""
    halves = np.float32(0.5) + groups.astype(np.float32)
    return _half(raw[:, :2]) * halves * np.float32(0.25)


def _iq3_xxs(raw: Bytes) -> Affine:
    words = _words(raw[:, 66:], "<u4")
    signs = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    values = _grid("IQ3_XXS")[raw[:, 2:66]].reshape(-1, 8, 4, 8) * _even_signs(signs)
    halves = np.float32(0.5) + (words >> 28).astype(np.float32)
    return _even(values, _half(raw[:, :2]) * halves * np.float32(0.5), 62)


def _iq3_s(raw: Bytes) -> Affine:
    index = raw[:, 2:66] | unpack_bits(raw[:, 66:74], 1).astype(np.uint16) << 8
    values = _grid("IQ3_S")[index].reshape(-1, 32, 8) * _signs(raw[:, 74:106])
    odd = (1 + 2 * _nibbles(raw[:, 106:])).astype(np.float32)
    return _even(values, _half(raw[:, :2]) * odd, 15)


def _tq1_0(raw: Bytes) -> Affine:
    # Five digits to the base 3 in a byte, as a fraction of 256: each product's carry is the next.
    def digits(part: Bytes, count: int) -> Array:
        powers = 3 ** np.arange(count, dtype=np.uint16)
        fractions = (part[:, None, :] * powers[:, None]).astype(np.uint8)
        return (fractions.astype(np.uint16) * 3 >> 8).reshape(len(part), -1)

    parts = digits(raw[:, :32], 5), digits(raw[:, 32:48], 5), digits(raw[:, 48:52], 4)
    scale = _half(raw[:, 52:])
    return np.concatenate(parts, axis=1).astype(np.uint8), scale, -scale


def _tq2_0(raw: Bytes) -> Affine:
    pairs = raw[:, :64].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scale = _half(raw[:, 64:])
    return pairs.reshape(len(raw), -1).astype(np.uint8), scale, -scale


def _q1_0(raw: Bytes) -> Affine:
    scale = _half(raw[:, :2])
    return unpack_bits(raw[:, 2:], 1), scale * np.float32(2), -scale


def _q2_0(raw: Bytes) -> Affine:
    scale = _half(raw[:, :2])
    return unpack_bits(raw[:, 2:], 2), scale, -scale


_DECODERS: Mapping[str, Callable[[Bytes], Affine]] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
}
GRID_TYPES: Mapping[str, str] = {
    "IQ1_S": "A4G32",
    "IQ1_M": "A4G16",
    "IQ2_XXS": "A8G32",
    "IQ2_XS": "A8G16",
    "IQ2_S": "A8G16",
    "IQ3_XXS": "A6G32",
    "IQ3_S": "A4G32",
    "TQ1_0": "A2G64",
    "TQ2_0": "A2G64",
    "Q1_0": "A2G64",
    "Q2_0": "A2G64",
}
"""GGUF type -> the affine type that holds it in memory."""


@cache
def _grids() -> Mapping[str, NDArray[np.int16]]:
    """Read the grids, each (rows, columns)."""
    file = resources.files("dure.formats.quantized") / "gguf_grids.bin"
    raw = np.frombuffer(file.read_bytes(), np.uint8)
    found, start = {}, 0
    for name, (rows, cols, levels) in _GRIDS.items():
        bits = 2 if len(levels) == 3 else 3
        stop = start + rows * cols * bits // 8
        index = unpack_bits(raw[start:stop], bits)
        found[name] = np.array(levels, np.int16)[index].reshape(rows, cols)
        start = stop
    return found


def _grid(name: str) -> NDArray[np.int16]:
    return _grids()[name]
