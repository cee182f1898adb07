"""Experts that come from disk while a mixture is computed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dure.kernels import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dure.kernels.packed import Experts

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Bytes = NDArray[np.uint8]

NEEDED, GUESSED, WARMING = range(3)
"""Priorities of `ExpertReader`: what is needed now, what may be needed next, what fills memory."""

ENDED, NOT_FINITE, CHANGED, NO_MEMORY = -1, -3, -4, -5
"""Errors of `ExpertReader` that are no errno: see csrc/pack/expert_reader.h."""


class DirectFile:
    """An open file that is read past the page cache, where the file system can.

    Where it cannot, what the page cache got is dropped from it.
    """

    def __init__(self, descriptor: int) -> None:
        """Duplicate the descriptor, and remember what the file is now. Raises OSError."""
        self.packed = _core.DirectFile(descriptor)

    @property
    def is_direct(self) -> bool:
        """Whether reads pass the page cache by."""
        return self.packed.direct

    def unchanged(self) -> bool:
        """Check that the file has the size and the time of change that it had at first."""
        return self.packed.unchanged()

    def read(self, offset: int, size: int) -> Bytes:
        """Read `size` bytes from `offset` on. Raises OSError, or EOFError if they end before."""
        return self.packed.read(offset, size)


class ExpertReader:
    """Threads that read records of experts and pack them, several at once.

    What is needed goes before what is guessed, piece by piece. A record is named by a tag, a
    positive integer, until `take` has returned it.
    """

    def __init__(self, threads: int) -> None:
        self._reader = _core.ExpertReader(threads)

    def submit_parts(
        self,
        tag: int,
        experts: Experts,
        expert: int,
        parts: Sequence[tuple[DirectFile, int]],
        priority: int,
    ) -> None:
        """Ask for an expert that has been placed: gate, up, down, each source blocks of a file."""
        places = [(file.packed, offset) for file, offset in parts]
        self._reader.submit_parts(tag, experts.packed, expert, places, priority)

    def submit_record(
        self, tag: int, experts: Experts, expert: int, file: DirectFile, offset: int, priority: int
    ) -> None:
        """Ask for an expert that has been placed, whose record is at `offset`, as memory has it."""
        self._reader.submit_record(tag, experts.packed, expert, file.packed, offset, priority)

    def raise_to(self, tag: int, priority: int) -> None:
        """Read a record before those of lower priority, if it is still under way."""
        self._reader.raise_to(tag, priority)

    def cancel(self, tag: int) -> bool:
        """Drop a record of which nothing has been read yet; return whether it was."""
        return self._reader.cancel(tag)

    def finish(self, tag: int, error: int = 0) -> None:
        """Enter a record that somebody else has made. Any thread may."""
        self._reader.finish(tag, error)

    def take(self, seconds: float) -> list[tuple[int, int, int]]:
        """Take the records that are complete; wait for the first up to `seconds`.

        Returns (tag, error, offset): error is 0, an errno or one of the constants here, of the
        bytes at that offset of the file.
        """
        return self._reader.take(seconds)

    @property
    def read_bytes(self) -> int:
        """Bytes read so far."""
        return self._reader.read_bytes


class ExpertsPass:
    """`experts_mlp` in parts: products with some experts as they come, then the sum.

    The result has the bits of `experts_mlp`, in whatever order the experts come.
    """

    def __init__(
        self,
        rows: _core.Activations,
        ids: Ints,
        weights: Floats,
        experts: Experts,
        *,
        exact: bool,
        threads: int,
    ) -> None:
        """Take what `experts_mlp` does, the columns in the experts' order; compute nothing yet."""
        self._experts = experts.packed
        self._pass = _core.ExpertsPass(rows, ids, weights, exact, threads)

    def run(self, experts: Sequence[int]) -> None:
        """Multiply by these experts, which must be in memory. Raises ValueError."""
        self._pass.run(self._experts, experts)

    def leave_out(self, experts: Sequence[int]) -> None:
        """Count these experts' products as zero: they cannot be had."""
        self._pass.leave_out(self._experts, experts)

    def sum(self, add: Floats | None) -> Floats:
        """Return each row's weighted sum, + add, (n, hidden), once all experts have been run."""
        return self._pass.sum(self._experts, add)


def describe_error(error: int) -> str:
    """Say in words what an error of `ExpertReader.take` is."""
    words = {
        ENDED: "the file is shorter than it was",
        NOT_FINITE: "it holds a weight that is NaN or infinite",
        CHANGED: "the file changed while it was in use",
        NO_MEMORY: "there is no memory for it",
    }
    return words.get(error) or os.strerror(error)
