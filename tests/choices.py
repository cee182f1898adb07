"""Where transformers' own choice of experts or of keys hangs on the noise of float32.

Two scores that differ by less than their rounding change places in any other order of the same
sums. Another expert is then as right as transformers', and gives another row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_models import oracle_logits
from torch.overrides import TorchFunctionMode

NOISE = 2.0**-17
"""What float32 leaves undecided of two scores, as a share of the largest of their row: 64 ulps.

transformers' routers were up to 11 ulps from themselves in float64, and so may each of two scores
be in each of two programs. Indexers were up to 61, routers behind delta rules up to 219: a choice
that is nearer than that and further than 64 fails, to be looked at.
"""


class Choices(TorchFunctionMode):
    """While entered, notes of each top-k that a model computes which of its rows have a tie.

    A tie: the last that is chosen and the first that is not are less than NOISE times the row's
    largest score apart. They are the scores that the model chooses by, after biases and groups.
    """

    def __init__(self, rows: int) -> None:
        """rows: the tokens of the one sequence that is computed."""
        super().__init__()
        self.seen = 0  # choices that left something out
        self.tied: set[int] = set()
        self._rows = rows

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call one of torch's functions; torch does so for all of them."""
        if getattr(func, "__name__", "") == "topk":
            self._note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, scores: torch.Tensor, k: int, dim: int = -1, **_: Any) -> None:
        assert dim in (-1, scores.ndim - 1), f"a choice along axis {dim} of {[*scores.shape]}"
        if k >= scores.shape[-1]:
            return
        self.seen += 1
        masked = scores <= torch.finfo(scores.dtype).min / 2  # which nothing can choose
        scale = scores.masked_fill(masked, 0).abs().amax(-1)
        best = scores.topk(k + 1)
        last, first = best.values[..., -2], best.values[..., -1]
        near = (last - first < NOISE * scale) & ~masked.gather(-1, best.indices[..., -1:])[..., 0]
        axis = [*near.shape].index(self._rows)
        rows = near.movedim(axis, 0).reshape(self._rows, -1).any(1)
        self.tied |= set(rows.nonzero().flatten().tolist())


def tied_rows(model: Any, tokens: Sequence[int]) -> set[int]:
    """Return the rows of one sequence in which a choice of the transformers model is a tie.

    Their logits, and as others see their keys and values those of later rows, may be others.
    """
    with Choices(len(tokens)) as choices:
        oracle_logits(model, tokens)
    return choices.tied
