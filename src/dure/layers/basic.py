"""The basic layers of models: linear, embedding, RMSNorm, gated MLP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dure import kernels
from dure.errors import UnsupportedModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Rows = Floats | kernels.Activations  # (n, width), what a layer takes


class Linear:
    """y = x Wᵀ (+ b): (n, inputs) -> (n, outputs)."""

    def __init__(
        self, weights: Weights, name: str, outputs: int, inputs: int, *, bias: bool = False
    ) -> None:
        self.weight = weights.matrix(f"{name}.weight", outputs, inputs)
        self.bias = weights.vector(f"{name}.bias", outputs) if bias else None
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """Return x Wᵀ + b + add, (n, outputs); add is added last."""
        return kernels.matmul(
            x, self.weight, bias=self.bias, add=add, exact=self._exact, threads=self._threads
        )

    @staticmethod
    def together(x: Rows, *layers: Linear) -> list[Floats]:
        """Apply each of the layers to the same x in one call; return a list of their results."""
        return kernels.matmuls(
            x,
            [layer.weight for layer in layers],
            biases=[layer.bias for layer in layers],
            exact=layers[0]._exact,
            threads=layers[0]._threads,
        )


class Embedding:
    """A row a token: (n,) -> (n, width). `as_head` multiplies by the same matrix."""

    def __init__(
        self, weights: Weights, name: str, vocab_size: int, width: int, *, tied: bool = True
    ) -> None:
        """tied: whether it is also the head. If not, it may stay on disk and be read by rows."""
        self.vocab_size, self.width = vocab_size, width
        self._rows = None if tied else weights.rows_on_disk(f"{name}.weight", vocab_size, width)
        self._weight = None
        if self._rows is None:
            self._weight = weights.matrix(f"{name}.weight", vocab_size, width)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, tokens: NDArray[np.int32]) -> Floats:
        if self._rows is not None:
            return self._rows.values(tokens)
        assert self._weight is not None
        return kernels.embed(tokens, self._weight, threads=self._threads)

    def as_head(self, x: Rows, *, bias: Floats | None = None) -> Floats:
        """Return the logits (n, vocabulary) of x (n, width), + bias: the tied head."""
        assert self._weight is not None
        return kernels.matmul(x, self._weight, bias=bias, exact=self._exact, threads=self._threads)


MAX_LABELS = 2
"""Of a head of scores: one number, or "yes" and "no"."""


class NoHead:
    """Stands where a head would be in a model that makes embeddings or scores, and no text."""

    def __call__(self, _: Rows) -> Floats:
        """Raise UnsupportedModelError."""
        raise UnsupportedModelError(
            "This model has no output head: it makes embeddings or scores, and writes no text."
        )


def has_scores(weights: Weights) -> bool:
    """Check whether the checkpoint has a head that scores a text, as rerankers do."""
    return weights.has("score.weight")


def score_head(weights: Weights, hidden: int) -> Linear | None:
    """Make the head that scores a text, (n, hidden) -> (n, labels); None without one.

    Raises UnsupportedModelError for more than two labels: a score has no such thing.
    """
    if not has_scores(weights):
        return None
    labels, bias = weights.rows_of("score.weight"), weights.has("score.bias")
    if labels > MAX_LABELS:
        raise UnsupportedModelError(
            f"This model sorts texts into {labels:,} classes, and dure ranks by a score, which is "
            f"one label, or {MAX_LABELS}: yes and no.",
            hint="load a reranker, such as Qwen3-Reranker",
        )
    return Linear(weights, "score", labels, hidden, bias=bias)


def head(
    weights: Weights, embedding: Embedding, *, tied: bool, bias: bool = False
) -> Callable[[Rows], Floats]:
    """Make the output head, (n, hidden) -> (n, vocabulary): its own matrix, or the embedding's.

    tied: whether the config says that it is the embedding's. Some checkpoints repeat that one under
    the head's name; if theirs is another, the file counts and not the config, as in transformers.
    bias: whether it has one, whosever its matrix is.
    """
    own = tied and weights.has("lm_head.weight")
    if own and weights.are_same("lm_head.weight", "model.embed_tokens.weight"):
        weights.skip("lm_head.weight")
        own = False
    if tied and not own:
        added = weights.vector("lm_head.bias", embedding.vocab_size) if bias else None
        return partial(embedding.as_head, bias=added)
    if not tied and not weights.has("lm_head.weight") and (weights.is_bare or has_scores(weights)):
        return NoHead()
    return Linear(weights, "lm_head", embedding.vocab_size, embedding.width, bias=bias)


class RMSNorm:
    """x / sqrt(mean(x²) + eps) * (w + offset) over the last axis of x (n, width).

    Returns Activations: normed and quantised in one pass, when the next layer uses them. `floats`
    returns plain floats.
    """

    def __init__(
        self, weights: Weights, name: str, width: int, eps: float, *, offset: float = 0.0
    ) -> None:
        """offset: 1 if the checkpoint stores w - 1."""
        self.weight = weights.vector(f"{name}.weight", width, offset=offset)
        self._eps, self._threads = eps, weights.threads

    def __call__(self, x: Floats) -> kernels.Activations:
        return kernels.Activations(x, self.weight, self._eps)

    def floats(self, x: Floats) -> Floats:
        """Return the normed x (…, width) as plain floats."""
        return kernels.rms_norm(x, self.weight, self._eps, threads=self._threads)


class GatedMLP:
    """down(silu(gate x) * up x), fused; with gelu, GELU by its tanh and not silu."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        hidden: int,
        intermediate: int,
        *,
        bias: bool = False,
        gelu: bool = False,
        limit: float = 0.0,
    ) -> None:
        """bias: whether all three matrices have one. limit: of the activation (`Experts.limit`)."""
        self.weight = weights.gated_mlp(name, hidden, intermediate)
        biases = []
        if bias:
            widths = {"gate": intermediate, "up": intermediate, "down": hidden}
            biases = [
                weights.vector(f"{name}.{part}_proj.bias", width)[None]
                for part, width in widths.items()
            ]
        if self.weight is not None:  # None where tensors are missing
            if biases:
                self.weight.add_biases(*map(np.ascontiguousarray, biases))
            if gelu or weights.gelu:
                self.weight.use_gelu()
            if limit:
                self.weight.limit(limit)
        self._exact, self._threads = weights.exact, weights.threads

    def __call__(self, x: Rows, *, add: Floats | None = None) -> Floats:
        """Return the MLP of x (n, hidden) + add; add is added last."""
        return kernels.gated_mlp(x, self.weight, add=add, exact=self._exact, threads=self._threads)
