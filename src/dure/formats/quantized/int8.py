"""Integer codes that lie in bytes, as compressed-tensors' int-quantized stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    as_floats,
    check_part,
    matrix_shape,
    read_floats,
    read_part_rows,
)
from dure.formats.quantized.grouped import GroupedMatrix, group_size
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


class ByteMatrix(GroupedMatrix):
    """weight = scale * (code - zero) of signed codes, one a byte; zero is 0 if none is stored.

    A scale is of the whole matrix, of a row, or of a group of columns.
    """

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo | None,
        sizes: Iterable[object],
        bits: int,
    ) -> None:
        """sizes: of groups, as the config knows them. bits: of a code, 2 to 8."""
        rows, cols = matrix_shape(codes)
        self._alone = scales.shape in ((), (1,), (1, 1)) and rows > 1
        if self._alone or scales.shape == (rows,):
            group = -1
        else:
            group = group_size(scales, matrix_shape(scales)[1], cols, (-1, *sizes), shown(name))
        self._code, self._scale, self._zero = codes, scales, zeros
        zero = 1 << (bits - 1) if zeros is None else None
        super().__init__(name, (rows, cols), group, bits, codes, scales, zeros, zero=zero)
        self.stored = f"INT{bits}"
        check_part(codes, (rows, cols), "I8")
        for part, types in ((scales, FLOAT_TYPES), (zeros, ("I8",))):
            if part is not None:
                whole = self._alone or part.shape == (rows,)
                check_part(part, part.shape if whole else (rows, self.groups), *types)

    def _codes(self, start: int, stop: int) -> Bytes:
        return self._raised(read_part_rows(self._code, start, stop), "code")

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        if self._alone:
            shape = stop - start, 1
            scales = np.broadcast_to(read_floats(self._scale).reshape(1, 1), shape)
            if self._zero is None:
                return scales, None
            raw = self._zero.source.read(self._zero.offset, self._zero.size_bytes)
            return scales, np.broadcast_to(self._raised(raw, "zero point").reshape(-1, 1), shape)
        scales = as_floats(_rows_of(self._scale, start, stop), self._scale.dtype)
        if self._zero is None:
            return scales, None
        return scales, self._raised(_rows_of(self._zero, start, stop), "zero point")

    def _raised(self, raw: Bytes, what: str) -> Bytes:
        """Convert signed bytes to unsigned codes of `bits` bits."""
        raised = raw + np.uint8(1 << (self.bits - 1))  # modulo 256
        if self.bits < 8 and (raised >> np.uint8(self.bits)).any():
            raise ModelFileError(
                f"{shown(self.name)} has a {what} that is not of the {self.bits} bits that "
                "config.json says."
            )
        return raised


def _rows_of(tensor: TensorInfo, start: int, stop: int) -> Bytes:
    """Read the bytes of those rows of a tensor (rows, n) or (rows,)."""
    size = tensor.size_bytes // tensor.shape[0]
    raw = tensor.source.read(tensor.offset + start * size, (stop - start) * size)
    return raw.reshape(stop - start, size)
