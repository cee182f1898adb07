"""Pooling: the hidden states of a prompt, as its chunks are computed, become one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""How sentence-transformers calls them."""


@dataclass(frozen=True)
class PoolingParams:
    """Which hidden states of a prompt are pooled, and how.

    These are the states after the model's last norm. Source of the modes: `Pooling` of
    sentence-transformers. Several are put one after the other.
    """

    modes: tuple[PoolingMode, ...] = ("lasttoken",)
    skip: int = 0  # tokens at the start that are left out, as a prompt before each text may be

    @property
    def needs_all(self) -> bool:
        """Whether more than the last row is needed: then no row may come from the cache."""
        return self.modes != ("lasttoken",)


class Pooler:
    """Pools one prompt. `add` its chunks in order; from position 0 on it begins anew.

    Sums are taken row by row in float64, so that no bit depends on how the prompt was cut.
    """

    def __init__(self, params: PoolingParams, tokens: int) -> None:
        """tokens: of the prompt."""
        self.params = params
        self._tokens = tokens
        self._skip = min(params.skip, tokens - 1)
        self._states: dict[PoolingMode, NDArray[np.float32] | NDArray[np.float64]] = {}

    def rows(self, start: int, count: int) -> tuple[int, ...]:
        """Return which of `count` rows from position `start` on are needed, from 0."""
        if self.params.needs_all:
            return tuple(range(max(0, self._skip - start), count))
        return (count - 1,) if start + count == self._tokens else ()

    def add(self, start: int, rows: Floats) -> None:
        """Take the states (n, hidden) of the rows of the chunk from position `start` on."""
        if start <= self._skip:
            self._states = {}
        if len(rows) == 0:
            return
        first = max(start, self._skip)  # position of rows[0], if all are needed
        for mode in self.params.modes:
            before = self._states.get(mode)
            if mode == "lasttoken":
                self._states[mode] = rows[-1].copy()
            elif mode == "cls":
                self._states.setdefault(mode, rows[0].copy())
            elif mode == "max":
                each = rows if before is None else np.concatenate([before[None], rows])
                self._states[mode] = each.max(axis=0)
            else:
                total = np.zeros(rows.shape[1]) if before is None else before
                for position, row in enumerate(rows, first):
                    total = total + (row * float(position + 1) if mode == "weightedmean" else row)
                self._states[mode] = total

    def result(self) -> Floats:
        """Return the vector (modes * hidden,) of the whole prompt."""
        count = self._tokens - self._skip
        divisors = {
            "mean": float(count),
            "mean_sqrt_len_tokens": float(np.sqrt(np.float64(count))),
            "weightedmean": float(sum(range(self._skip + 1, self._tokens + 1))),
        }
        parts = [self._states[mode] / divisors.get(mode, 1.0) for mode in self.params.modes]
        return np.concatenate([part.astype(np.float32) for part in parts])
