"""A product whose experts find no room: it waits for reads of others, and only then gives up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dure.errors import NotEnoughMemoryError
from dure.weights.streaming_pool import StreamingExpertPool, _Layer, _StreamedWork


class FullPool:
    """All its memory is taken by experts that are read for others, one of which ends a wait."""

    def __init__(self, others: int) -> None:
        self.others, self.here, self.asked = others, set(), set()

    @property
    def is_reading(self) -> bool:
        return self.others > 0 or bool(self.asked)

    def is_here(self, number: int) -> bool:
        return number in self.here

    def ask(self, number: int, _: int) -> bool:
        if self.others:
            return False
        self.asked.add(number)
        return True

    def collect(self, _: float) -> dict[int, Exception | None]:
        if self.others:
            self.others -= 1
            return {99: None}
        came, self.asked = self.asked, set()
        self.here |= came
        return dict.fromkeys(came)

    def waited(self, _: float) -> None:
        """Nobody counts here."""


def work_of(pool: FullPool) -> _StreamedWork:
    layer = cast(_Layer, SimpleNamespace(first=0))
    return _StreamedWork(cast(StreamingExpertPool, pool), layer, np.zeros((1, 1), int), [], [3])


def test_a_step_waits_while_reads_for_others_hold_the_memory() -> None:
    work, product = work_of(FullPool(others=2)), cast(Any, None)
    found: list[int] = []
    for _ in range(4):
        work.ask()
        ready, _ = work._next(product, None)
        found += ready
    assert found == [3]


def test_a_step_for_which_there_is_no_memory_and_nothing_comes_is_an_error() -> None:
    pool = FullPool(others=0)
    pool.ask = lambda *_: False  # type: ignore[method-assign]
    work = work_of(pool)
    work.ask()
    with pytest.raises(NotEnoughMemoryError, match="no memory for the experts"):
        work._next(cast(Any, None), None)
