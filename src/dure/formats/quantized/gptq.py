"""GPTQ, as AutoGPTQ and GPTQModel write it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_part,
    matrix_shape,
    read_array,
    read_floats,
)
from dure.formats.quantized.grouped import GroupedMatrix, split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]


def read_gptq(folder: QuantizedFolder) -> None:
    """Put together X.qweight, X.qzeros, X.scales and perhaps X.g_idx.

    Version 1 stores zero points less 1, version 2 as they are.
    """
    folder.expect("bits", folder.settings.get("bits"), 4)
    form = folder.settings.get("checkpoint_format", folder.settings.get("format"))
    folder.expect("checkpoint_format", form, "gptq", "gptq_v2", None)
    group = folder.integer("group_size", 128)
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scales", "qzeros"))
        groups = folder.optional(f"{base}.g_idx")
        less = 0 if form == "gptq_v2" else 1
        folder.add(GptqMatrix(f"{base}.weight", codes, scales, zeros, groups, group, less))


class GptqMatrix(GroupedMatrix):
    """weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row]).

    g is the column's group: by g_idx, else col // group.
    """

    stored = "GPTQ-4"
    whole = True

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo,
        indices: TensorInfo | None,
        group: int,
        less: int,
    ) -> None:
        """less: how far stored zero points are below the true ones."""
        words, rows = matrix_shape(codes)
        super().__init__(name, (rows, 8 * words), group, codes, scales, zeros, indices)
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        self._less = less
        check_part(codes, (words, rows), "I32")
        check_part(scales, (self.groups, rows), *FLOAT_TYPES)
        check_part(zeros, (self.groups, -(-rows // 8)), "I32")
        if indices is not None:
            check_part(indices, (8 * words,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        """The columns group by group, as g_idx says; None if they are in order."""
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(read_array(self._code, "<u4")[:, start:stop].T).view(np.uint8)

    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        zeros = split_words(read_array(self._zero, "<u4"))[:, start:stop] + np.uint8(self._less)
        return read_floats(self._scale)[:, start:stop].T, zeros.T
