"""Matrices of which a step needs a few rows: read from disk row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.errors import ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo


class RowsOnDisk:
    """The rows of a tensor, as floats, each read when it is asked for."""

    def __init__(self, tensor: TensorInfo, rows: int, cols: int) -> None:
        """Open the tensor's file for reads past the page cache."""
        self._tensor, self._rows, self._cols = tensor, rows, cols
        with tensor.source.reading() as descriptor:
            self._file = kernels.DirectFile(descriptor)

    def values(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the rows, (n, cols), with the bits that `Matrix.row_values` gives.

        Raises ValueError for a row that there is not, ModelFileError for one that cannot be read,
        or of a file that has changed.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        if len(wanted) == 0:
            return np.empty((0, self._cols), np.float32)
        if wanted[0] < 0 or wanted[-1] >= self._rows:
            raise ValueError(f"row {wanted[-1]:,} is not one of {self._rows:,}")
        size, tensor = self._tensor.row_bytes, self._tensor
        raw = np.empty((len(wanted), size), np.uint8)
        try:
            for place, row in enumerate(wanted.tolist()):
                raw[place] = self._file.read(tensor.offset + row * size, size)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it is shorter than it was"
            raise ModelFileError(
                f"{tensor.source.path}: a row of {tensor.name} cannot be read: {reason}.",
                hint="the disk may be failing, or the file was changed: load the model again.",
            ) from None
        if not self._file.unchanged():
            raise ModelFileError(
                f"{tensor.source.path} changed while it was in use.",
                hint="load the model again.",
            )
        matrix = kernels.Matrix(tensor.dtype, len(wanted), self._cols)
        matrix.fill(0, raw)
        values = matrix.row_values(np.arange(len(wanted), dtype=np.int32))
        return np.ascontiguousarray(values[places.reshape(-1)])
