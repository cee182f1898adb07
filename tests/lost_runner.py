"""Runners that are lost for good at a chosen pass, and a model whose answers need all the past."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from fake_model import VOCAB_SIZE, SharedModel

from dure.batch import Batch
from dure.errors import ClusterError

NOISE = np.random.default_rng(0).normal(0, 2, (VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
NOISE[:, 128:] -= 100.0  # text, and so that it is read as it was written


class Wild(SharedModel):
    """Every token is likely, and how likely depends on all tokens in the cache before it."""

    def __init__(self, context_length: int = 1024) -> None:
        super().__init__(_any_letter, context_length=context_length)

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        return NOISE[super().forward(batch, cache).argmax(axis=1)]


def _any_letter(text: str) -> str:
    return chr(32 + zlib.crc32(text.encode()) % 96)


class Loss:
    """A runner's end after so many more passes. It is not mended until `found`."""

    def __init__(self, runner: Any, *, after: int = 0) -> None:
        self._runner, self._left = runner, after
        self._as_was = runner.begin, runner.mend
        self.attempts = 0  # to compute or to mend, since it is lost
        runner.begin, runner.mend = self._begin, self._fail

    def found(self) -> None:
        """Let it be whole again when it is next mended."""
        begin, mend = self._as_was

        def mended() -> None:
            self._runner.begin, self._runner.mend = begin, mend
            self._runner.is_whole = True

        self._runner.mend = mended

    def _begin(self, batch: Batch) -> None:
        if self._left == 0:
            self._fail()
        self._left -= 1
        self._as_was[0](batch)

    def _fail(self) -> None:
        self._runner.is_whole = False
        self.attempts += 1
        raise ClusterError("No node has room for what was lost.", hint="add a node")
