"""FP8 (e4m3) codes with a scale for each block, row or matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    QuantizedMatrix,
    check_finite,
    read_floats,
    read_part_rows,
)
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]


def read_fp8(folder: QuantizedFolder) -> None:
    """Put together DeepSeek's form: X.weight, and X.weight_scale_inv, which multiplies."""
    folder.expect("fmt", folder.settings.get("fmt", "e4m3"), "e4m3", "float8_e4m3fn")
    key = "weight_block_size"
    if folder.settings.get("store_dtype") == "mxfp4":
        _add_mxfp4_experts(folder)
    add_fp8(folder, folder.block(key, folder.settings.get(key)))


def _add_mxfp4_experts(folder: QuantizedFolder) -> None:
    """Put together MiMo-V2.6's experts: X.weight of e2m1 codes, and X.weight_scale."""
    folder.expect("mxfp4_block_size", folder.settings.get("mxfp4_block_size", 32), 32)
    for base, codes in folder.ending(".weight"):
        if codes.dtype in ("U8", "I8"):
            del folder.tensors[codes.name]
            scales = folder.take(f"{base}.weight_scale", codes.name)
            folder.add(Mxfp4Matrix(codes.name, replace(codes, dtype="U8"), scales))


def add_fp8(folder: QuantizedFolder, block: tuple[int, int] | None) -> None:
    """Put together every FP8 tensor X with its scales X_scale_inv or X_scale."""
    for name, tensor in list(folder.tensors.items()):
        if tensor.dtype != "F8_E4M3":
            continue
        scale = folder.optional(f"{name}_scale_inv") or folder.take(f"{name}_scale", name)
        del folder.tensors[name]
        folder.add(Fp8Matrix(name, tensor, scale, block))


class Fp8Matrix(QuantizedMatrix):
    """weight = value * scale, of a value of e4m3 and the scale of its block, row or tensor.

    A block at the end of a row or column may be cut.
    """

    stored = "FP8"

    def __init__(
        self, name: str, codes: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None
    ) -> None:
        if len(codes.shape) < 2 or 0 in codes.shape:
            raise ModelFileError(f"{name} is FP8 of shape {codes.shape}; it must be a matrix.")
        *lead, rows, cols = codes.shape
        if scales.dtype not in (*FLOAT_TYPES, "U8", "F8_E8M0"):
            raise ModelFileError(f"{shown(scales.name)} is {scales.dtype}; scales must be floats.")
        self._code, self._scale = codes, scales
        if scales.dtype == "U8":  # MXFP8: a power of two for 32 columns
            block = (1, 32)
            self.stored = "MXFP8"
        self._grid, self._each = _grid(scales, tuple(lead), (rows, cols), block)
        width = self._each[1] if self._grid[1] > 1 else cols
        fitting = [n for n in (128, 32) if width % n == 0 and cols % n == 0]
        self.unit = fitting[0] if fitting else 0
        super().__init__(name, codes.shape, f"F8G{self.unit}" if fitting else "F32", codes, scales)

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of F8G, or as F32; see `QuantizedMatrix.read_rows`."""
        codes, cols = read_part_rows(self._code, start, stop), self.shape[-1]
        if (codes & 127 == 127).any():
            raise ModelFileError(
                f"{shown(self.name)} holds a weight that is NaN.",
                hint="the file is damaged, or its quantisation failed: download it again.",
            )
        rows = np.arange(start, stop)
        line = rows // self.shape[-2] * self._grid[0] + rows % self.shape[-2] // self._each[0]
        scales = read_floats(self._scale).reshape(-1, self._grid[1])
        line %= len(scales)  # one scale for all of a stack
        check_finite(scales[line], self.name)
        if not self.unit:
            each = scales[line][:, np.arange(cols) // self._each[1]]
            with np.errstate(over="ignore"):  # as float32 multiplies: infinite beyond its range
                values: Array = E4M3[codes] * each
            return values.view(np.uint8)
        count = cols // self.unit
        fields = [("codes", "u1", self.unit), ("scale", "<f4")]
        blocks = np.empty((stop - start, count), fields)
        blocks["codes"] = codes.reshape(-1, count, self.unit)
        blocks["scale"] = scales[line][:, np.arange(count) * self.unit // self._each[1]]
        return blocks.view(np.uint8).reshape(stop - start, -1)


def _grid(
    scales: TensorInfo,
    lead: tuple[int, ...],
    shape: tuple[int, int],
    block: tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the grid of scales (down, across), and the rows and columns that share one."""
    rows, cols = shape
    kinds: list[tuple[int, int]] = [block] if block is not None else []
    kinds += [(rows, cols), (1, cols)]  # of the whole matrix, or of each row
    for tall, wide in kinds:
        grid = -(-rows // tall), -(-cols // wide)
        if scales.shape == (*lead, *grid):
            return grid, (tall, wide)
    if scales.shape == (rows,) and not lead:
        return (rows, 1), (1, cols)
    if scales.shape in ((), (1,)):
        return (1, 1), (rows, cols)
    raise ModelFileError(
        f"{scales.name} has shape {scales.shape}, which are no scales of a matrix {(*lead, *shape)}"
        + (f" in blocks of {block}, as config.json says." if block else ".")
    )


def _e4m3() -> NDArray[np.float32]:
    """Compute the 256 values of e4m3: 4 bits of exponent, bias 7, and 3 of fraction."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    sizes = np.ldexp(fraction + 8.0 * (exponent > 0), np.maximum(exponent, 1) - 10)
    values: NDArray[np.float32] = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return values


E4M3 = _e4m3()
