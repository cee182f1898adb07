"""ModelRunner: owns a model and its cache, and computes batches. The engine never sees either."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from dure.batch import CacheDtype, StateSpec, whole_past
from dure.engine.kv_storage import KVStorage
from dure.engine.stage import outputs_of
from dure.engine.windows import window_span
from dure.errors import InvalidRequestError
from dure.metering.shares import StepWork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dure.batch import Batch, KVCacheSpec
    from dure.models import HeadedModel, Model, PoolingModel
    from dure.weights.expert_pool import ExpertPool
    from dure.weights.expert_stats import ExpertStats

    Floats = NDArray[np.float32]


class ModelRunner:
    """One model with its cache on this machine, and what guesses tokens for it, if anything does.

    It computes a batch at a time. What guesses keeps its keys and values in the same blocks, in
    layers of their own: so a prefix that is found again has them, too. It keeps all of them, if it
    looks through a window, too.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        num_window_blocks: int | None = None,
        num_states: int = 0,
        cache_dtype: CacheDtype = "f16",
        draft_model: Model | None = None,
        draft_heads: bool = False,
        expert_pool: ExpertPool | None = None,
    ) -> None:
        """Allocate the cache.

        It has `num_blocks` blocks of 32 tokens in every attention layer, but `num_window_blocks` in
        every one with a window (None: as many), and `num_states` slots in every recurrent one, of
        which each running sequence needs one. draft_model: a smaller model of the same vocabulary.
        draft_heads: whether the model's own draft heads are used. expert_pool: where the model's
        experts live, if not all are in memory. Raises InvalidRequestError if a recurrent model gets
        no states, a window does not fit in its blocks, or a draft model is recurrent.
        """
        specs = model.kv_cache_specs
        recurrent = any(isinstance(spec, StateSpec) for spec in specs)
        if recurrent and num_states < 1:
            raise InvalidRequestError(
                "num_states must be at least 1 for a model with recurrent layers, "
                f"but is {num_states}."
            )
        self.model = model
        self.draft_model = draft_model
        self._expert_pool = expert_pool
        self.expert_stats: ExpertStats | None = None if expert_pool is None else expert_pool.stats
        self.row_errors: dict[int, Exception] = {}
        """Of the last batch: the rows whose experts could not be read, so that theirs is wrong."""
        self.passes = 1
        self.is_whole = True
        self._begun: Batch | None = None
        self.vocab_size = model.vocab_size
        self.context_length = model.context_length
        self.num_blocks = num_blocks
        self.num_states = num_states if recurrent else 0
        self.window = widest_window(specs)
        """Tokens that the layer with the largest window sees; 0 if none has one."""
        self.num_window_blocks = total_window_blocks(self.window, num_blocks, num_window_blocks)
        self.pooled: Floats | None = None
        """Of the last batch: the hidden states (k, hidden) of its `hidden_rows`, if it has any."""
        self.hidden: Floats | None = None
        """With draft heads: every row of the last batch, as they take it, (n, hidden)."""
        self._headed = cast("HeadedModel", model) if draft_heads else None
        self._num_layers = len(specs)
        self._cache_dtype: CacheDtype = cache_dtype
        drafting = () if draft_model is None else draft_model.kv_cache_specs
        if any(isinstance(spec, StateSpec) for spec in drafting):
            raise InvalidRequestError(
                "A model with recurrent layers cannot draft: its state cannot be taken back.",
                hint="choose a draft model with attention alone",
            )
        if self._headed is not None:
            drafting = self._headed.draft_cache_specs
        self.storage = KVStorage(
            (*specs, *map(whole_past, drafting)),
            num_blocks=num_blocks,
            num_window_blocks=self.num_window_blocks,
            num_states=num_states,
            dtype=cache_dtype,
        )

    @property
    def num_draft_heads(self) -> int:
        """How many draft heads of the model's own are used."""
        return 0 if self._headed is None else self._headed.num_draft_heads

    def step_work(self, row_bytes: int) -> StepWork:
        """Describe what a row of this model works on.

        row_bytes: weights that it goes through; 0: not known, which counts as the keys and values
        of 4,096 positions.
        """
        return StepWork.of_model(self.model.kv_cache_specs, self._cache_dtype, row_bytes)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.storage.size_bytes

    def mend(self) -> None:
        """Do nothing: what is in this process is never lost alone."""

    def begin(self, batch: Batch) -> None:
        """Take a batch, which `finish` computes; see `passes.Runner`."""
        self._begun = batch

    def finish(self) -> Floats:
        """Compute the batch that was begun, and return what `execute` does."""
        batch, self._begun = self._begun, None
        assert batch is not None
        return self.execute(batch)

    def execute(self, batch: Batch) -> Floats:
        """Do what `batch.cache_ops` says, run the model, and keep its keys and values.

        Returns logits float32 (len(batch.logit_rows), vocab_size). Afterwards `pooled` has the
        hidden states of its `hidden_rows`, and `row_errors` says which rows of the batch it could
        not compute; the others have the bits that they always do.
        """
        if batch.cache_ops:
            self.storage.apply(batch.cache_ops)
        if self._expert_pool is not None:
            sequences = len(np.unique(batch.sequences))
            self._expert_pool.begin_step(len(batch.tokens), sequences)
        try:
            return self._forward(batch)
        finally:
            self.row_errors = self._take_row_errors(batch)

    def _forward(self, batch: Batch) -> Floats:
        cache = self.storage.arrays[: self._num_layers]
        self.pooled = None
        if self._headed is not None:
            x = self._headed.run(self._headed.embed(batch), batch, cache)
            self.hidden = self._headed.draft_hidden(x)
            if batch.hidden_rows is not None:
                self.pooled = self._headed.normed(x[batch.hidden_rows])
            return self._headed.logits(x[batch.logit_rows])
        if batch.hidden_rows is None:
            return self.model.forward(batch, cache)
        model = cast("PoolingModel", self.model)
        x = model.run(model.embed(batch), batch, cache, rows=batch.wanted_rows)
        logits, self.pooled = outputs_of(model, x, batch)
        return logits

    def _take_row_errors(self, batch: Batch) -> dict[int, Exception]:
        """Return the batch's rows that an expert was missing for."""
        errors: dict[int, Exception] = {}
        wanted = batch.wanted_rows
        for failure in self._expert_pool.take_failures() if self._expert_pool else ():
            # The last layer computes the rows whose states are wanted, and no others.
            few = None if failure.of == len(batch.tokens) else wanted
            for row in failure.rows:
                errors.setdefault(row if few is None else int(few[row]), failure.error)
        return errors

    def draft(self, batch: Batch) -> Floats:
        """Compute logits (len(batch.logit_rows), its vocab_size) by the draft model."""
        assert self.draft_model is not None
        return self.draft_model.forward(batch, self.storage.arrays[self._num_layers :])

    def draft_heads(self, hidden: Floats, batch: Batch, head: int = 0) -> tuple[Floats, Floats]:
        """Compute what a draft head expects after batch.tokens, at positions 1 + head before them.

        hidden: (n, hidden) of these positions. Returns (m, hidden) and logits (m, vocab_size) of
        the batch's logit rows.
        """
        assert self._headed is not None
        cache = self.storage.arrays[self._num_layers :]
        guess = self._headed.draft(hidden, batch, cache, head=head)
        for failure in self._expert_pool.take_failures() if self._expert_pool else ():
            raise failure.error
        return guess


def widest_window(specs: Sequence[KVCacheSpec | StateSpec]) -> int:
    """Return the tokens that the layer with the largest window sees; 0 if none has one."""
    return max((spec.window or 0 for spec in specs), default=0)


def total_window_blocks(window: int, num_blocks: int, wanted: int | None) -> int:
    """Return how many blocks a layer with a window gets. Raises InvalidRequestError."""
    if not window:
        return 0
    least = min(num_blocks, window_span(window))
    if wanted is not None and wanted < least:
        raise InvalidRequestError(
            f"num_window_blocks must be at least {least} for a window of {window:,} tokens, "
            f"but is {wanted}."
        )
    return num_blocks if wanted is None else wanted
