"""A model whose hidden state is what it read: a token, its position from 1, and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_model import alphabet
from stepped import Stepped

from dure.pooling.config import PoolingConfig, RankConfig

RANKS = PoolingConfig(source="this test", rank=RankConfig("{query} {document}", ""))
"""What the checkpoint of a model that `ranks` would have said."""


class EmbeddingModel(Stepped):
    """Embeds; if `gated`, a test lets each of its steps be made. Its score is a letter's place."""

    hidden_size = 3

    def __init__(self, *, gated: bool = False, ranks: bool = False) -> None:
        super().__init__(alphabet)
        self.score = (lambda x: x[:, :1] - ord("b")) if ranks else None
        if not gated:
            self.let()

    def embed(self, batch: Any) -> Any:
        ones = np.ones(len(batch.tokens))
        return np.stack([batch.tokens, batch.positions + 1, ones], axis=1).astype(np.float32)

    def run(self, x: Any, batch: Any, cache: Any, *, rows: Any = None) -> Any:
        self.forward(batch, cache)
        return x if rows is None else x[rows]

    def normed(self, x: Any) -> Any:
        return x

    def logits(self, x: Any) -> Any:
        return np.zeros((len(x), self.vocab_size), np.float32)

    def head_rows(self, token_ids: Any) -> Any:
        return np.zeros((len(token_ids), 3), np.float32)
