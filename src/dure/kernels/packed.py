"""Packed weights, and how they are filled. The operations on them are in dure.kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure.kernels import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Bytes = NDArray[np.uint8]

LAYOUT = 1
"""The number of the packed layout (csrc/pack/layout.h), which files of packed experts state. Any
change of the bytes that `fill` makes, of any type, takes the next number."""


class Matrix:
    """Weights (rows, cols), packed from their source blocks into 16-row panels.

    Nothing is lost, but by the types that are floats as integers (`as_integers`).
    `columns`, if set, is the order of the columns in memory, for checkpoints whose blocks are of
    columns that do not lie side by side (desc_act). Products reorder x by it.
    """

    def __init__(self, dtype: str, rows: int, cols: int) -> None:
        self.packed = _core.Matrix(dtype, rows, cols)
        self.dtype = dtype
        self.rows = rows
        self.cols = cols
        self.columns: Ints | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        return self.packed.nbytes

    def fill(self, first_row: int, raw: Bytes, *, threads: int = 1) -> None:
        """Pack source blocks `raw` (n, row_bytes) from row first_row, a multiple of 16, on."""
        self.packed.fill(first_row, raw, threads)

    def watch(self) -> None:
        """Add up, from here on, the squares of what the matrix is multiplied with."""
        self.packed.watch()

    def seen(self) -> tuple[NDArray[np.float64], int]:
        """Return the sums of squares by column, (1, cols), and of how many rows they are.

        Raises ValueError without `watch`.
        """
        return self.packed.seen()

    def row_values(self, rows: Ints, *, threads: int = 1) -> Floats:
        """Dequantise rows, (n, cols), rounded as the source format's own dequantisation rounds."""
        values = self.packed.row_values(rows, threads)
        if self.columns is None:
            return values
        ordered: Floats = np.empty_like(values)
        ordered[:, self.columns] = values
        return ordered


class ExpertBuffer:
    """Page-aligned memory for the records of `slots` experts; pages are committed when written.

    record_bytes: that of `Experts.record_bytes`, a multiple of 4,096. Raises ValueError or
    MemoryError for more than an address space holds.
    """

    def __init__(self, slots: int, record_bytes: int) -> None:
        self.packed = _core.ExpertBuffer(slots, record_bytes)
        self.slots = slots
        self.record_bytes = record_bytes

    def resize(self, record_bytes: int) -> None:
        """Make it a buffer of records of another size; what it holds is lost.

        Pages that are committed stay so: that is why this is faster than a new buffer. An expert
        that is placed here keeps its memory. Raises ValueError or MemoryError as a new one does.
        """
        self.packed.resize(record_bytes)
        self.record_bytes = record_bytes

    def slot(self, slot: int) -> Bytes:
        """Return the memory of one record, (record_bytes,), to be written in place.

        It is written by a read from disk, or by `Experts.fill` once an expert is placed there.
        Raises ValueError for a slot beyond the last.
        """
        return self.packed.slot(slot)


class Experts:
    """The gate, up and down matrices of one layer's experts, in one page-aligned record an expert.

    A record may lie anywhere. It is in memory from the beginning (`resident`), or once `place` has
    given it a slot. A product that needs an expert which is not in memory raises ValueError.
    `columns` is the order of the columns of all gates and ups, as in Matrix.
    """

    def __init__(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate_dtype: str,
        up_dtype: str,
        down_dtype: str,
        *,
        resident: bool = True,
    ) -> None:
        self.packed = _core.Experts(
            count, hidden, intermediate, gate_dtype, up_dtype, down_dtype, resident
        )
        self.count, self.hidden, self.intermediate = count, hidden, intermediate
        self.columns: Ints | None = None

    @property
    def record_bytes(self) -> int:
        """Bytes of one record, in whole pages: packed gate, up and down one after another."""
        return self.packed.record_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all experts' records when all are in memory."""
        return self.count * self.record_bytes

    def add_biases(self, gate: Floats, up: Floats, down: Floats) -> None:
        """Keep what is added to the products of the three matrices.

        gate and up: (count, intermediate), down: (count, hidden); they are copied. They
        are in memory whatever expert is, and no part of `nbytes`.
        """
        self.packed.add_biases(gate, up, down)

    def clamp(self, alpha: float, limit: float) -> None:
        """Activate by (clip(up) + 1) * g * sigmoid(alpha * g) of g = min(gate, limit), not by silu.

        up is clipped to ±limit: gpt-oss's SwiGLU.
        """
        self.packed.clamp(alpha, limit)

    def limit(self, most: float) -> None:
        """Activate by min(silu(gate), most) * up, up clipped to ±most: Ling-3.0-flash's SwiGLU."""
        self.packed.limit(most)

    def use_gelu(self) -> None:
        """Activate by gelu(gate) * up, GELU in its form by tanh, not by silu."""
        self.packed.use_gelu()

    def watch(self) -> None:
        """Add up, from here on, the squares of what the matrices are multiplied with."""
        self.packed.watch()

    def seen(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return the sums of squares by column, and the rows that each expert had.

        Of gate's and up's inputs (count, hidden), of down's (count, intermediate), and (count,).
        Raises ValueError without `watch`.
        """
        return self.packed.seen()

    def place(self, expert: int, buffer: ExpertBuffer, slot: int) -> None:
        """Place `expert`'s record in that slot of the buffer; its previous memory is released.

        Products that are running keep the records they began with. Raises ValueError for an expert
        or a slot that does not exist, or slots of another size than `record_bytes`.
        """
        self.packed.place(expert, buffer.packed, slot)

    def remove(self, expert: int) -> None:
        """Forget where `expert`'s record lies: it is not in memory until it is placed again."""
        self.packed.remove(expert)

    def is_resident(self, expert: int) -> bool:
        """Check whether `expert`'s record is in memory."""
        return self.packed.is_resident(expert)

    def record(self, expert: int) -> Bytes:
        """Return the record of `expert` where it lies, (record_bytes,).

        It may be copied to a slot of any buffer. Raises ValueError if it is not in memory.
        """
        return self.packed.record(expert)

    def fill(
        self,
        part: Literal["gate", "up", "down"],
        expert: int,
        raw: Bytes,
        *,
        first_row: int = 0,
        threads: int = 1,
    ) -> None:
        """Pack source blocks `raw` (n, row_bytes) of one part of one expert, from first_row on."""
        self.packed.fill(part, expert, first_row, raw, threads)


_NOT_FINITE = -3  # FilePacker::kNotFinite


class NotFiniteError(ValueError):
    """A weight or a block's scale is NaN or infinite, at or soon after `offset` of the file."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"a weight at or after byte {offset:,} is NaN or infinite")
        self.offset = offset


class FilePacker:
    """Packs matrices straight from one file.

    Every thread reads pieces and packs them while they are in its cache, so that there is never a
    second copy in memory.
    """

    def __init__(self) -> None:
        self._packer = _core.FilePacker()

    def add(self, matrix: Matrix, offset: int) -> None:
        """Register `matrix` to be packed by `run` from the source blocks at byte `offset`."""
        self._packer.add_matrix(matrix.packed, offset)

    def add_part(
        self, experts: Experts, part: Literal["gate", "up", "down"], expert: int, offset: int
    ) -> None:
        """Register one part of one expert to be packed by `run` from byte `offset`."""
        self._packer.add_part(experts.packed, part, expert, offset)

    def run(
        self,
        descriptor: int,
        *,
        threads: int,
        report: Callable[[int], object],
        seconds: float = 0.25,
        direct: bool = False,
    ) -> None:
        """Pack everything that was added, from an open file.

        direct: whether to read past the page cache, where the file system can. Other Python threads
        run meanwhile. report is called with the number of bytes done about
        every `seconds`, and at the end; an exception that it raises ends the packing. Raises
        OSError if the file cannot be read, EOFError if it is too short, NotFiniteError for a weight
        or scale that is NaN or infinite; then what was added must not be used.
        """
        error = self._packer.run(descriptor, direct, threads, seconds, report)
        if error == _NOT_FINITE:
            raise NotFiniteError(self._packer.not_finite)
        if error > 0:
            raise OSError(error, os.strerror(error))
        if error:
            raise EOFError
