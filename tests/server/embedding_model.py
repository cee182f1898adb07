"""A model for embeddings and ranks, whose hidden states are ScriptModel's: what it read."""

from __future__ import annotations

from fake_model import alphabet
from stepped import Stepped

from dure.pooling.config import PoolingConfig, RankConfig

RANKS = PoolingConfig(source="this test", rank=RankConfig("{query} {document}", ""))
"""What the checkpoint of a model that `ranks` would have said."""


class EmbeddingModel(Stepped):
    """Embeds; if `gated`, a test lets each of its steps be made. Its score is a letter's place."""

    def __init__(self, *, gated: bool = False, ranks: bool = False) -> None:
        super().__init__(alphabet)
        if ranks:
            self.score = lambda x: x[:, :1] - ord("b")
        if not gated:
            self.let()
