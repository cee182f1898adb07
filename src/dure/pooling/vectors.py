"""From a pooled vector to an embedding, or to a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dure import kernels
from dure.errors import UnsupportedModelError
from dure.pooling.config import Normalize, RankConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dure.pooling.dense import Dense
    from dure.text.tokenizer import Tokenizer

    Floats = NDArray[np.float32]

_LEAST_LENGTH = 1e-12  # torch.nn.functional.normalize divides by no less


@dataclass(frozen=True)
class Embedder:
    """Makes an embedding of a pooled vector."""

    steps: Sequence[Normalize | Dense]
    dimensions: int | None = None  # the first numbers of it alone
    normalize: bool | None = None  # None: as the steps say

    def __call__(self, vector: Floats) -> Floats:
        """Return the embedding of a vector (width,)."""
        says = any(isinstance(step, Normalize) for step in self.steps)
        wanted = says if self.normalize is None else self.normalize
        for step in self.steps:
            if not isinstance(step, Normalize):
                vector = step(vector)
            elif wanted:
                vector = normalized(vector)
        cut = vector if self.dimensions is None else vector[: self.dimensions]
        return normalized(cut) if wanted and (len(cut) < len(vector) or not says) else cut


def normalized(vector: Floats) -> Floats:
    """Return the vector with the length 1; zeros stay zeros.

    The squares are summed exactly, so that no bit depends on how a library sums.
    """
    length = math.sqrt(math.fsum(np.square(vector, dtype=np.float64).tolist()))
    return (vector / max(length, _LEAST_LENGTH)).astype(np.float32)


class ScoringModel(Protocol):
    """What ranking needs of a model."""

    @property
    def score(self) -> Callable[[Floats], Floats] | None:
        """The head of scores, (n, hidden) -> (n, 1 or 2 labels); None without one."""
        ...

    def head_rows(self, token_ids: NDArray[np.int32]) -> Floats:
        """Return the head's rows (n, hidden) of tokens."""
        ...


class Scorer:
    """Makes a score from 0 to 1 of a pooled vector: how likely a document answers a query."""

    def __init__(self, model: ScoringModel, rank: RankConfig, tokenizer: Tokenizer) -> None:
        """Raises UnsupportedModelError without a head and without "yes" and "no"."""
        self._head = model.score
        if self._head is not None:
            return
        named = (rank.true_id, rank.false_id)
        pairs = zip(named, ("yes", "no"), strict=True)
        ids = [tokenizer.token_id(text) if each is None else each for each, text in pairs]
        if any(each is None for each in ids):
            raise UnsupportedModelError('This reranker has no tokens "yes" and "no".')
        rows = model.head_rows(np.array(ids, np.int32))
        self._rows = kernels.Matrix("F32", *rows.shape)
        self._rows.fill(0, np.ascontiguousarray(rows, np.float32).view(np.uint8))

    def __call__(self, vector: Floats) -> Floats:
        """Return the score (1,) of a vector (hidden,)."""
        if self._head is None:
            logits = kernels.matmul(vector[None], self._rows)[0]
        else:
            logits = self._head(vector[None])[0]
        # Of two logits the first is "yes", as llama.cpp's converter writes them.
        each = [float(logit) for logit in logits]
        return np.array([_sigmoid(each[0] - each[1] if len(each) == 2 else each[0])], np.float32)


def _sigmoid(x: float) -> float:
    small = math.exp(-abs(x))
    return 1 / (1 + small) if x >= 0 else small / (1 + small)
