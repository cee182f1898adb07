"""Which experts stay in memory: those that were used most, where old uses count less.

`bench/routings.py` compares this rule with others, and with Belady's optimum, on recorded routings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_LIFE = 128.0
"""Rows of a layer after which a use counts half."""

MOST_IN_A_STEP = 64.0
"""What a step may add at most: a long prompt says no more than its last rows would."""


class AgedFrequency:
    """The uses of every expert of a model, halved every `half_life` rows of its layer.

    Experts are numbered over all layers. The one with the lowest score goes first.
    """

    def __init__(self, experts: int, *, half_life: float = HALF_LIFE) -> None:
        self.scores: NDArray[np.float64] = np.zeros(experts)
        self._half_life = half_life

    def use(
        self, layer: slice, experts: NDArray[np.intp], counts: NDArray[np.intp], rows: int
    ) -> None:
        """Count a step of `rows` rows in a layer.

        layer: its experts; experts and counts: (m,), which of all were used, and by how many rows.
        """
        self.scores[layer] *= 0.5 ** (rows / self._half_life)
        self.scores[experts] += np.minimum(counts, MOST_IN_A_STEP)

    def lowest(self, among: NDArray[np.bool_]) -> int | None:
        """Return the expert that should go, of those marked; None if none is."""
        at = int(np.argmin(np.where(among, self.scores, np.inf)))
        return at if among[at] else None
