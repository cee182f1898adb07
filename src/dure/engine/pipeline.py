"""Pipeline: a runner whose model lies in stages, of which the last is here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from dure.engine.model_runner import total_window_blocks, widest_window
from dure.engine.stage import outputs_of
from dure.metering.shares import StepWork

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheDtype
    from dure.engine.stage import Stage
    from dure.weights.expert_stats import ExpertStats

    Floats = NDArray[np.float32]


class Chain(Protocol):
    """The stages before the last, wherever they are."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of their cache."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether all of them are there and linked."""
        ...

    def mend(self) -> None:
        """Start again what is lost; raises what `send` does, but PassLostError."""
        ...

    def send(self, batch: Batch) -> None:
        """Give the first of them a batch. Raises PassLostError if a stage's cache is lost."""
        ...

    def receive(self) -> Floats:
        """Return the hidden states (n, hidden) of the oldest batch, as the last of them left them.

        Raises PassLostError as `send` does: then nothing that was sent comes any more.
        """
        ...


class StagesHere:
    """Stages in this process, one after another."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._waiting: deque[Batch] = deque()
        self.is_whole = True

    def mend(self) -> None:
        """Do nothing: what is in this process is never lost alone."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of their cache."""
        return sum(stage.storage.size_bytes for stage in self._stages)

    def send(self, batch: Batch) -> None:
        """Take a batch, which `receive` computes."""
        self._waiting.append(batch)

    def receive(self) -> Floats:
        """Compute the oldest batch; return its hidden states (n, hidden)."""
        batch, x = self._waiting.popleft(), None
        for stage in self._stages:
            x = stage.forward(batch, x)
        assert x is not None
        return x


class Pipeline:
    """Runs batches through a chain of stages and the last one, which is in this process.

    Several batches are on their way at once, so that every stage has one. Each stage computes them
    in the order in which they were begun: what one leaves in the cache the next ones find.
    """

    def __init__(
        self,
        chain: Chain | None,
        last: Stage,
        *,
        num_blocks: int,
        num_window_blocks: int | None = None,
        num_states: int = 0,
        cache_dtype: CacheDtype = "f16",
        passes: int,
    ) -> None:
        """Take the stages, whose caches have these sizes; chain: None if the last has all layers.

        passes: batches on their way at once, at best one a stage.
        """
        model, specs = last.model, last.model.kv_cache_specs
        self._chain, self._last = chain, last
        self.passes = passes
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self.num_blocks = num_blocks
        self.num_states = num_states if any(spec.kind == "state" for spec in specs) else 0
        self.window = widest_window(specs)
        self.num_window_blocks = total_window_blocks(self.window, num_blocks, num_window_blocks)
        self.pooled: Floats | None = None
        self.row_errors: dict[int, Exception] = {}
        self.expert_stats: ExpertStats | None = None
        self._cache_dtype: CacheDtype = cache_dtype
        self._begun: deque[Batch] = deque()

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache, in all stages."""
        before = 0 if self._chain is None else self._chain.cache_bytes
        return before + self._last.storage.size_bytes

    @property
    def is_whole(self) -> bool:
        """Whether all stages are there and linked."""
        return self._chain is None or self._chain.is_whole

    def mend(self) -> None:
        """Start lost stages again; see `passes.Runner`."""
        if self._chain is not None:
            self._chain.mend()

    def step_work(self, row_bytes: int) -> StepWork:
        """Describe what a row works on; see `ModelRunner`."""
        return StepWork.of_model(self._last.model.kv_cache_specs, self._cache_dtype, row_bytes)

    def begin(self, batch: Batch) -> None:
        """Send a batch on its way; see `passes.Runner`."""
        try:
            if self._chain is not None:
                self._chain.send(batch)
        except Exception:  # whatever it was, nothing that was begun comes any more
            self._begun.clear()
            raise
        self._begun.append(batch)

    def finish(self) -> Floats:
        """Compute the last stage of the oldest batch, and return its logits."""
        try:
            x = None if self._chain is None else self._chain.receive()
        except Exception:
            self._begun.clear()
            raise
        batch = self._begun.popleft()
        states = self._last.forward(batch, x)
        logits, self.pooled = outputs_of(self._last.model, states, batch)
        return logits
