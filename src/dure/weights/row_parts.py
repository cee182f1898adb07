"""Tensors that a checkpoint has as rows of a larger one: cut, without reading anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.tensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from dure.formats.quantized_checkpoint import Parameter

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int32]


def cut_rows(tensor: Parameter | None, parts: Mapping[str, int]) -> dict[str, Parameter]:
    """Return the parts of a tensor, by their names, of so many rows each, in order.

    Empty if there is no tensor, or its rows (the first dimension) are not the sum.
    """
    if tensor is None or not tensor.shape or tensor.shape[0] != sum(parts.values()):
        return {}
    found: dict[str, Parameter] = {}
    first = 0
    for name, rows in parts.items():
        shape = (rows, *tensor.shape[1:])
        if isinstance(tensor, TensorInfo):
            each = tensor.size_bytes // tensor.shape[0]
            offset, size = tensor.offset + first * each, rows * each
            found[name] = replace(tensor, name=name, shape=shape, offset=offset, size_bytes=size)
        else:
            found[name] = RowsOf(name, tensor, first, shape)
        first += rows
    return found


class RowsOf(QuantizedMatrix):
    """Some rows of a quantised matrix."""

    whole: ClassVar[bool] = True  # what it is cut from may be

    def __init__(
        self, name: str, matrix: QuantizedMatrix, first: int, shape: tuple[int, ...]
    ) -> None:
        """first: the row of `matrix` that is the first of these."""
        super().__init__(name, shape, matrix.dtype)
        self.stored, self._matrix, self._first = matrix.stored, matrix, first
        self.size_bytes = matrix.size_bytes * shape[0] // matrix.shape[0]

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks; see `QuantizedMatrix.read_rows`."""
        return self._matrix.read_rows(self._first + start, self._first + stop)

    @property
    def columns(self) -> Ints | None:
        """The matrix's column at each place of a row that is read; None if they are in order."""
        return self._matrix.columns
