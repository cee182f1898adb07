"""Rows that memory keeps otherwise than the file does: read, converted and packed piece by piece.

Only a few rows are there in floats at any time, so that a load's peak is its result and one matrix
at most: that of a layout whose rows lie across the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.tensors import RowShape
from dure.kernels.dequantize import dequantize
from dure.weights.quantize import quantize_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized_checkpoint import Parameter

    Bytes = NDArray[np.uint8]

PIECE_WEIGHTS = 1 << 21
"""Weights converted at once, in whole panels of 16 rows."""

_PANEL = 16


@dataclass(frozen=True)
class Conversion:
    """Rows of a parameter that become rows of `dtype`, and where to put them."""

    source: Parameter
    first_row: int
    rows: int
    dtype: str
    put: Callable[[int, Bytes], None]  # (first row, source blocks)
    order: NDArray[np.int32] | None = None  # which row comes in whose place, if another


@dataclass(frozen=True)
class _Piece:
    """Some rows of a conversion: blocks of its type, or floats that are to become them."""

    conversion: Conversion
    first: int
    blocks: Bytes | None
    floats: NDArray[np.float32] | None
    file_bytes: int


class Dequantised(RowShape):
    """A quantised matrix of a folder as rows of float32, its columns in order. Of a layout whose
    rows lie across the file, what was read stays until the last row has been asked for."""

    dtype = "F32"

    def __init__(self, source: QuantizedMatrix) -> None:
        self.name, self.shape, self.stored = source.name, source.shape, source.stored
        self._source = source
        self._raw: Bytes | None = None

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Fresh uint8 (stop - start, row_bytes), rows counted over all leading dimensions."""
        if not self._source.whole:
            raw = self._source.read_rows(start, stop)
        else:
            whole = self._source.read() if self._raw is None else self._raw
            self._raw = whole if stop < self.num_rows else None
            raw = whole[start:stop]
        return _floats(self._source, raw).view(np.uint8)


def repack_all(
    conversions: Iterable[Conversion], *, threads: int, advance: Callable[[int], None]
) -> None:
    """Converts and puts all rows. advance(bytes of the file) is called after each piece. The next
    piece is read while one is packed; Python can be interrupted in between."""
    pieces = (piece for conversion in conversions for piece in _pieces(conversion))
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = reader.submit(next, pieces, None)
            blocks = piece.blocks
            if piece.floats is not None:
                blocks = quantize_rows(piece.floats, piece.conversion.dtype, threads=threads)
            if blocks is not None:
                piece.conversion.put(piece.first, blocks)
            advance(piece.file_bytes)


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
        if conversion.dtype == source.dtype:
            yield _Piece(conversion, first, raw, None, size)
        else:
            yield _Piece(conversion, first, None, _floats(source, raw), size)


def _floats(source: Parameter, raw: Bytes) -> NDArray[np.float32]:
    """The weights, (rows, columns), of rows as they come, their columns in order."""
    values = dequantize(source.dtype, raw)
    columns = source.columns if isinstance(source, QuantizedMatrix) else None
    if columns is not None:
        sorted_values, values = values, np.empty_like(values)
        values[:, columns] = sorted_values
    return values
