"""What each quantised layout of Hugging Face folders stands for, as rows of a type of `blocks`.

The definitions are the packing functions of the tools that write them: AutoGPTQ and GPTQModel,
AutoAWQ (GEMM), compressed-tensors, transformers (FP8 and MXFP4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dure.errors import ModelFileError
from dure.formats.tensors import RowShape, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

_FLOATS = ("F32", "F16", "BF16")
_EIGHT = np.arange(0, 32, 4, dtype=np.uint32)  # where the eight codes of a word begin
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which output column each of AWQ's eight codes is of


class PackedMatrix(RowShape, ABC):
    """One matrix that several tensors of a file make up, read as rows of `dtype`, which has every
    value that the layout defines: F32 where no type of fewer bits does."""

    stored: ClassVar[str]  # what the file has, in a word
    whole: ClassVar[bool] = False  # its rows lie across the file: reading one reads all

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, *parts: TensorInfo | None
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.parts = tuple(part for part in parts if part is not None)
        self.size_bytes = sum(part.size_bytes for part in self.parts)

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> Bytes:
        """Fresh uint8 (stop - start, row_bytes), rows counted over all leading dimensions; their
        columns in the order of `columns`. ModelFileError for what is no number."""

    def read(self) -> Bytes:
        """All rows."""
        return self.read_rows(0, self.num_rows)

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        """The column of the matrix that each column of a row is, or None if they are in order."""
        return None


class _Grouped(PackedMatrix):
    """Codes of 4 bits, a scale and a zero point for each `group` columns of a row."""

    def __init__(
        self, name: str, shape: tuple[int, int], group: int, *parts: TensorInfo | None
    ) -> None:
        cols = shape[1]
        self.group = cols if group == -1 or group > cols else group
        if self.group < 1:
            raise ModelFileError(f"{name} has groups of {group} columns.")
        self.groups = -(-cols // self.group)
        fitting = [n for n in (128, 64, 32) if self.group % n == 0 and cols % n == 0]
        self.block = fitting[0] if fitting else 0
        super().__init__(name, shape, f"I4G{self.block}" if fitting else "F32", *parts)

    @abstractmethod
    def _codes(self, start: int, stop: int) -> Bytes:
        """Of those rows, two a byte, the first in the low half."""

    @abstractmethod
    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        """Of those rows, scales and zero points (n, groups)."""

    def read_rows(self, start: int, stop: int) -> Bytes:
        codes, cols = self._codes(start, stop), self.shape[1]
        if self.columns is not None:
            codes = _pairs(_nibbles(codes)[:, self.columns])
        scales, zeros = self._scales(start, stop)
        if not self.block:
            group = np.arange(cols) // self.group
            whole = _nibbles(codes)[:, :cols].astype(np.float32) - zeros[:, group]
            return (scales[:, group].astype(np.float32) * whole).view(np.uint8)
        count = cols // self.block
        group = np.arange(count) * self.block // self.group
        half = self.block // 2
        fields = [("low", "u1", half), ("scale", "<f4"), ("zero", "u1")]
        blocks = np.empty((stop - start, count), fields)
        blocks["low"] = codes.reshape(-1, count, half)
        blocks["scale"], blocks["zero"] = scales[:, group], zeros[:, group]
        return blocks.view(np.uint8).reshape(stop - start, -1)

    def _sorted(self, indices: TensorInfo | None) -> NDArray[np.int32] | None:
        """The columns group by group, of the group that each column is in; None: they are so."""
        if indices is None:
            return None
        of = _array(indices, "<i4")
        expected = np.arange(self.shape[1]) // self.group
        if np.array_equal(of, expected):
            return None
        order = np.argsort(of, kind="stable")
        if not np.array_equal(of[order], expected):
            raise ModelFileError(
                f"{indices.name} puts columns into groups that do not have {self.group} each."
            )
        return order.astype(np.int32)


class GptqMatrix(_Grouped):
    """GPTQ: weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row]), g the column's
    group: by g_idx, else col // group. `less` is how far stored zero points are below the true."""

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
        words, rows = _two(codes)
        super().__init__(name, (rows, 8 * words), group, codes, scales, zeros, indices)
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        self._less = less
        _check(codes, (words, rows), "I32")
        _check(scales, (self.groups, rows), *_FLOATS)
        _check(zeros, (self.groups, -(-rows // 8)), "I32")
        if indices is not None:
            _check(indices, (8 * words,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(_array(self._code, "<u4")[:, start:stop].T).view(np.uint8)

    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        zeros = _eight(_array(self._zero, "<u4"))[:, start:stop] + np.uint8(self._less)
        return _floats(self._scale)[:, start:stop].T, zeros.T


class AwqMatrix(_Grouped):
    """AWQ, GEMM: weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row])."""

    stored = "AWQ-4"
    whole = True

    def __init__(
        self, name: str, codes: TensorInfo, scales: TensorInfo, zeros: TensorInfo, group: int
    ) -> None:
        cols, words = _two(codes)
        super().__init__(name, (8 * words, cols), group, codes, scales, zeros)
        self._code, self._scale, self._zero = codes, scales, zeros
        _check(codes, (cols + cols % 2, words), "I32")
        _check(scales, (self.groups, 8 * words), *_FLOATS)
        _check(zeros, (self.groups, words), "I32")

    def _codes(self, start: int, stop: int) -> Bytes:
        codes = self._ordered(self._code)[:, start:stop]
        return np.ascontiguousarray((codes[0::2] | codes[1::2] << np.uint8(4)).T)

    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        zeros = self._ordered(self._zero)[:, start:stop]
        return _floats(self._scale)[:, start:stop].T, zeros.T

    def _ordered(self, tensor: TensorInfo) -> Bytes:
        words = _array(tensor, "<u4")
        codes = np.empty((*words.shape, 8), np.uint8)
        for slot, column in enumerate(_AWQ_COLUMNS):
            codes[..., column] = words >> _EIGHT[slot] & 15
        return codes.reshape(len(words), -1)


class PackedInt4(_Grouped):
    """compressed-tensors' pack-quantized: weight = scale * (code - zero), of unsigned codes, whose
    zero point is 8 if none is stored."""

    stored = "INT4"

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        shape: TensorInfo,
        zeros: TensorInfo | None,
        indices: TensorInfo | None,
        sizes: Collection[Any],
    ) -> None:
        """shape: of the matrix, two numbers in a tensor; sizes: of groups, as the config knows."""
        rows, cols = _shape_in(shape)
        _check(codes, (rows, -(-cols // 8)), "I32")
        groups = _two(scales)[1]
        group = next((g for g in sizes if _groups_of(g, cols) == groups), None)
        if group is None:
            raise ModelFileError(
                f"{scales.name} has {groups} scales for rows of {cols} columns, which are no "
                f"groups of {' or '.join(map(str, sizes)) or 'any size'}, as config.json says."
            )
        super().__init__(name, (rows, cols), group, codes, scales, shape, zeros, indices)
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        _check(scales, (rows, self.groups), *_FLOATS)
        if zeros is not None:
            _check(zeros, (-(-rows // 8), self.groups), "I32")
        if indices is not None:
            _check(indices, (cols,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        return _rows(self._code, start, stop)

    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        scales = _as_floats(_rows(self._scale, start, stop), self._scale.dtype)
        if self._zero is None:
            return scales, np.full(scales.shape, 8, np.uint8)
        zeros = _array(self._zero, "<u4")[:, None] >> _EIGHT[:, None] & 15  # packed along the rows
        return scales, zeros.reshape(-1, self.groups)[start:stop].astype(np.uint8)


class Fp8Matrix(PackedMatrix):
    """FP8: weight = value * scale, of a value of e4m3 and the scale of its block, row or tensor. A
    block at the end of a row or column may be cut."""

    stored = "FP8"

    def __init__(
        self, name: str, codes: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None
    ) -> None:
        if len(codes.shape) < 2:
            raise ModelFileError(f"{name} is FP8 of shape {codes.shape}; only matrices are.")
        *lead, rows, cols = codes.shape
        self._code, self._scale = codes, scales
        self._grid, self._each = _grid(scales, tuple(lead), (rows, cols), block)
        width = self._each[1] if self._grid[1] > 1 else cols
        fitting = [n for n in (128, 32) if width % n == 0 and cols % n == 0]
        self.unit = fitting[0] if fitting else 0
        super().__init__(name, codes.shape, f"F8G{self.unit}" if fitting else "F32", codes, scales)

    def read_rows(self, start: int, stop: int) -> Bytes:
        codes, cols = _rows(self._code, start, stop), self.shape[-1]
        if (codes & 127 == 127).any():
            raise ModelFileError(f"{self.name} holds what is no number (NaN).")
        rows = np.arange(start, stop)
        line = rows // self.shape[-2] * self._grid[0] + rows % self.shape[-2] // self._each[0]
        scales = _floats(self._scale).reshape(-1, self._grid[1])
        line %= len(scales)  # one scale for all of a stack
        if not self.unit:
            each = scales[line][:, np.arange(cols) // self._each[1]]
            values: Array = _E4M3[codes] * each
            return values.view(np.uint8)
        count = cols // self.unit
        fields = [("codes", "u1", self.unit), ("scale", "<f4")]
        blocks = np.empty((stop - start, count), fields)
        blocks["codes"] = codes.reshape(-1, count, self.unit)
        blocks["scale"] = scales[line][:, np.arange(count) * self.unit // self._each[1]]
        return blocks.view(np.uint8).reshape(stop - start, -1)


class Mxfp4Matrix(PackedMatrix):
    """MXFP4: 32 values of e2m1, two a byte and the low half first, times 2^(scale - 127)."""

    stored = "MXFP4"

    def __init__(self, name: str, codes: TensorInfo, scales: TensorInfo) -> None:
        """codes: (…, columns / 32, 16), or (…, columns / 2); scales: (…, columns / 32)."""
        split = codes.shape == (*scales.shape, 16)
        shape = (*scales.shape[:-1], 32 * scales.shape[-1]) if scales.shape else ()
        if len(shape) < 2 or not (split or codes.shape == (*shape[:-1], shape[-1] // 2)):
            raise ModelFileError(
                f"{codes.name} {codes.shape} and {scales.name} {scales.shape} are no MXFP4 matrix."
            )
        _check(codes, codes.shape, "U8")
        _check(scales, scales.shape, "U8", "F8_E8M0")
        super().__init__(name, shape, "MXFP4", codes, scales)
        self._code, self._scale = codes, scales

    def read_rows(self, start: int, stop: int) -> Bytes:
        count = self.shape[-1] // 32
        size = 16 * count
        codes = self._code.source.read(self._code.offset + start * size, (stop - start) * size)
        values = _nibbles(codes.reshape(-1, 16))
        blocks = np.empty((stop - start, count, 17), np.uint8)
        blocks[..., 0] = _rows(self._scale, start, stop)
        if (blocks[..., 0] == 255).any():
            raise ModelFileError(f"{self.name} holds a scale that is no number (NaN).")
        # In a block of GGUF's, a byte has a value of the first half and one of the second.
        blocks[..., 1:] = (values[:, :16] | values[:, 16:] << 4).reshape(stop - start, count, 16)
        return blocks.reshape(stop - start, -1)


def _grid(
    scales: TensorInfo,
    lead: tuple[int, ...],
    shape: tuple[int, int],
    block: tuple[int, int] | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many scales lie over and beside each other in a matrix, and what each is of."""
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


def _groups_of(size: object, cols: int) -> int | None:
    """How many groups of that size a row has; None if it is none."""
    if type(size) is not int or size == 0 or size < -1:
        return None
    return 1 if size == -1 else -(-cols // size)


def _shape_in(tensor: TensorInfo) -> tuple[int, int]:
    """The two sizes that a tensor holds."""
    _check(tensor, (2,), "I64", "I32")
    rows, cols = _array(tensor, "<i8" if tensor.dtype == "I64" else "<i4").tolist()
    if rows < 1 or cols < 1:
        raise ModelFileError(f"{tensor.name} says {rows} rows and {cols} columns.")
    return rows, cols


def _two(tensor: TensorInfo) -> tuple[int, int]:
    """Its shape, which must be that of a matrix."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise ModelFileError(f"{shown(tensor.name)} has shape {tensor.shape}; it must be a matrix.")
    return tensor.shape[0], tensor.shape[1]


def _check(tensor: TensorInfo, shape: tuple[int, ...], *dtypes: str) -> None:
    """ModelFileError if a part does not have the shape that the others and the config ask for."""
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise ModelFileError(
            f"{shown(tensor.name)} is {tensor.dtype} {tensor.shape}, but the tensors beside it and "
            f"quantization_config make it {' or '.join(dtypes)} {shape}."
        )


def _rows(tensor: TensorInfo, start: int, stop: int) -> Bytes:
    """The bytes of those rows, (stop - start, row bytes)."""
    size = tensor.row_bytes
    raw = tensor.source.read(tensor.offset + start * size, (stop - start) * size)
    return raw.reshape(stop - start, size)


def _array(tensor: TensorInfo, kind: str) -> Array:
    """The whole tensor as numbers."""
    return tensor.source.read(tensor.offset, tensor.size_bytes).view(kind).reshape(tensor.shape)


def _floats(tensor: TensorInfo) -> NDArray[np.float32]:
    """The whole tensor as float32."""
    raw = tensor.source.read(tensor.offset, tensor.size_bytes)
    return _as_floats(raw, tensor.dtype).reshape(tensor.shape)


def _as_floats(raw: Bytes, dtype: str) -> NDArray[np.float32]:
    """Floats, or powers of two by their exponent (U8, F8_E8M0), as float32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("U8", "F8_E8M0"):
        powers = np.ldexp(np.float32(1), raw.astype(np.int32) - 127)
        return np.where(raw == 255, np.float32(np.nan), powers)
    if dtype not in _FLOATS:
        raise ModelFileError(f"a quantised matrix has scales of the type {dtype}.")
    return raw.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _eight(words: Array) -> Bytes:
    """The eight codes of each word, the lowest first, along the last dimension."""
    codes = (words[..., None] >> _EIGHT & 15).astype(np.uint8)
    return codes.reshape(*words.shape[:-1], -1)


def _nibbles(pairs: Bytes) -> Bytes:
    """The two codes of each byte, the low half first, along the last dimension."""
    codes = np.empty((*pairs.shape, 2), np.uint8)
    codes[..., 0], codes[..., 1] = pairs & 15, pairs >> 4
    return codes.reshape(*pairs.shape[:-1], -1)


def _pairs(codes: Bytes) -> Bytes:
    """Codes as `_nibbles` takes them apart; one that is left over is paired with 0."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)


def _e4m3() -> NDArray[np.float32]:
    """What the 256 codes of e4m3 stand for: 4 bits of exponent, bias 7, 3 of fraction."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    sizes = np.ldexp(fraction + 8.0 * (exponent > 0), np.maximum(exponent, 1) - 10)
    values: NDArray[np.float32] = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return values


_E4M3 = _e4m3()
