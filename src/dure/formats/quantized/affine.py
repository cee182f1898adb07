"""Codes under a scale and an addend for each group of columns, whatever tool wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import QuantizedMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

# The affine types of `blocks`: bits of a code in memory -> columns that share a scale.
_TYPES = {2: (64,), 4: (64, 32, 16), 6: (64, 32), 8: (64, 32, 16)}


class AffineMatrix(QuantizedMatrix):
    """weight = scale * code + add, with one scale and addend for each `group` columns of a row."""

    def __init__(
        self, name: str, shape: tuple[int, ...], bits: int, group: int, *parts: TensorInfo | None
    ) -> None:
        """shape: (…, rows, cols). bits: of a code, 1 to 8. group: columns; -1 for the whole row.

        Raises ModelFileError for sizes that make no groups.
        """
        cols = shape[-1]
        self.bits = bits
        self.group = cols if group == -1 or group > cols else group
        if self.group < 1 or not 1 <= bits <= 8:
            raise ModelFileError(f"{name} has codes of {bits} bits in groups of {group} columns.")
        self.groups = -(-cols // self.group)
        super().__init__(name, shape, affine_type(bits, self.group, cols), *parts)


def affine_type(bits: int, group: int, cols: int) -> str:
    """Return the type that holds codes of so many bits, in groups of `group` of a row of `cols`."""
    for held, sizes in _TYPES.items():
        for size in sizes:
            if held >= bits and group % size == 0 and cols % max(size, 32) == 0:
                return f"A{held}G{size}"
    return "F32"


def affine_rows(codes: Bytes, scales: Floats, adds: Floats, group: int, dtype: str) -> Bytes:
    """Lay rows out as blocks of an affine type, or as float32.

    codes (n, cols); scales and adds (n, groups of `group` columns). Returns uint8 (n, row bytes).
    """
    count, cols = codes.shape
    if dtype == "F32":
        of = np.arange(cols) // group
        values: Floats = scales[:, of] * codes.astype(np.float32) + adds[:, of]
        return values.view(np.uint8)
    each = int(dtype.partition("G")[2])
    width, times = max(each, 32), max(1, 32 // each)
    of = np.arange(cols // each) * each // group
    if dtype in ("A4G32", "A4G64"):  # two codes a byte
        codes, size = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4), width // 2
    else:
        size = width
    fields: list[Any] = [("codes", "u1", size), ("scale", "<f4", times), ("min", "<f4", times)]
    blocks = np.empty((count, cols // width), fields)
    blocks["codes"] = codes.reshape(count, -1, size)
    blocks["scale"] = scales[:, of].reshape(count, -1, times)
    blocks["min"] = adds[:, of].reshape(count, -1, times)
    return blocks.view(np.uint8).reshape(count, -1)


def unpack_bits(raw: Bytes, bits: int) -> Bytes:
    """Cut a dense stream of codes, the lowest bits first, (…, bytes) into (…, codes), a byte each.

    The bytes of a row must be a multiple of `bits`: eight codes.
    """
    if bits == 8:
        return raw
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = raw[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return codes.reshape(*raw.shape[:-1], -1)
    eight = raw.reshape(*raw.shape[:-1], -1, bits)
    words = np.zeros(eight.shape[:-1], np.uint64)
    for byte in range(bits):
        words |= eight[..., byte].astype(np.uint64) << np.uint64(8 * byte)
    out = np.empty((*words.shape, 8), np.uint8)
    for code in range(8):
        out[..., code] = words >> np.uint64(bits * code) & np.uint64((1 << bits) - 1)
    return out.reshape(*raw.shape[:-1], -1)
