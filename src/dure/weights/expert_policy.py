"""Which experts stay in memory: those used most lately, and those that were nearly chosen.

A row gives every expert that its router chose 1, and every other the less the further it was from
being chosen. These numbers halve every few tokens, and once more, in a second count, over
a thousand. `bench/routings.py` compares this rule with others, and with Belady's optimum, on
recorded routings of random models with a realistic skew: at half of the experts LRU misses 0.45 of
8 a token and layer, this 0.35, Belady 0.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Doubles = NDArray[np.float64]

SHORT, LONG = 4.0, 1024.0
"""Half-lives of the two counts, in tokens of a sequence."""

LONG_SHARE = 0.3
"""What the long count says of an expert's score."""

MOST_TOKENS = 8.0
"""Of a sequence, in one step, as far as counts age: a long prompt must not make all others old."""

MOST_ROWS = 64
"""Rows of a step that are looked at: more say nothing new."""

NEAR = 0.45
"""How near to being chosen counts: standard deviations of a row's router scores."""


class AgedUse:
    """How much every expert of a model was used lately. Experts are numbered over all layers."""

    def __init__(self, experts: int) -> None:
        self.short: Doubles = np.zeros(experts)
        self.long: Doubles = np.zeros(experts)
        """The count to remember between runs: the same array all the time."""
        self.scores: Doubles = np.zeros(experts)

    def restore(self, long: Doubles) -> None:
        """Begin with a long count of an earlier run."""
        self.long[:] = long
        self.scores[:] = LONG_SHARE / LONG * long

    def use(self, layer: slice, router: Floats, top_k: int, *, sequences: int) -> None:
        """Count a step in a layer.

        layer: its experts; router: (n, experts of the layer), the scores that the step's rows chose
        their top_k by, rows of `sequences` sequences.
        """
        rows = len(router)
        if rows == 0:
            return
        tokens = min(MOST_TOKENS, rows / sequences)
        sampled = router if rows <= MOST_ROWS else router[:: -(-rows // MOST_ROWS)]
        used = kernels.near_uses(np.ascontiguousarray(sampled, np.float32), top_k=top_k, near=NEAR)
        used *= tokens * sequences / len(sampled)
        short, long = self.short[layer], self.long[layer]
        short *= 0.5 ** (tokens / SHORT)
        short += used
        long *= 0.5 ** (tokens / LONG)
        long += used
        self.scores[layer] = (1 - LONG_SHARE) / SHORT * short + LONG_SHARE / LONG * long

    def lowest(self, among: NDArray[np.bool_]) -> int | None:
        """Return the expert that should go, of those marked; None if none is."""
        at = int(np.argmin(np.where(among, self.scores, np.inf)))
        return at if among[at] else None
