"""StepCost: how long does a step of so many rows take on this machine? Learnt as it runs."""

from __future__ import annotations

from bisect import bisect_right

_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
"""The sizes that are told apart; beyond the last, prompts are computed."""

# Until a size was seen: what a row costs beside the first, in steps of one row. It is what a
# mixture and a dense model took on AVX2; the first steps of a size put it right.
_PRIOR_ROW = 0.16
_NEW = 0.15  # the weight of what was seen last
_OUTLIER = 2.0  # a step so many times slower than thought counts as so many: others use the machine


class StepCost:
    """The seconds of a step of so many rows, as a smoothed table."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, rows: int, seconds: float) -> None:
        """Learn that a step of `rows` rows took so long."""
        if not 1 <= rows <= _ROWS[-1]:
            return
        size = _ROWS[bisect_right(_ROWS, rows) - 1]
        seconds *= _shape(size) / _shape(rows)
        known = self._seconds.get(size)
        if known is None:
            self._seconds[size] = seconds
        else:
            self._seconds[size] = known + _NEW * (min(seconds, known * _OUTLIER) - known)

    @property
    def is_known(self) -> bool:
        """Whether a step was seen at all."""
        return bool(self._seconds)

    def __call__(self, rows: int) -> float:
        """Return the seconds that a step of `rows` rows is expected to take.

        Between two sizes that were seen it is a line; beyond them it grows as it does on the
        machines we know. It never falls with more rows.
        """
        known = sorted(self._seconds)
        if not known:
            return _shape(rows)
        below = [size for size in known if size <= rows]
        above = [size for size in known if size > rows]
        if below and above:
            low, high = below[-1], above[0]
            first = max(self._seconds[size] for size in below)
            share = (rows - low) / (high - low)
            return first + share * max(0.0, self._seconds[high] - first)
        if below:
            scale = max(self._seconds[size] / _shape(size) for size in below[-1:])
            return max(scale * _shape(rows), *(self._seconds[size] for size in below))
        return self._seconds[above[0]] * _shape(rows) / _shape(above[0])


def _shape(rows: int) -> float:
    """Return the steps of one row that a step of `rows` takes on the machines we know."""
    return 1 + _PRIOR_ROW * (rows - 1)
