"""Integer codes under a scale and a zero point for each group of columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    QuantizedMatrix,
    check_finite,
    join_nibbles,
    read_array,
)
from dure.formats.tensors import RowShape, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


class GroupedMatrix(QuantizedMatrix):
    """weight = scale * (code - zero), of the scale and zero point of the code's group.

    A group is `group` consecutive columns of a row, or of the row as `columns` orders it. Codes are
    unsigned and of 1 to 8 bits. Rows are blocks of I4G (up to 4 bits), of I8G (more bits, and one
    zero point for all), or of U8G; F32 if no block divides group and row.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        group: int,
        bits: int,
        *parts: TensorInfo | None,
        zero: int | None = None,
    ) -> None:
        """group: columns in a group; -1 for all of a row. zero: the zero point of all codes."""
        cols = shape[1]
        self.group = cols if group == -1 or group > cols else group
        if self.group < 1:
            raise ModelFileError(f"{name} has groups of {group} columns.")
        self.groups = -(-cols // self.group)
        self.bits = bits
        self.zero = zero
        kind = "I4G" if bits <= 4 else "U8G" if zero is None else "I8G"
        sizes = (128, 64, 32) if bits <= 4 else (128, 32)
        fitting = [n for n in sizes if self.group % n == 0 and cols % n == 0]
        self.block = fitting[0] if fitting else 0
        super().__init__(name, shape, f"{kind}{self.block}" if fitting else "F32", *parts)

    @abstractmethod
    def _codes(self, start: int, stop: int) -> Bytes:
        """Read the codes of those rows, (n, columns), one a byte, in the file's column order."""

    @abstractmethod
    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        """Read the scales and zero points of those rows, (n, groups); None if all are `zero`."""

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of `dtype`; see `QuantizedMatrix.read_rows`."""
        codes = self._codes(start, stop)
        if self.columns is not None:
            codes = codes[:, self.columns]
        scales, zeros = self._scales(start, stop)
        check_finite(scales, self.name)
        cols = self.shape[1]
        if not self.block:
            group = np.arange(cols) // self.group
            lows: Any = self.zero if zeros is None else zeros[:, group].astype(np.float32)
            values: Floats = scales[:, group] * (codes.astype(np.float32) - lows)
            return np.ascontiguousarray(values).view(np.uint8)
        count = cols // self.block
        group = np.arange(count) * self.block // self.group
        signed, four = self.dtype.startswith("I8G"), self.dtype.startswith("I4G")
        width = self.block // 2 if four else self.block
        fields: list[Any] = [("codes", "u1", width), ("scale", "<f4")]
        blocks = np.empty((stop - start, count), fields if signed else [*fields, ("zero", "u1")])
        if four:
            codes = join_nibbles(codes)
        elif signed:
            codes = codes - np.uint8(self.zero or 0)  # modulo 256: as int8
        blocks["codes"] = codes.reshape(-1, count, width)
        blocks["scale"] = scales[:, group]
        if not signed:
            blocks["zero"] = self.zero if zeros is None else zeros[:, group]
        return blocks.view(np.uint8).reshape(stop - start, -1)

    def _sorted(self, indices: TensorInfo | None) -> NDArray[np.int32] | None:
        """Return the columns sorted by their group; None if they are sorted already."""
        if indices is None:
            return None
        of = read_array(indices, "<i4")
        expected = np.arange(self.shape[1]) // self.group
        if np.array_equal(of, expected):
            return None
        order = np.argsort(of, kind="stable")
        if not np.array_equal(of[order], expected):
            raise ModelFileError(
                f"{indices.name} puts columns into groups that do not have {self.group} each."
            )
        return order.astype(np.int32)


def with_one_type(found: Sequence[RowShape]) -> list[GroupedMatrix] | None:
    """Return copies of matrices whose types differ, in one type that holds all of them exactly.

    So a mixture may have experts of several bits or group sizes. Returns None if one of them is not
    a GroupedMatrix, or no block fits all.
    """
    copies = [copy(each) for each in found if isinstance(each, GroupedMatrix)]
    fits = [n for n in (128, 32) if all(c.group % n == 0 == c.shape[1] % n for c in copies)]
    if len(copies) < len(found) or not fits:
        return None
    for each in copies:
        each.block, each.dtype = fits[0], f"U8G{fits[0]}"
    return copies


def group_size(
    scales: TensorInfo, groups: int, cols: int, sizes: Iterable[object], name: str
) -> int:
    """Return the first of `sizes` that makes `groups` groups of rows of `cols` columns.

    Raises ModelFileError, which names the scales, if none does.
    """
    known = [size for size in sizes if type(size) is int and (size == -1 or size > 0)]
    for size in known:
        if (1 if size == -1 else -(-cols // size)) == groups:
            return size
    raise ModelFileError(
        f"{shown(scales.name)} has {groups} scales for rows of {cols} columns of {name}, which are "
        f"no groups of {' or '.join(map(str, known)) or 'any size'}, as config.json says."
    )


def unpack_stream(words: Array, bits: int, count: int) -> Bytes:
    """Unpack a dense little-endian bit stream: code i has the bits from i * bits on.

    words: uint32 (…, n). Returns the first `count` codes, uint8 (…, count).
    """
    if 32 % bits == 0:
        return unpack_words(words, bits, count)
    first = np.arange(count) * bits
    words = np.concatenate([words, np.zeros((*words.shape[:-1], 1), np.uint32)], axis=-1)
    low = words[..., first // 32] >> (first % 32).astype(np.uint32)
    # Shifted twice, as a shift by 32 is not defined.
    high = words[..., first // 32 + 1] << (31 - first % 32).astype(np.uint32) << np.uint32(1)
    return ((low | high) & np.uint32((1 << bits) - 1)).astype(np.uint8)


def unpack_words(words: Array, bits: int, count: int) -> Bytes:
    """Unpack words of 32 // bits codes each, the lowest first; bits that are left over are unused.

    words: uint32 (…, n). Returns the first `count` codes, uint8 (…, count).
    """
    each = 32 // bits
    if each * bits == 32 and bits == 8:
        return (
            np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape[:-1], -1)[..., :count]
        )
    codes = np.empty((*words.shape, each), np.uint8)
    for place in range(each):
        codes[..., place] = words >> np.uint32(bits * place) & np.uint32((1 << bits) - 1)
    return codes.reshape(*words.shape[:-1], -1)[..., :count]
