"""A named, typed, shaped byte range of a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS, SUPPORTED
from dure.formats.source import SourceFile

_COMPARED_BYTES = 1 << 20  # read of each of two tensors at once
_IN_FILES = [name for name in SUPPORTED if BLOCKS[name].ggml_id is not None]


class RowShape:
    """The rows of what has a shape, (…, rows, cols), and a type of `blocks`."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: str  # a key of BLOCKS

    @property
    def num_rows(self) -> int:
        """The product of all dimensions but the last; 1 for vectors and scalars."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, which is the last dimension."""
        block = BLOCKS[self.dtype]
        cols = self.shape[-1] if self.shape else 1
        return cols // block.block_size * block.block_bytes


@dataclass(frozen=True, slots=True)
class TensorInfo(RowShape):
    """Where a tensor lies in a file.

    `shape` is row-major as in numpy: (rows, cols), (experts, rows, cols). The reader that made it
    has checked that the range is inside the file and fits the shape.
    """

    name: str
    dtype: str  # a key of BLOCKS
    shape: tuple[int, ...]
    source: SourceFile
    offset: int
    size_bytes: int

    @property
    def stored(self) -> str:
        """The name of what the file has, for people: its type."""
        return self.dtype

    def read_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read rows, counted over all leading dimensions, as fresh uint8 (n, row_bytes).

        Raises UnsupportedModelError for a type that is not supported, ModelFileError for rows that
        there are not.
        """
        if not BLOCKS[self.dtype].supported:
            raise UnsupportedModelError(
                f"tensor {shown(self.name)} of {self.source.path} is stored as {self.dtype}, "
                "which dure cannot read.",
                hint=f"use a file whose tensors are of these types: {', '.join(_IN_FILES)}.",
            )
        if not 0 <= start <= stop <= self.num_rows:
            raise ModelFileError(
                f"tensor {shown(self.name)} has {self.num_rows:,} rows, but rows {start:,} to "
                f"{stop:,} were asked for."
            )
        row_bytes = self.row_bytes
        raw = self.source.read(self.offset + start * row_bytes, (stop - start) * row_bytes)
        return raw.reshape(stop - start, row_bytes)

    def read(self) -> npt.NDArray[np.uint8]:
        """Read the whole tensor, uint8 (num_rows, row_bytes); errors as of `read_rows`."""
        return self.read_rows(0, self.num_rows)


def same_content(one: object, other: object) -> bool:
    """Check whether both are tensors of files, of one type and shape, that hold the same bytes."""
    if not isinstance(one, TensorInfo) or not isinstance(other, TensorInfo):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    for start in range(0, one.size_bytes, _COMPARED_BYTES):
        size = min(_COMPARED_BYTES, one.size_bytes - start)
        parts = [each.source.read(each.offset + start, size) for each in (one, other)]
        if not np.array_equal(parts[0], parts[1]):
            return False
    return True


def shown(name: str, limit: int = 80) -> str:
    """Return the name in quotes, escaped and cut to `limit` characters, for error messages."""
    return repr(name if len(name) <= limit else name[: limit - 1] + "…")
