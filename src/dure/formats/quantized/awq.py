"""AWQ in the GEMM layout, as AutoAWQ writes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_part,
    matrix_shape,
    read_array,
    read_floats,
)
from dure.formats.quantized.grouped import GroupedMatrix, group_size
from dure.formats.quantized.quark_words import QuarkColumns
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the output column of each of the eight codes of a word


def read_awq(folder: QuantizedFolder) -> None:
    """Put together X.qweight, X.qzeros and X.scales, packed along the output columns.

    AMD Quark writes this layout, too, and says in `pack_method` that it did: then codes may be
    signed, in order, or of 8 bits.
    """
    settings = folder.settings
    form = settings.get("version", settings.get("format", "gemm"))
    folder.expect("version", str(form).lower(), "gemm")
    bits = settings.get("bits", settings.get("w_bit"))
    if "pack_method" in settings:
        folder.expect("bits", bits, 4, 8)
        _add_quark(folder, bits)
        return
    folder.expect("bits", bits, 4)
    add_awq(folder, "dynamic")


def _add_quark(folder: QuantizedFolder, bits: int) -> None:
    """Put together the modules that AMD Quark wrote by AWQ's names."""
    settings = folder.settings
    folder.expect("pack_method", settings["pack_method"], "reorder", "order")
    signed = settings.get("zero_point") is False
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        if codes.dtype in FLOAT_TYPES:  # with transformers 5 it calls every weight so
            folder.tensors[f"{base}.weight"] = replace(codes, name=f"{base}.weight")
            continue
        parts = (folder.take(f"{base}.scales", codes.name), folder.optional(f"{base}.qzeros"))
        matrix = QuarkColumns(
            f"{base}.weight",
            f"QUARK-AWQ-{bits}",
            codes,
            *parts,
            bits=bits,
            signed=signed,
            reorder=settings["pack_method"] == "reorder",
        )
        folder.add(matrix)


def add_awq(folder: QuantizedFolder, overrides: str) -> None:
    """Put together every module of AWQ's names.

    overrides: the key of other group sizes for some modules.
    """
    sizes = folder.group_sizes(overrides)
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scales", "qzeros"))
        folder.add(AwqMatrix(f"{base}.weight", codes, scales, zeros, sizes))


class AwqMatrix(GroupedMatrix):
    """weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row])."""

    stored = "AWQ-4"
    whole = True

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo,
        sizes: list[int],
    ) -> None:
        cols, words = matrix_shape(codes)
        group = group_size(scales, matrix_shape(scales)[0], cols, sizes, shown(name))
        super().__init__(name, (8 * words, cols), group, 4, codes, scales, zeros)
        self._code, self._scale, self._zero = codes, scales, zeros
        check_part(codes, (cols, words), "I32")
        check_part(scales, (self.groups, 8 * words), *FLOAT_TYPES)
        check_part(zeros, (self.groups, words), "I32")

    def _codes(self, start: int, stop: int) -> Bytes:
        return self._ordered(self._code)[:, start:stop].T

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes]:
        zeros = self._ordered(self._zero)[:, start:stop]
        return read_floats(self._scale)[:, start:stop].T, zeros.T

    def _ordered(self, tensor: TensorInfo) -> Bytes:
        """Unpack the codes of a part in the order of the rows, (columns or groups, rows)."""
        words = read_array(tensor, "<u4")
        codes = np.empty((*words.shape, 8), np.uint8)
        for slot, column in enumerate(_COLUMNS):
            codes[..., column] = words >> np.uint32(4 * slot) & 15
        return codes.reshape(len(words), -1)
