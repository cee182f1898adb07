"""Integer codes that lie in bytes: what most tools call int8, and codes of 2 to 7 bits so kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_finite,
    check_part,
    matrix_shape,
    read_array,
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

_WHOLE = {"I8": "i1", "U8": "u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class ByteMatrix(GroupedMatrix):
    """weight = scale * (code - zero), of a code in a byte; zero is 0 where none is stored.

    Codes in I8 are signed (two's complement), in U8 unsigned, and zero points are what codes are.
    """

    scale_types: ClassVar[tuple[str, ...]] = FLOAT_TYPES
    unsigned_types: ClassVar[tuple[str, ...]] = ("U8",)

    def __init__(
        self,
        name: str,
        stored: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo | None = None,
        *,
        bits: int = 8,
        sizes: Iterable[object] | None = None,
        divisor: float = 1.0,
        inputs: TensorInfo | None = None,
    ) -> None:
        """codes: (rows, cols), of which `bits` are used, 2 to 8.

        scales, zeros: one of the matrix, of each row, or of groups in rows, (rows, groups). sizes:
        of groups, as the config knows them; None: a row has groups of one size. Scales are divided
        by `divisor`. inputs: what each column is multiplied by, (cols,): memory then has float32.
        Raises ModelFileError for parts that do not fit each other.
        """
        check_part(codes, codes.shape, "I8", "U8")
        rows, cols = self.sizes(codes)
        if inputs is not None:
            check_part(inputs, (cols,), *FLOAT_TYPES)
        group = _group_of(scales, rows, cols, sizes, name)
        check_part(scales, scales.shape, *self.scale_types)
        if zeros is not None:
            alone = math.prod(zeros.shape) == math.prod(scales.shape) == 1
            check_part(zeros, zeros.shape if alone else scales.shape, *_WHOLE, *FLOAT_TYPES)
            zeros = zeros if _read_numbers(zeros).any() else None
        self._code, self._scale, self._zero, self._input = codes, scales, zeros, inputs
        self._divisor = np.float32(divisor)
        # What is added to a code so that it is unsigned, as it is in memory.
        self._raise = 0 if codes.dtype in self.unsigned_types else 1 << bits - 1
        constant = self._raise if zeros is None and self._raise else None
        parts = (codes, scales, zeros, inputs)
        super().__init__(name, (rows, cols), group, bits, *parts, zero=constant)
        if inputs is not None:
            self.block, self.dtype = 0, "F32"
        self.stored = stored

    def sizes(self, codes: TensorInfo) -> tuple[int, int]:
        """Return the rows and columns of the matrix whose codes these are."""
        return matrix_shape(codes)

    def codes_of(self, start: int, stop: int) -> Bytes:
        """Read the codes of those rows, a byte each, (stop - start, cols)."""
        return read_part_rows(self._code, start, stop)

    def scale_values(self) -> Floats:
        """Read the scales of the whole matrix."""
        return read_floats(self._scale) / self._divisor

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of I8G, U8G or I4G, or as F32; see `QuantizedMatrix.read_rows`."""
        raw = super().read_rows(start, stop)
        if self._input is None:
            return raw
        inputs = read_floats(self._input)
        check_finite(inputs, self._input.name)
        with np.errstate(over="ignore"):  # as float32 multiplies: infinite beyond its range
            values: Floats = raw.view(np.float32) * inputs
        return values.view(np.uint8)

    def _codes(self, start: int, stop: int) -> Bytes:
        raised = self.codes_of(start, stop) + np.uint8(self._raise)  # modulo 256
        if self.bits < 8 and (raised >> np.uint8(self.bits)).any():
            raise ModelFileError(
                f"{shown(self.name)} has a code that is not of the {self.bits} bits that "
                "config.json says."
            )
        return raised

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        scales = self._of_rows(self.scale_values(), start, stop)
        if self.zero is not None:
            return scales, None
        if self._zero is None:
            return scales, np.zeros(scales.shape, np.uint8)
        numbers = self._of_rows(_read_numbers(self._zero), start, stop)
        raised = numbers.astype(np.float64) + self._raise
        low, high = raised.min(initial=0), raised.max(initial=0)
        if low < 0 or high >= 1 << self.bits or (raised != np.round(raised)).any():
            raise ModelFileError(
                f"{shown(self._zero.name)} has a zero point that is not of the {self.bits} bits "
                "that config.json says."
            )
        return scales, np.broadcast_to(raised.astype(np.uint8), scales.shape)

    def _of_rows(self, values: Array, start: int, stop: int) -> Array:
        """Cut out what belongs to those rows, (stop - start, groups)."""
        if values.size == 1:
            return np.broadcast_to(values.reshape(1, 1), (stop - start, 1))
        return values.reshape(self.shape[0], -1)[start:stop]


class RowPairs(ByteMatrix):
    """Signed codes of 4 bits, those of two rows in a byte: the even row's in the low half."""

    unsigned_types = ()

    def sizes(self, codes: TensorInfo) -> tuple[int, int]:
        """Return the rows and columns of the matrix whose codes these are."""
        pairs, cols = matrix_shape(codes)
        return 2 * pairs, cols

    def codes_of(self, start: int, stop: int) -> Bytes:
        """Read the codes of those rows, a byte each, (stop - start, cols)."""
        first, cols = start // 2, self.shape[1]
        raw = read_part_rows(self._code, first, -(-stop // 2))
        # Shifted to the top of the byte and back, so that the sign is spread.
        both = np.stack([raw << 4, raw & 240], axis=1).view(np.int8) >> 4
        return both.view(np.uint8).reshape(-1, cols)[start - 2 * first :][: stop - start]


def _group_of(
    scales: TensorInfo, rows: int, cols: int, sizes: Iterable[object] | None, name: str
) -> int:
    """Return the columns that share a scale, -1 for all of a row; ModelFileError if none do."""
    if scales.shape in ((), (1,), (1, 1), (rows,)):
        return -1
    if len(scales.shape) == 2 and scales.shape[0] == rows and scales.shape[1]:
        groups = scales.shape[1]
        if sizes is not None:
            return group_size(scales, groups, cols, (-1, *sizes), shown(name))
        if cols % groups == 0:
            return cols // groups
    raise ModelFileError(
        f"{shown(scales.name)} has shape {scales.shape}, which are no scales of a matrix "
        f"{(rows, cols)}."
    )


def _read_numbers(part: TensorInfo) -> Array:
    """Read a whole part of floats or whole numbers."""
    kind = _WHOLE.get(part.dtype)
    return read_floats(part) if kind is None else read_array(part, kind)
