"""StepCost: how long does a step of so many rows take on this machine? Learnt as it runs."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
"""The sizes that are told apart; beyond the last, prompts are computed."""

# Until a size was seen: what a row costs beside the first, in steps of one row. It is what a
# mixture and a dense model took on AVX2; the first steps of a size put it right.
_PRIOR_ROW = 0.16
_NEW = 0.15  # the weight of what was seen last
_DRIFT = 0.003  # of a size that is not seen, towards what it would be by the shape below
_OUTLIER = 2.0  # a step so many times slower than thought counts as so many: others use the machine


class StepCost:
    """The seconds of a step of so many rows, as a smoothed table."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._sizes: list[int] = []  # of the curve; empty until it is asked for again
        self._costs: list[float] = []

    def add(self, rows: int, seconds: float) -> None:
        """Learn that a step of `rows` rows took so long."""
        if not 1 <= rows <= _ROWS[-1]:
            return
        size = _ROWS[bisect_right(_ROWS, rows) - 1]
        seconds *= _shape(size) / _shape(rows)
        self._sizes = []
        known = self._seconds.get(size)
        if known is None:
            self._seconds[size] = seconds
        else:
            now = known + _NEW * (min(seconds, known * _OUTLIER) - known)
            self._follow(size, now)
            self._seconds[size] = now

    @property
    def is_known(self) -> bool:
        """Whether a step was seen at all."""
        return bool(self._seconds)

    def __call__(self, rows: int) -> float:
        """Return the seconds that a step of `rows` rows is expected to take.

        Between two sizes that were seen it is a line; beyond them it grows as it does on the
        machines we know. It never falls with more rows.
        """
        if not self._sizes:
            self._draw()
        sizes, costs = self._sizes, self._costs
        index = bisect_right(sizes, rows)
        if not sizes:
            return _shape(rows)
        if index == 0:
            return costs[0] * _shape(rows) / _shape(sizes[0])
        low, first = sizes[index - 1], costs[index - 1]
        if index == len(sizes):
            return max(first, self._seconds[low] * _shape(rows) / _shape(low))
        return first + (rows - low) / (sizes[index] - low) * (costs[index] - first)

    def _draw(self) -> None:
        """Draw the curve through the sizes that were seen, which never falls."""
        self._sizes = sorted(self._seconds)
        self._costs = list(accumulate((self._seconds[size] for size in self._sizes), max))

    def _follow(self, seen: int, seconds: float) -> None:
        """Let the other sizes follow one whose cost becomes `seconds`.

        A context that grows, or another program, makes steps of all sizes slower; and a size that
        was slow once would otherwise look too dear for ever, for nobody would try it again.
        """
        level = seconds / self._seconds[seen]
        for size, before in self._seconds.items():
            expected = seconds * _shape(size) / _shape(seen)
            self._seconds[size] = before * level + _DRIFT * (expected - before * level)


def _shape(rows: int) -> float:
    """Return the steps of one row that a step of `rows` takes on the machines we know."""
    return 1 + _PRIOR_ROW * (rows - 1)
