"""NVFP4: values of e2m1, 16 of them under a scale of e4m3, and a global scale for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    QuantizedMatrix,
    check_not_empty,
    check_part,
    read_floats,
    read_part_rows,
)
from dure.formats.quantized.fp8 import E4M3
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

GROUP = 16

_E2M1 = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32
)


class Nvfp4Matrix(QuantizedMatrix):
    """weight = value * (scale * global), or value * (scale / global) where the global divides.

    Codes are two a byte, the low half first. Rows are blocks of NV4G; F32 where no block of 32
    divides a row.
    """

    stored = "NVFP4"

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        whole: TensorInfo | None,
        *,
        divides: bool = False,
    ) -> None:
        """codes: (…, columns / 2) of U8 or columns / 8 of U32; scales: (…, columns / 16) or fewer.

        whole: one global scale, or one for each leading dimension; None for 1.
        """
        check_not_empty(codes)
        check_not_empty(scales)
        each = 8 if codes.dtype == "U32" else 2
        shape = (*codes.shape[:-1], each * codes.shape[-1]) if codes.shape else ()
        self._times = shape[-1] // (GROUP * scales.shape[-1]) if scales.shape and shape else 0
        groups = shape[-1] // (GROUP * self._times) if self._times else 0
        if (
            len(shape) < 2
            or scales.shape != (*shape[:-1], groups)
            or shape[-1] != GROUP * self._times * groups
        ):
            raise ModelFileError(
                f"{shown(codes.name)} {codes.shape} and {shown(scales.name)} {scales.shape} are no "
                "NVFP4 matrix."
            )
        check_part(codes, codes.shape, "U8", "U32")
        check_part(scales, scales.shape, "F8_E4M3", "U8")
        if whole is not None and whole.shape not in ((), (1,), shape[:-2], (*shape[:-2], 1, 1)):
            raise ModelFileError(
                f"{shown(whole.name)} has shape {whole.shape}; it must be one global scale."
            )
        self._code, self._scale, self._whole, self._divides = codes, scales, whole, divides
        self.block = next((n for n in (128, 32) if shape[-1] % n == 0), 0)
        dtype = f"NV4G{self.block}" if self.block else "F32"
        super().__init__(name, shape, dtype, codes, scales, whole)

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of NV4G, or as F32; see `QuantizedMatrix.read_rows`."""
        codes, scales = (read_part_rows(part, start, stop) for part in (self._code, self._scale))
        if (scales & 127 == 127).any():
            raise ModelFileError(f"{shown(self.name)} has a scale that is NaN.")
        scales = scales.repeat(self._times, axis=1)
        whole = self._globals(start, stop)
        if not self.block:
            return _values(codes, scales, whole).view(np.uint8)
        return nvfp4_blocks(codes, scales, whole, self.block)

    def _globals(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the global scale of each of those rows; negative if it is a divisor."""
        if self._whole is None:
            return np.ones(stop - start, np.float32)
        found = read_floats(self._whole).reshape(-1)
        if not np.isfinite(found).all() or (found <= 0).any():
            raise ModelFileError(
                f"{shown(self._whole.name)} holds a global scale that is not a number above 0."
            )
        each = np.arange(start, stop) // self.shape[-2] if found.size > 1 else 0
        whole: NDArray[np.float32] = np.broadcast_to(found[each], (stop - start,))
        return -whole if self._divides else whole


def nvfp4_blocks(codes: Bytes, scales: Bytes, whole: NDArray[np.float32], block: int) -> Bytes:
    """Lay rows out as blocks of NV4G, uint8 (rows, row bytes).

    codes: (rows, columns / 2). scales: e4m3 (rows, columns / 16). whole: (rows,), negative where
    it divides. block: columns under one global scale, 32 or 128.
    """
    count, groups = 2 * codes.shape[1] // block, block // GROUP
    fields: list[Any] = [("codes", "u1", block // 2), ("whole", "<f4"), ("scales", "u1", groups)]
    blocks = np.empty((len(codes), count), fields)
    blocks["codes"] = codes.reshape(-1, count, block // 2)
    blocks["scales"] = scales.reshape(-1, count, groups)
    blocks["whole"] = whole[:, None]
    return blocks.view(np.uint8).reshape(len(codes), -1)


def _values(codes: Bytes, scales: Bytes, whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dequantise rows that no block size divides to float32 (rows, columns)."""
    split = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, GROUP)
    each = E4M3[scales]
    each = each / -whole[:, None] if whole[0] < 0 else each * whole[:, None]
    product: NDArray[np.float32] = _E2M1[split] * each[..., None]
    return product.reshape(len(codes), -1)
