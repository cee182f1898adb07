"""Where a model's experts live: in whose memory, and for how long.

A layer's experts are one `kernels.Experts`, with a record for each expert that lies wherever its
pointer says. The loader asks the pool for that set; a layer pins the experts of a step with
`pinned` while it multiplies by them. A pool that reads experts on demand, within a budget,
implements the same two methods: it makes sets with `resident=False`, and before a product reads the
missing experts into slots of a `kernels.ExpertBuffer` and places them there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dure import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.weights.expert_records import RecordSource

    Ints = NDArray[np.int32]

_NOTHING_TO_HOLD: AbstractContextManager[None] = nullcontext()


class ExpertPool:
    """Keeps all experts in memory from loading on.

    It belongs to one model, and to the thread that runs the model's steps.
    """

    def __init__(self) -> None:
        self._sets: list[kernels.Experts] = []

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

        count: how many there are; hidden and intermediate: the widths of an
        expert; gate, up, down: the types of its matrices in memory; sources: where an expert's
        record is read from. The caller packs all of them, by `Experts.fill` or a
        `kernels.FilePacker`, before the first step. A record takes `Experts.record_bytes` bytes.
        """
        del sources
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down)
        self._sets.append(experts)
        return experts

    def pinned(self, experts: kernels.Experts, ids: Ints) -> AbstractContextManager[None]:
        """Keep the experts that a product needs in memory for as long as the context lasts.

        experts: a set made by `add`; ids: (n, k), the experts of each of the step's rows, in any
        order and with repeats. A pool that reads on demand would load the missing ones first. Here
        all are in memory.
        """
        del experts, ids
        return _NOTHING_TO_HOLD

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the experts take."""
        return sum(experts.nbytes for experts in self._sets)
