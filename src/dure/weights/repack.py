"""Converts tensors whose type in memory differs from the file's: reads, converts, packs piecewise.

Only a few rows exist as floats at any time, so the peak memory of a load is its result plus at most
one matrix, for layouts whose rows lie across the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.errors import ModelFileError
from dure.formats.blocks import has_blocks_of
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.tensors import RowShape
from dure.kernels.dequantize import dequantize
from dure.weights.quantize import quantize_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized_checkpoint import Parameter

    Bytes = NDArray[np.uint8]

PIECE_WEIGHTS = 1 << 21
"""How many weights are converted at a time, in whole panels of 16 rows."""

_PANEL = 16


@dataclass(frozen=True)
class Conversion:
    """Rows of a parameter to convert to `dtype`, and the function that stores the result."""

    source: Parameter | Dequantised
    first_row: int
    rows: int
    dtype: str
    put: Callable[[int, Bytes], None]  # (first row, source blocks)
    order: NDArray[np.int32] | None = None  # a permutation of the rows, if any


@dataclass(frozen=True)
class _Piece:
    """Some rows of a conversion: blocks of its type, or floats that become such blocks."""

    conversion: Conversion
    first: int
    blocks: Bytes | None
    floats: NDArray[np.float32] | None
    file_bytes: int


class Dequantised(RowShape):
    """A matrix as rows of float32, with its columns in order.

    For a layout whose rows lie across the file, the data read stays in memory until the last row is
    read.
    """

    dtype = "F32"

    def __init__(self, source: Parameter) -> None:
        self.name, self.shape, self.stored = source.name, source.shape, source.stored
        self.size_bytes = source.size_bytes
        self._source = source
        self._raw: Bytes | None = None

    @property
    def source(self) -> Parameter:
        """What is dequantised."""
        return self._source

    def fresh(self) -> Dequantised:
        """Return the same matrix for another thread, with nothing read yet."""
        return Dequantised(self._source)

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows, counted over all leading dimensions, as uint8 (stop - start, row_bytes)."""
        if not isinstance(self._source, QuantizedMatrix) or not self._source.whole:
            raw = self._source.read_rows(start, stop)
        else:
            whole = self._source.read() if self._raw is None else self._raw
            self._raw = whole if stop < self.num_rows else None
            raw = whole[start:stop]
        return _floats(self._source, raw).view(np.uint8)


def repack_all(
    conversions: Iterable[Conversion], *, threads: int, advance: Callable[[int], None]
) -> None:
    """Convert and store all rows.

    advance is called with the number of file bytes after each piece. The next piece is read while
    one is packed; Python can be interrupted in between. Raises ModelFileError, which names the
    tensor, for weights that cannot be quantised.
    """
    pieces = (piece for conversion in conversions for piece in _pieces(conversion))
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = reader.submit(next, pieces, None)
            _store(piece, threads)
            advance(piece.file_bytes)


def repack_now(conversion: Conversion, *, threads: int) -> None:
    """Convert and store the rows of one conversion, on this thread but for `threads` of kernels.

    Raises as `repack_all` does.
    """
    for piece in _pieces(conversion):
        _store(piece, threads)


def _store(piece: _Piece, threads: int) -> None:
    blocks = piece.blocks
    if piece.floats is not None:
        blocks = _quantized(piece.floats, piece.conversion, threads)
    if blocks is not None:
        piece.conversion.put(piece.first, blocks)


def _quantized(floats: NDArray[np.float32], conversion: Conversion, threads: int) -> Bytes:
    """Quantise rows of floats to the conversion's type; errors name the tensor."""
    try:
        return quantize_rows(floats, conversion.dtype, threads=threads)
    except ModelFileError as error:
        raise ModelFileError(f"{conversion.source.name}: {error.message}") from None


def _pieces(conversion: Conversion) -> Iterator[_Piece]:
    source, rows = conversion.source, conversion.rows
    step = max(1, PIECE_WEIGHTS // (_PANEL * source.shape[-1])) * _PANEL
    bytes_of_row = source.size_bytes / source.num_rows
    whole: Bytes | None = None
    if conversion.order is not None or (isinstance(source, QuantizedMatrix) and source.whole):
        whole = source.read_rows(conversion.first_row, conversion.first_row + rows)
        if conversion.order is not None:
            whole = whole[conversion.order]
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        if whole is not None:
            raw = whole[first:stop]
        else:
            raw = source.read_rows(conversion.first_row + first, conversion.first_row + stop)
        size = round(stop * bytes_of_row) - round(first * bytes_of_row)
        if has_blocks_of(conversion.dtype, source.dtype):
            yield _Piece(conversion, first, raw, None, size)
        else:
            yield _Piece(conversion, first, None, _floats(source, raw), size)


def _floats(source: Parameter | Dequantised, raw: Bytes) -> NDArray[np.float32]:
    """Dequantise rows of blocks to (rows, columns), the columns in order."""
    values = dequantize(source.dtype, raw)
    columns = source.columns if isinstance(source, QuantizedMatrix) else None
    if columns is not None:
        sorted_values, values = values, np.empty_like(values)
        values[:, columns] = sorted_values
    return values


def columns_of(tensor: Parameter | Dequantised, dtype: str) -> NDArray[np.int32] | None:
    """Return the order of a matrix's columns in memory, if it is kept as that type."""
    if isinstance(tensor, QuantizedMatrix) and has_blocks_of(dtype, tensor.dtype):
        return tensor.columns
    return None


def same_columns(one: NDArray[np.int32] | None, other: NDArray[np.int32] | None) -> bool:
    """Check whether two orders of columns are one."""
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
