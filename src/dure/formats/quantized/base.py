"""A matrix that a quantised folder stores in several tensors, and how such tensors are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    Floats = NDArray[np.float32]

FLOAT_TYPES = ("F32", "F16", "BF16")


class QuantizedMatrix(RowShape, ABC):
    """One matrix that several tensors of a folder make up.

    Its rows are read as blocks of `dtype`, a type of `blocks` that holds every value of the layout
    exactly: F32 where no smaller type does.
    """

    stored: str = ""  # the name of the layout, for people
    whole: ClassVar[bool] = False  # rows lie across the file, so reading one reads all

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: str, *parts: TensorInfo | None
    ) -> None:
        """shape: (…, rows, columns) of the matrix. parts: the tensors that hold it."""
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.parts = tuple(part for part in parts if part is not None)
        self.size_bytes = sum(part.size_bytes for part in self.parts)

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks, counted over all leading dimensions, columns as `columns` says.

        Returns fresh uint8 (stop - start, row_bytes). Raises ModelFileError for a NaN or infinity.
        """

    def read(self) -> Bytes:
        """Read all rows."""
        return self.read_rows(0, self.num_rows)

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        """The matrix's column at each place of a row that is read; None if they are in order."""
        return None


def is_quantized(parameter: RowShape) -> bool:
    """Check whether a parameter is quantised in its file, and not only in another order there."""
    return isinstance(parameter, QuantizedMatrix) and parameter.stored not in FLOAT_TYPES


def check_finite(scales: Floats, name: str) -> None:
    """Raise ModelFileError, which names the matrix, for a scale that is NaN or infinite."""
    if not np.isfinite(scales).all():
        raise ModelFileError(
            f"{shown(name)} has a scale that is NaN or infinite.",
            hint="the file is damaged, or its quantisation failed: download it again.",
        )


def matrix_shape(tensor: TensorInfo) -> tuple[int, int]:
    """Return the shape (rows, columns) of a tensor.

    Raises ModelFileError if it is not a matrix, or is empty.
    """
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise ModelFileError(f"{shown(tensor.name)} has shape {tensor.shape}; it must be a matrix.")
    return tensor.shape[0], tensor.shape[1]


def check_part(tensor: TensorInfo, shape: tuple[int, ...], *dtypes: str) -> None:
    """Raise ModelFileError unless a part has this shape and one of these types."""
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise ModelFileError(
            f"{shown(tensor.name)} is {tensor.dtype} {tensor.shape}, but the tensors beside it and "
            f"quantization_config make it {' or '.join(dtypes)} {shape}."
        )


def check_not_empty(tensor: TensorInfo) -> None:
    """Raise ModelFileError for a tensor with a dimension of 0."""
    if 0 in tensor.shape:
        raise ModelFileError(f"{shown(tensor.name)} has shape {tensor.shape}: it is empty.")


def read_part_rows(tensor: TensorInfo, start: int, stop: int) -> Bytes:
    """Read rows of a part as bytes, (stop - start, row bytes)."""
    size = tensor.row_bytes
    raw = tensor.source.read(tensor.offset + start * size, (stop - start) * size)
    return raw.reshape(stop - start, size)


def read_array(tensor: TensorInfo, kind: str) -> Array:
    """Read a whole part as an array of numpy's type `kind`."""
    return tensor.source.read(tensor.offset, tensor.size_bytes).view(kind).reshape(tensor.shape)


def read_floats(tensor: TensorInfo) -> Floats:
    """Read a whole part as float32."""
    raw = tensor.source.read(tensor.offset, tensor.size_bytes)
    return as_floats(raw, tensor.dtype).reshape(tensor.shape)


def as_floats(raw: Bytes, dtype: str) -> Floats:
    """Convert bytes of F32, F16, BF16, or of powers of two (U8, F8_E8M0), to float32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("U8", "F8_E8M0"):
        powers = np.ldexp(np.float32(1), np.minimum(raw, 254).astype(np.int32) - 127)
        return np.where(raw == 255, np.float32(np.nan), powers)
    if dtype not in FLOAT_TYPES:
        raise ModelFileError(f"a quantised matrix has scales of the type {dtype}.")
    return raw.view("<f2" if dtype == "F16" else "<f4").astype(np.float32)


def split_nibbles(pairs: Bytes) -> Bytes:
    """Split bytes into codes of 4 bits, the low half first, along the last dimension."""
    codes = np.empty((*pairs.shape, 2), np.uint8)
    codes[..., 0], codes[..., 1] = pairs & 15, pairs >> 4
    return codes.reshape(*pairs.shape[:-1], -1)


def join_nibbles(codes: Bytes) -> Bytes:
    """Join codes of 4 bits (rows, n) to bytes, as `split_nibbles` splits them; pad with 0."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    return codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
