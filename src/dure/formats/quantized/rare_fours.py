"""Codes of 4 bits that few tools write: MXINT4, and e2m1 under scales of e5m3 (amdfp4)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.affine import AffineMatrix, affine_rows
from dure.formats.quantized.base import (
    as_floats,
    check_finite,
    check_part,
    matrix_shape,
    read_part_rows,
    split_nibbles,
)
from dure.formats.quantized.grouped import GroupedMatrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)
_MOST = 12


class Fp4E5m3Matrix(AffineMatrix):
    """weight = value of e2m1 * scale of e5m3, of 16 or 32 columns.

    e5m3 is unsigned, with a bias of 15. Memory has twice the value as an integer, under half the
    scale: exact.
    """

    def __init__(self, name: str, codes: TensorInfo, scales: TensorInfo) -> None:
        """codes: U8 (rows, columns / 2), the low half first. scales: U8 (rows, groups).

        Raises ModelFileError for parts that do not fit each other.
        """
        rows, groups = matrix_shape(scales)
        cols = 2 * matrix_shape(codes)[1]
        check_part(scales, (rows, groups), "U8")
        check_part(codes, (rows, cols // 2), "U8")
        if cols not in (16 * groups, 32 * groups):
            raise ModelFileError(
                f"{shown(scales.name)} has {groups} scales for rows of {cols} columns of "
                f"{shown(name)}, which are no groups of 16 or 32."
            )
        super().__init__(name, (rows, cols), 5, cols // groups, codes, scales)
        self.stored = "FP4-E5M3"
        self._code, self._scale = codes, scales

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of an affine type; see `QuantizedMatrix.read_rows`."""
        codes = split_nibbles(read_part_rows(self._code, start, stop))
        sizes = np.array(_TWICE_E2M1, np.uint8)[codes & 7]
        whole = np.where(codes < 8, _MOST + sizes, _MOST - sizes).astype(np.uint8)
        scales = _e5m3()[read_part_rows(self._scale, start, stop)] / np.float32(2)
        check_finite(scales, self.name)
        return affine_rows(whole, scales, scales * np.float32(-_MOST), self.group, self.dtype)


class Mxint4Matrix(GroupedMatrix):
    """weight = a signed size of 3 bits, in quarters, * 2^(scale - 127) of 32 columns."""

    def __init__(self, name: str, codes: TensorInfo, scales: TensorInfo) -> None:
        """codes: U8 (rows, columns / 2), the low half first: a sign, and a size.

        scales: U8 (rows, columns / 32). Raises ModelFileError for parts that do not fit each other.
        """
        rows, groups = matrix_shape(scales)
        super().__init__(name, (rows, 32 * groups), 32, 4, codes, scales, zero=8)
        self.stored = "MXINT4"
        self._code, self._scale = codes, scales
        check_part(scales, (rows, groups), "U8")
        check_part(codes, (rows, 16 * groups), "U8")

    def _codes(self, start: int, stop: int) -> Bytes:
        codes = split_nibbles(read_part_rows(self._code, start, stop))
        sizes = codes & np.uint8(7)
        return np.where(codes < 8, 8 + sizes, 8 - sizes).astype(np.uint8)

    def _scales(self, start: int, stop: int) -> tuple[Floats, None]:
        powers = as_floats(read_part_rows(self._scale, start, stop), "U8")
        return powers / np.float32(4), None


@cache
def _e5m3() -> Floats:
    """Return the values of the 256 codes of e5m3; the last is NaN."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3, codes & 7
    whole = fraction + 8.0 * (exponent > 0)
    values: Floats = np.ldexp(whole, np.maximum(exponent, 1) - 18).astype(np.float32)
    values[255] = np.nan
    return values
