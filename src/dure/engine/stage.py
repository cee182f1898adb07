"""A stage: consecutive layers of a model with their part of the cache, computed in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure.engine.kv_storage import KVStorage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheDtype
    from dure.models import PoolingModel, StagedModel
    from dure.weights.span import Span

    Floats = NDArray[np.float32]


class Stage:
    """The layers of a span, whose weights the model has, and what they cache.

    Hidden states come in and go out as float32 (n, hidden): the bits that the whole model has
    between the same two layers.
    """

    def __init__(
        self,
        model: StagedModel,
        span: Span,
        *,
        num_blocks: int,
        num_window_blocks: int,
        num_states: int,
        cache_dtype: CacheDtype,
    ) -> None:
        """Allocate the cache of these layers; sizes as of `ModelRunner`."""
        self.model, self.span = model, span
        placed = list(zip(model.cache_layers, model.kv_cache_specs, strict=True))
        self.storage = KVStorage(
            [spec for layer, spec in placed if layer in span],
            num_blocks=num_blocks,
            num_window_blocks=num_window_blocks,
            num_states=num_states,
            dtype=cache_dtype,
        )
        own = iter(self.storage.arrays)
        elsewhere = np.zeros(0, np.float32)
        self._cache = [next(own) if layer in span else elsewhere for layer, _ in placed]

    def forward(self, batch: Batch, x: Floats | None) -> Floats:
        """Do what `batch.cache_ops` says, and run the layers on x (n, hidden).

        x: None in the first stage, which embeds the tokens. Returns (n, hidden); of the last stage
        those of `batch.wanted_rows` alone.
        """
        if batch.cache_ops:
            self.storage.apply(batch.cache_ops)
        if x is None:
            x = self.model.embed(batch)
        rows = batch.wanted_rows if self.span.ends else None
        if self.span.first == self.span.last:  # a last stage with the head alone
            return x if rows is None else x[rows]
        first, last = self.span.first, self.span.last
        return self.model.run(x, batch, self._cache, first=first, last=last, rows=rows)


def outputs_of(model: PoolingModel, x: Floats, batch: Batch) -> tuple[Floats, Floats | None]:
    """Return the logits of `batch.logit_rows`, and the normed states of its `hidden_rows`.

    x: the hidden states (m, hidden) of `batch.wanted_rows` after the last layer.
    """
    if batch.hidden_rows is None:
        return model.logits(x), None
    wanted = batch.wanted_rows
    every = np.arange(len(batch.tokens)) if wanted is None else wanted
    pooled = model.normed(x[np.searchsorted(every, batch.hidden_rows)])
    if len(batch.logit_rows) == 0:
        return np.zeros((0, model.vocab_size), np.float32), pooled
    return model.logits(x[np.searchsorted(every, batch.logit_rows)]), pooled
