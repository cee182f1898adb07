"""Computes a model's importance matrix: how large the inputs of its matrices are on a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from dure import kernels
from dure.benchmark import CHUNK, LOGIT_ROWS, DirectRunner
from dure.errors import InvalidRequestError, UnsupportedModelError
from dure.formats.imatrix import Importance, ImportanceMatrix
from dure.weights.names import gguf_name
from dure.weights.quantize import part_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dure.models import Model
    from dure.weights.expert_pool import ExpertPool

    Doubles = NDArray[np.float64]

# The embedding and the head: no mixture gives them fewer than 6 bits.
_LEFT_OUT = ("model.embed_tokens.weight", "lm_head.weight", "score.weight")


@dataclass
class Watched:
    """The matrices whose inputs are added up, by the names that a family gives them."""

    matrices: dict[str, kernels.Matrix] = field(default_factory=dict)
    mixtures: dict[str, kernels.Experts] = field(default_factory=dict)

    def add(self, name: str, made: kernels.Matrix | kernels.Experts) -> None:
        """Watch one; what `load`'s `on_made` is called with."""
        if name in _LEFT_OUT or part_of(name, 2) == "router":
            return
        made.watch()
        if isinstance(made, kernels.Matrix):
            self.matrices[name] = made
        else:
            self.mixtures[name] = made

    def importance(self, tensor_aliases: Mapping[str, str]) -> dict[str, Importance]:
        """Return what was seen, by GGUF's names; what has none there is left out."""
        found: dict[str, Importance] = {}
        for name, matrix in self.matrices.items():
            sums, rows = matrix.seen()
            counts = np.array([rows], np.float64)
            found[name] = Importance(_in_order(sums, matrix.columns), counts)
        for prefix, experts in self.mixtures.items():
            inputs, inner, each = experts.seen()
            counts, inputs = each.astype(np.float64), _in_order(inputs, experts.columns)
            for part, sums in (("gate", inputs), ("up", inputs), ("down", inner)):
                found[f"{prefix}.{part}_proj.weight"] = Importance(sums, counts)
        named = {gguf_name(name, tensor_aliases): each for name, each in found.items()}
        return {
            name: each for name, each in named.items() if name is not None and each.counts.any()
        }


def _in_order(sums: Doubles, columns: NDArray[np.int32] | None) -> Doubles:
    """Return sums (n, cols) in the order of the file's columns."""
    if columns is None:
        return sums
    ordered = np.empty_like(sums)
    ordered[:, columns] = sums
    return ordered


def compute_imatrix(
    model: Model,
    watched: Watched,
    tokens: Sequence[int],
    *,
    tensor_aliases: Mapping[str, str],
    dataset: str = "",
    window: int = CHUNK,
    expert_pool: ExpertPool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportanceMatrix:
    """Run the model over `tokens`, a window of them at a time, and return what was watched.

    tensor_aliases: the family's. dataset: what the text is called. A last window that is not full
    is left out. Raises InvalidRequestError if there is no full one, and UnsupportedModelError if
    the model has no matrix that GGUF has a name for.
    """
    windows = len(tokens) // window
    if not windows:
        raise InvalidRequestError(
            f"The text has {len(tokens)} tokens, less than one window of {window}.",
            hint=f"use a longer text, or --window {max(2, len(tokens))} or less",
        )
    run = DirectRunner(model, tokens=window, expert_pool=expert_pool)
    for index in range(windows):
        if progress is not None:
            progress(index, windows)
        _run(run, model, tokens[index * window : (index + 1) * window])
    if progress is not None:
        progress(windows, windows)
    entries = watched.importance(tensor_aliases)
    if not entries:
        raise UnsupportedModelError("No matrix of this model has a name in GGUF files.")
    datasets = (dataset,) if dataset else ()
    return ImportanceMatrix(dict(sorted(entries.items())), datasets, windows, window)


def _run(run: DirectRunner, model: Model, tokens: Sequence[int]) -> None:
    """Compute all rows of the tokens in all layers; the last would compute those asked for."""
    pooling = hasattr(model, "normed")
    step = CHUNK if pooling else LOGIT_ROWS
    for start in range(0, len(tokens), step):
        part = tokens[start : start + step]
        every = range(len(part))
        positions = range(start, start + len(part))
        run.forward(
            part,
            positions,
            [0] * len(part),
            cast("Sequence[int]", () if pooling else every),
            hidden_rows=every if pooling else None,
        )
