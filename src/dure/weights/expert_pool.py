"""Where the experts of a model's mixtures live: whose memory they lie in, and for how long.

A layer's experts are one `kernels.Experts`, with a record for each expert that lies wherever its
pointer says. The loader asks the pool for that set; a layer holds the experts of a step by `pinned`
while it multiplies by them. A pool that reads experts as they are needed, under a budget, does the
same two things and changes nothing else: it makes sets with `resident=False`, and before a product
reads what is missing into slots of a `kernels.ExpertBuffer` and places it there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dure import kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]

_NOTHING_TO_HOLD: AbstractContextManager[None] = nullcontext()


class ExpertPool:
    """Keeps every expert in memory, from loading on.

    It belongs to one model, and to the thread that runs the model's steps.
    """

    def __init__(self) -> None:
        self._sets: list[kernels.Experts] = []

    def add(
        self, count: int, hidden: int, intermediate: int, gate: str, up: str, down: str
    ) -> kernels.Experts:
        """Make the set of one layer's experts.

        count: how many there are; hidden and intermediate: the widths of an expert; gate, up, down:
        the types of its matrices in memory. The caller packs all of them, by `Experts.fill` or a
        `kernels.FilePacker`, before the first step. A record takes `Experts.record_bytes` bytes.
        """
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down)
        self._sets.append(experts)
        return experts

    def pinned(self, experts: kernels.Experts, ids: Ints) -> AbstractContextManager[None]:
        """Hold the experts that a product takes in memory for as long as the context lasts.

        experts: a set by `add`; ids: (n, k), the experts of each of the step's rows, in any order
        and with repeats. Those that are not in memory are brought there first. Here all are.
        """
        del experts, ids
        return _NOTHING_TO_HOLD

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the experts take."""
        return sum(experts.nbytes for experts in self._sets)
