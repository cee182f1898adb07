"""Shares of a step: how much of its work was each request's, by rows and by attention read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure.batch import CacheDtype, KVCacheSpec, StateSpec

ROWS_OF_A_READ = 16
"""Rows whose products take as long as reading the weights once: 8 rows of a model of 1.5 billion
parameters take 1.5 steps of one row (README.md), which is 1 + 8 / 16."""


@dataclass(frozen=True)
class StepWork:
    """What one row of a model works on besides its share of the weights: keys and values."""

    row_bytes: int  # weights that one row goes through
    caches: tuple[tuple[int | None, int], ...]  # (window or None, bytes of a position), by layers

    @classmethod
    def of(
        cls, specs: Iterable[KVCacheSpec | StateSpec], dtype: CacheDtype, row_bytes: int
    ) -> StepWork:
        """Describe a model by what its layers cache."""
        widths: dict[int | None, int] = {}
        for spec in specs:
            size = spec.bytes_per_token(dtype)
            widths[spec.window] = widths.get(spec.window, 0) + size
        caches = tuple((window, size) for window, size in widths.items() if size)
        return cls(max(1, row_bytes), caches)

    @classmethod
    def of_model(
        cls, specs: Sequence[KVCacheSpec | StateSpec], dtype: CacheDtype, row_bytes: int
    ) -> StepWork:
        """As `of`; row_bytes: 0 if not known: as many as keys and values of 4,096 positions."""
        position = sum(spec.bytes_per_token(dtype) for spec in specs)
        return cls.of(specs, dtype, row_bytes or 4096 * position)

    def shares(self, chunks: Sequence[tuple[int, int]]) -> list[float]:
        """Return the share of each chunk in a step, adding up to 1.

        chunks: (first position, rows) of each. The weights are read once for all rows, which share
        that evenly; their products are each row's own, and so is what a row attends to.
        """
        rows = sum(count for _, count in chunks)
        of_row = self.row_bytes * (1 + rows / ROWS_OF_A_READ) / rows
        work = [count * of_row + self._attended(start, count) for start, count in chunks]
        total = sum(work)
        return [each / total for each in work]

    def _attended(self, start: int, count: int) -> float:
        """Return the bytes of keys and values that `count` rows from `start` on read."""
        return sum(size * _positions(start, count, window) for window, size in self.caches)


def _positions(start: int, count: int, window: int | None) -> int:
    """Return how many positions rows start to start + count - 1 see: each itself and those before.

    With a window, that many at most.
    """
    if window is None or start + count <= window:
        return count * start + count * (count + 1) // 2
    growing = max(0, window - start)  # rows that see fewer than the window
    return _positions(start, growing, None) + (count - growing) * window
