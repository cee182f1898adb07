"""Per-layer embeddings: a token has an embedding of its own for every layer, beside the first.

Source: Gemma 4 as transformers has it (`Gemma4TextModel.project_per_layer_inputs`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dure.layers.basic import Embedding, Linear, RMSNorm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]


class LayerEmbeddings:
    """The embeddings of all layers: a table's row a token, and a projection of its first one."""

    def __init__(
        self,
        weights: Weights,
        *,
        layers: int,
        width: int,
        rows: int,
        hidden: int,
        norm_eps: float,
    ) -> None:
        """Load table and projection; the table is read by row from disk where experts are.

        width: of one layer's embedding; rows: the tokens that have some.
        """
        self.table = Embedding(
            weights, "model.embed_tokens_per_layer", rows, layers * width, tied=False
        )
        self.project = Linear(weights, "model.per_layer_model_projection", layers * width, hidden)
        self.norm = RMSNorm(weights, "model.per_layer_projection_norm", width, norm_eps)
        self._shape = layers, width
        self._scales = np.float32(width**0.5), np.float32(hidden**-0.5), np.float32(2**-0.5)

    def __call__(self, tokens: Ints, x: Floats) -> Floats:
        """Return (n, layers, width) of tokens (n,) and their scaled embeddings x (n, hidden)."""
        of_table, of_projection, of_sum = self._scales
        projected = (self.project(x) * of_projection).reshape(len(tokens), *self._shape)
        looked_up = self.table(tokens).reshape(projected.shape) * of_table
        return (self.norm.floats(projected) + looked_up) * of_sum


class LayerEmbedding:
    """Adds a layer's own embedding of the token: x + norm(up(gelu(gate x) * own))."""

    def __init__(
        self, weights: Weights, name: str, hidden: int, width: int, norm_eps: float
    ) -> None:
        """width: of the embedding."""
        self.gate = Linear(weights, f"{name}.per_layer_input_gate", width, hidden)
        self.up = Linear(weights, f"{name}.per_layer_projection", hidden, width)
        self.norm = RMSNorm(weights, f"{name}.post_per_layer_input_norm", hidden, norm_eps)

    def __call__(self, x: Floats, own: Floats) -> Floats:
        """Return x (n, hidden) with what the embedding `own` (n, width) adds."""
        gate = self.gate(x).astype(np.float64)
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        gated = (0.5 * gate * (1 + np.tanh(inner)) * own).astype(np.float32)
        return x + self.norm.floats(self.up(gated))
