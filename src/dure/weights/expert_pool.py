"""Where a model's experts live: in whose memory, and for how long.

A layer's experts are one `kernels.Experts`, with a record for each expert that lies wherever its
pointer says. The loader asks the pool for that set; a layer tells the pool which experts a step
needs (`begin`) as soon as it knows them, and multiplies by them later (`Work.mlp`): so a pool that
reads from disk can do so meanwhile. This one keeps all of them in memory;
`streaming_pool.StreamingExpertPool` keeps what a budget allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dure import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.weights.expert_records import RecordSource
    from dure.weights.expert_stats import ExpertStats

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Rows = Floats | kernels.Activations
    Router = Callable[[Rows], Ints]  # (n, hidden) -> (n, k): the experts of each row


class Work(Protocol):
    """A mixture's product that has been announced."""

    def mlp(
        self, x: Rows, shares: Floats, *, add: Floats | None, exact: bool, threads: int
    ) -> Floats:
        """Return the sum over each row's experts of share * MLP of x (n, hidden), + add."""
        ...


@dataclass(frozen=True)
class _Resident:
    """Work whose experts are all in memory."""

    experts: kernels.Experts
    ids: Ints

    def mlp(
        self, x: Rows, shares: Floats, *, add: Floats | None, exact: bool, threads: int
    ) -> Floats:
        return kernels.experts_mlp(
            x, self.ids, shares, self.experts, add=add, exact=exact, threads=threads
        )


class ExpertPool:
    """Keeps all experts in memory from loading on.

    It belongs to one model, and to the thread that runs the model's steps.
    """

    streams = False
    """Whether experts may be elsewhere than in memory."""

    def __init__(self, *, leaves_rows: bool = False) -> None:
        """leaves_rows: whether tables that are looked up by row stay on disk, as if it streamed."""
        self._sets: list[kernels.Experts] = []
        self.leaves_rows = leaves_rows or self.streams
        self.left_bytes = 0
        """Bytes that other weights would take which stay on disk."""

    def add(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate: str,
        up: str,
        down: str,
        *,
        sources: Callable[[int], RecordSource] | None = None,
    ) -> kernels.Experts:
        """Make the set of one layer's experts.

        count: how many there are; hidden and intermediate: the widths of an expert; gate, up, down:
        the types of its matrices in memory; sources: where an expert's record can be had from. Here
        the caller packs all of them, by `Experts.fill` or a `kernels.FilePacker`, before the first
        step. A record takes `Experts.record_bytes` bytes.
        """
        del sources
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down)
        self._sets.append(experts)
        return experts

    def attach(self, experts: kernels.Experts, router: Router, *, top_k: int) -> None:
        """Say how a layer chooses, so that a pool can guess what it will need.

        Layers attach in the order in which they run; top_k: the experts of a row.
        """

    def begin_step(self, rows: int, sequences: int) -> None:
        """Say how many rows the next pass has, and of how many sequences they are."""

    def begin(self, experts: kernels.Experts, ids: Ints, x: Rows, scores: Floats) -> Work:
        """Announce the experts that a product needs; a pool that reads on demand asks for them.

        experts: a set made by `add`; ids: (n, k), the experts of each of the step's rows; x: what
        they were chosen for, (n, hidden); scores: (n, experts), what they were chosen by.
        """
        del x, scores
        return _Resident(experts, ids)

    def take_failures(self) -> list[RowFailure]:
        """Take what could not be read since this was last called. Here: nothing."""
        return []

    @property
    def stats(self) -> ExpertStats | None:
        """Counts of the cache of experts; None where all are in memory."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all experts take, or would."""
        return sum(experts.nbytes for experts in self._sets)


@dataclass(frozen=True)
class RowFailure:
    """Rows of a product whose experts could not be had: what a pass gives for them is wrong."""

    rows: tuple[int, ...]
    of: int  # how many rows the product had
    error: Exception
