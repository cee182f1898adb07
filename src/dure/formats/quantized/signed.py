"""Signed codes, a byte each, under a scale and perhaps a zero point: int8 of most tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    QuantizedMatrix,
    check_finite,
    check_part,
    matrix_shape,
    read_array,
    read_floats,
    read_part_rows,
)
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_WHOLE = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class SignedMatrix(QuantizedMatrix):
    """weight = scale * (code - zero), of a signed code; zero is 0 where none is stored."""

    scale_types: ClassVar[tuple[str, ...]] = FLOAT_TYPES

    def __init__(
        self,
        name: str,
        stored: str,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo | None = None,
        *,
        bits: int = 8,
        divisor: float = 1.0,
        inputs: TensorInfo | None = None,
    ) -> None:
        """codes: I8 (rows, cols), of which `bits` (4 or 8) are used, as two's complement.

        scales, zeros: one of the matrix, of each row, or of groups in rows. Scales are divided by
        `divisor`. inputs: what each column is multiplied by, (cols,): memory then has float32.
        Raises ModelFileError for parts that do not fit each other.
        """
        rows, cols = self.sizes(codes)
        if inputs is not None:
            check_part(inputs, (cols,), *FLOAT_TYPES)
        self.groups = _groups_of(scales, rows, cols)
        self.group = cols // self.groups
        check_part(scales, scales.shape, *self.scale_types)
        if zeros is not None:
            check_part(zeros, scales.shape, *_WHOLE, *FLOAT_TYPES)
            zeros = zeros if _read_numbers(zeros).any() else None
        sizes = (128, 32) if bits == 8 else (128, 64, 32)
        fitting = [n for n in sizes if self.group % n == 0 and cols % n == 0]
        self.block = fitting[0] if fitting and inputs is None else 0
        kind = "I4" if bits == 4 else "I8" if zeros is None else "U8"
        dtype = f"{kind}G{self.block}" if self.block else "F32"
        super().__init__(name, (rows, cols), dtype, codes, scales, zeros, inputs)
        self.stored = stored
        self._bits, self._divisor = bits, np.float32(divisor)
        self._code, self._scale, self._zero, self._input = codes, scales, zeros, inputs

    def sizes(self, codes: TensorInfo) -> tuple[int, int]:
        """Return the rows and columns of the matrix whose codes these are."""
        check_part(codes, codes.shape, "I8")
        return matrix_shape(codes)

    def codes_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Read the codes of those rows, (stop - start, cols)."""
        return read_part_rows(self._code, start, stop).view(np.int8)

    def scale_values(self) -> Floats:
        """Read the scales of the whole matrix."""
        return read_floats(self._scale) / self._divisor

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of I8G, U8G or I4G, or as F32; see `QuantizedMatrix.read_rows`."""
        codes = self.codes_of(start, stop)
        scales = self._of_rows(self.scale_values(), start, stop)
        check_finite(scales, self._scale.name)
        zeros = self._zeros(start, stop)
        half = 1 << self._bits - 1
        if codes.min(initial=0) < -half or codes.max(initial=0) >= half:
            raise ModelFileError(f"{self.name} holds codes of more than {self._bits} bits.")
        if not self.block:
            of = np.arange(self.shape[1]) // self.group
            whole = codes.astype(np.float32) - zeros[:, of].astype(np.float32)
            values: Floats = scales[:, of] * whole
            if self._input is not None:
                inputs = read_floats(self._input)
                check_finite(inputs, self._input.name)
                values = values * inputs
            return values.view(np.uint8)
        return self._blocks(codes, scales, zeros, half)

    def _blocks(self, codes: Array, scales: Floats, zeros: Array, half: int) -> Bytes:
        """Lay codes, scales and zeros out as blocks of `dtype`."""
        count = self.shape[1] // self.block
        of = np.arange(count) * self.block // self.group
        unsigned = (codes.astype(np.int16) + half).astype(np.uint8)
        fields: list[Any] = [("codes", "u1", self.block), ("scale", "<f4"), ("zero", "u1")]
        if self.dtype.startswith("I4"):
            fields[0] = ("codes", "u1", self.block // 2)
            unsigned = unsigned[:, 0::2] | unsigned[:, 1::2] << np.uint8(4)
        elif self.dtype.startswith("I8"):
            fields.pop()
            unsigned = codes.view(np.uint8)
        blocks = np.empty((len(codes), count), fields)
        blocks["codes"] = unsigned.reshape(len(codes), count, -1)
        blocks["scale"] = scales[:, of]
        if len(fields) == 3:
            blocks["zero"] = (zeros + half)[:, of]
        return blocks.view(np.uint8).reshape(len(codes), -1)

    def _zeros(self, start: int, stop: int) -> Array:
        """Read the zero points of those rows, as whole numbers of the codes' range."""
        if self._zero is None:
            return np.zeros((stop - start, self.groups), np.int16)
        values = self._of_rows(_read_numbers(self._zero), start, stop)
        half = 1 << self._bits - 1
        whole = np.asarray(values, np.float64)
        if (whole != np.round(whole)).any() or (np.abs(whole + 0.5) > half).any():
            raise ModelFileError(
                f"{shown(self._zero.name)} holds zero points outside {-half} to {half - 1}."
            )
        return whole.astype(np.int16)

    def _of_rows(self, values: Array, start: int, stop: int) -> Array:
        """Cut out what belongs to those rows, (stop - start, groups)."""
        if values.size == 1:
            return np.broadcast_to(values.reshape(1, 1), (stop - start, 1))
        return values.reshape(self.shape[0], -1)[start:stop]


class RowPairs(SignedMatrix):
    """Codes of 4 bits, those of two rows in a byte: the even row's in the low half."""

    def sizes(self, codes: TensorInfo) -> tuple[int, int]:
        """Return the rows and columns of the matrix whose codes these are."""
        check_part(codes, codes.shape, "U8", "I8")
        pairs, cols = matrix_shape(codes)
        return 2 * pairs, cols

    def codes_of(self, start: int, stop: int) -> NDArray[np.int8]:
        """Read the codes of those rows, (stop - start, cols)."""
        first, cols = start // 2, self.shape[1]
        raw = read_part_rows(self._code, first, -(-stop // 2))
        # Shifted to the top of the byte and back, so that the sign is spread.
        both = np.stack([raw << 4, raw & 240], axis=1).view(np.int8) >> 4
        return both.reshape(-1, cols)[start - 2 * first :][: stop - start]


def _groups_of(scales: TensorInfo, rows: int, cols: int) -> int:
    """Return the groups of a row that have a scale each; ModelFileError if there are no such."""
    if scales.shape in ((), (1,), (1, 1), (rows,)):
        return 1
    if len(scales.shape) == 2 and scales.shape[0] == rows:
        groups = scales.shape[1]
        if groups and cols % groups == 0:
            return groups
    raise ModelFileError(
        f"{shown(scales.name)} has shape {scales.shape}, which are no scales of a matrix "
        f"{(rows, cols)}."
    )


def _read_numbers(part: TensorInfo) -> Array:
    """Read a whole part of floats or whole numbers."""
    kind = _WHOLE.get(part.dtype)
    return read_floats(part) if kind is None else read_array(part, kind)
