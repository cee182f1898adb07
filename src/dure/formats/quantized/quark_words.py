"""Integer codes as AMD Quark packs them: by rows, or along the output columns in groups.

Eight codes of 4 bits lie in a 32-bit word, in AWQ's order ("reorder") or from the lowest bits on
("order"); signed ones are two's complement, and so are their zero points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_part,
    matrix_shape,
    read_array,
    read_floats,
    read_part_rows,
)
from dure.formats.quantized.grouped import GroupedMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

# The code of a word that each four bits hold, from the lowest on.
_REORDERED, _ORDERED = (0, 2, 4, 6, 1, 3, 5, 7), (0, 1, 2, 3, 4, 5, 6, 7)
_SIGN = 8  # added to a signed code of 4 bits, modulo 16, it is unsigned


class QuarkRows(GroupedMatrix):
    """weight = scale * (code - zero) of 4-bit codes, packed along the input columns.

    A scale is of a row or of the matrix.
    """

    def __init__(
        self,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo | None,
        *,
        signed: bool,
        reorder: bool,
        factor: TensorInfo | None = None,
    ) -> None:
        """codes: I32 (rows, columns / 8). scales: one, or (rows,). zeros: I32, one, or (rows / 8,).

        factor: one more scale of all. Raises ModelFileError for parts that do not fit each other.
        """
        rows, words = matrix_shape(codes)
        parts = (codes, scales, zeros, factor)
        zero = _SIGN * signed if zeros is None else None
        super().__init__(codes.name, (rows, 8 * words), -1, 4, *parts, zero=zero)
        self.stored = f"QUARK-{'' if signed else 'U'}INT4"
        self._code, self._scale, self._zero, self._factor = codes, scales, zeros, factor
        self._raise, self._reorder = np.uint8(_SIGN * signed), reorder
        check_part(codes, codes.shape, "I32")
        check_part(scales, scales.shape if scales.shape in ((), (1,)) else (rows,), *FLOAT_TYPES)
        if zeros is not None:
            alone = zeros.shape in ((), (1,)) and scales.shape in ((), (1,))
            check_part(zeros, zeros.shape if alone else (-(-rows // 8),), "I32")
        if factor is not None:
            check_part(factor, factor.shape if factor.shape in ((), (1,)) else (1,), *FLOAT_TYPES)

    def _codes(self, start: int, stop: int) -> Bytes:
        words = read_part_rows(self._code, start, stop).view("<u4")
        return _unpacked(words, self._reorder) + self._raise & np.uint8(15)

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        scales = read_floats(self._scale).reshape(-1, 1)
        if self._factor is not None:
            scales = scales * read_floats(self._factor).reshape(1, 1)
        scales = self._of_rows(scales, start, stop)
        if self._zero is None:
            return scales, None
        words = read_array(self._zero, "<u4")
        if self._scale.shape in ((), (1,)):  # one code in a word of its own
            zeros = (words & 15).astype(np.uint8).reshape(-1, 1)
        else:
            zeros = _unpacked(words.reshape(1, -1), self._reorder).T
        return scales, self._of_rows(zeros + self._raise & np.uint8(15), start, stop)

    def _of_rows(self, values: Array, start: int, stop: int) -> Array:
        """Cut out what belongs to those rows, (stop - start, 1)."""
        if len(values) == 1:
            return np.broadcast_to(values, (stop - start, 1))
        return values[start:stop]


class QuarkColumns(GroupedMatrix):
    """weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row]), of 4 or 8 bits."""

    whole = True

    def __init__(
        self,
        name: str,
        stored: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo | None,
        *,
        bits: int,
        signed: bool,
        reorder: bool = False,
    ) -> None:
        """codes: I32 (columns, rows / 8) of 4 bits, or I8 or U8 (columns, rows) of 8.

        scales: (groups, rows). zeros: as the codes, of groups. Raises ModelFileError for parts that
        do not fit each other.
        """
        cols = matrix_shape(codes)[0]
        groups, rows = matrix_shape(scales)
        self._code, self._scale, self._zero = codes, scales, zeros
        self._raise, self._reorder = (1 << bits - 1) * signed, reorder
        if zeros is not None and signed and not _is_set(zeros):
            self._zero = None
        zero = self._raise if self._zero is None and signed else None
        group = cols // groups if cols % groups == 0 else 0
        super().__init__(name, (rows, cols), group, bits, codes, scales, zeros, zero=zero)
        self.stored = stored
        width = -(-rows // 8) if bits == 4 else rows
        check_part(codes, (cols, width), codes.dtype)
        check_part(scales, (groups, rows), *FLOAT_TYPES)
        if zeros is not None:
            check_part(zeros, (groups, width), codes.dtype)

    def _codes(self, start: int, stop: int) -> Bytes:
        return self._unsigned(self._code, start, stop)

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        scales = read_floats(self._scale)[:, start:stop].T
        if self._zero is not None:
            return scales, self._unsigned(self._zero, start, stop)
        return scales, None if self.zero is not None else np.zeros(scales.shape, np.uint8)

    def _unsigned(self, part: TensorInfo, start: int, stop: int) -> Bytes:
        """Unsigned codes of those rows of the matrix, (stop - start, columns or groups)."""
        if self.bits == 8:
            codes = read_array(part, "u1")
        else:
            codes = _unpacked(read_array(part, "<u4"), self._reorder)
        raised = codes[:, start:stop].T + np.uint8(self._raise)  # modulo 256
        return raised & np.uint8((1 << self.bits) - 1)


def _is_set(part: TensorInfo) -> bool:
    """Whether a part holds a number other than 0."""
    return bool(part.source.read(part.offset, part.size_bytes).any())


def _unpacked(words: Array, reorder: bool) -> Bytes:
    """Unpack words (n, m) to codes (n, 8 * m)."""
    codes = np.empty((*words.shape, 8), np.uint8)
    for slot, place in enumerate(_REORDERED if reorder else _ORDERED):
        codes[..., place] = words >> np.uint32(4 * slot) & 15
    return codes.reshape(len(words), -1)
