"""Integer codes under a scale and a zero point for each group of columns."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    QuantizedMatrix,
    join_nibbles,
    read_array,
    split_nibbles,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

_EIGHT = np.arange(0, 32, 4, dtype=np.uint32)  # where the eight codes of a word begin


class GroupedMatrix(QuantizedMatrix):
    """Codes of 4 bits: weight = scale * (code - zero), of the scale and zero of its group.

    A group is `group` consecutive columns of a row, or of the row as `columns` orders it.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], group: int, *parts: TensorInfo | None
    ) -> None:
        """group: columns in a group; -1 for all of a row."""
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
        """The codes of those rows, two a byte, the first in the low half."""

    @abstractmethod
    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        """The scales and zero points of those rows, (n, groups)."""

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of I4G, or as F32; see `QuantizedMatrix.read_rows`."""
        codes, cols = self._codes(start, stop), self.shape[1]
        if self.columns is not None:
            codes = join_nibbles(split_nibbles(codes)[:, self.columns])
        scales, zeros = self._scales(start, stop)
        if not self.block:
            group = np.arange(cols) // self.group
            whole = split_nibbles(codes)[:, :cols].astype(np.float32) - zeros[:, group]
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
        """The columns group by group, given the group of each; None if they lie so already."""
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


def split_words(words: Array) -> Bytes:
    """Split words of 32 bits into eight codes each, the lowest first, along the last dimension."""
    codes = (words[..., None] >> _EIGHT & 15).astype(np.uint8)
    return codes.reshape(*words.shape[:-1], -1)
