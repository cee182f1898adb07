"""Plan what of a model is kept in memory, and what of it is read from disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE
from dure.errors import NotEnoughMemoryError
from dure.loading.cache_size import ROWS, CacheSize
from dure.loading.draft import head_specs
from dure.loading.memory import (
    CONVERSATION_TOKENS,
    DEFAULT_CONTEXT,
    OVERHEAD_BYTES,
    MemoryPlan,
    MemoryUse,
    plan_memory,
    state_slots,
)
from dure.weights.streaming_pool import StreamingExpertPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dure.batch import CacheDtype, KVCacheSpec, StateSpec
    from dure.models import Model
    from dure.weights.expert_pool import ExpertPool
    from dure.weights.sizes import WeightBytes

MOST_ROWS = 4096
"""Prompt tokens in a step at most, where experts are read from disk."""

PROCESS_BYTES = 104 << 20
"""The interpreter, the vocabulary, and what freed buffers keep."""

READERS_BYTES = 48 << 20
"""What reading takes: pieces on their way, and records that the file system holds for a moment."""

CACHE_SHARE = 8
"""A KV cache that nobody asked for takes at most this part of what is left for it and experts."""

BUFFER_SHARE = 3
"""Long prompts take at most this part of the experts' cache while they are computed."""

LOGIT_BYTES = 16
"""What drawing a token takes for each token of the vocabulary: scores, probabilities, an order."""

SPARE_SHARE = 16
"""Part of the free memory that stays free where no budget was given: for other programs."""


@dataclass(frozen=True)
class Plan:
    """What a model gets."""

    context: int  # tokens of the longest sequence
    cache_tokens: int
    window_tokens: int  # of layers with a window, which keep no more than these; 0 without any
    num_states: int
    row_bytes: int  # that a row of a step may add to the cache
    sequence_bytes: int  # that a sequence of a step may add: a block, states, its logits
    memory: MemoryUse


class Planner:
    """Plans one model's memory: what every token needs first, then the cache, then experts."""

    def __init__(
        self,
        name: str,
        *,
        weights: WeightBytes,
        draft_bytes: int,
        draft_specs: Sequence[KVCacheSpec | StateSpec],
        budget: int | None,
        available: int,
        context: int | None,
        usual_context: int = DEFAULT_CONTEXT,
        cache_bytes: int | None,
        cache_tokens: int | None,
        cache_dtype: CacheDtype,
        conversations: int,
        replicas: int = 1,
    ) -> None:
        """weights: of the model; draft_bytes, draft_specs: of a smaller one that drafts for it.

        budget and available: bytes, of all that the process may take and of what is free; the rest
        as `load` takes it.
        """
        self._name = name
        self._weights, self._draft_bytes, self._draft_specs = weights, draft_bytes, draft_specs
        self._budget, self._available = budget, available
        self._usual = usual_context
        self._context, self._cache_bytes, self._cache_tokens = context, cache_bytes, cache_tokens
        self._cache_dtype, self._conversations = cache_dtype, conversations
        self._replicas = replicas

    @property
    def may_stream(self) -> bool:
        """Whether the model has experts that could be read from disk."""
        return self._weights.experts > 0

    def fits(self, model: Model) -> bool:
        """Check whether the model fits in memory whole. Raises InvalidRequestError."""
        try:
            self.plan(model, None)
        except NotEnoughMemoryError:
            return False
        return True

    def plan(self, model: Model, pool: ExpertPool | None) -> Plan:
        """Plan for a model that is all in memory, or for one that was built with this pool.

        Raises NotEnoughMemoryError for what does not fit, with the number that would do;
        InvalidRequestError for a context that the model or the cache does not have.
        """
        if isinstance(pool, StreamingExpertPool):
            return self._streamed(model, pool)
        return self._whole(model, 0 if pool is None else pool.left_bytes)

    def _whole(self, model: Model, left: int) -> Plan:
        weights = self._weights.total + self._draft_bytes - left
        states, state_bytes = self._states(model, self._limit - weights - OVERHEAD_BYTES)
        size = self._size(model, ROWS)
        plan = self._plan(model, ROWS, weights + state_bytes, self._cache_tokens)
        use = MemoryUse(
            budget=self._budget,
            resident_bytes=weights - self._weights.experts,
            cache_bytes=size.bytes_of(plan.cache_tokens),
            state_bytes=state_bytes,
            overhead_bytes=OVERHEAD_BYTES,
            expert_bytes=self._weights.experts,
            expert_cache_bytes=self._weights.experts,
            streamed=False,
            prefill_rows=ROWS,
            left_bytes=left,
        )
        return self._result(model, plan, size, states, use)

    def _streamed(self, model: Model, pool: StreamingExpertPool) -> Plan:
        experts = pool.nbytes
        resident = max(0, self._weights.total - self._weights.experts - pool.left_bytes)
        resident += self._draft_bytes
        overhead = PROCESS_BYTES + READERS_BYTES + ROWS * pool.row_bytes
        beside = overhead - OVERHEAD_BYTES + pool.least_bytes
        spare = self._available // SPARE_SHARE if self._budget is None else 0
        room = self._limit - spare - resident - overhead
        states, state_bytes = self._states(model, room // CACHE_SHARE)
        size = self._size(model, MOST_ROWS)
        tokens = self._cache_tokens
        if tokens is None:
            beside_cache = room - state_bytes
            share = min(beside_cache // CACHE_SHARE, beside_cache - pool.least_bytes)
            share = size.tokens_in(share)
            wanted = self._conversations * CONVERSATION_TOKENS
            if self._context is None:
                wanted = max(self._usual, wanted)
            tokens = min(wanted, max(CONVERSATION_TOKENS, share))
            tokens = max(self._context or 0, min(tokens, model.context_length))
        plan = self._plan(model, MOST_ROWS, resident + state_bytes + beside + spare, tokens)
        cache = size.bytes_of(plan.cache_tokens)
        kept = min(experts, room - state_bytes - cache)
        rows = ROWS + kept // BUFFER_SHARE // max(1, pool.row_bytes)
        use = MemoryUse(
            budget=self._budget,
            resident_bytes=resident,
            cache_bytes=cache,
            state_bytes=state_bytes,
            overhead_bytes=overhead,
            expert_bytes=experts,
            expert_cache_bytes=kept,
            streamed=True,
            prefill_rows=min(MOST_ROWS, rows // ROWS * ROWS),
            left_bytes=pool.left_bytes,
        )
        return self._result(model, plan, size, states, use)

    def _result(
        self, model: Model, plan: MemoryPlan, size: CacheSize, states: int, use: MemoryUse
    ) -> Plan:
        row = size.token_bytes + size.window_bytes
        state = sum(layer.bytes_per_sequence for layer in model.kv_cache_specs)
        return Plan(
            plan.context,
            plan.cache_tokens,
            size.window_tokens(plan.cache_tokens),
            states,
            row,
            BLOCK_SIZE * row + 2 * state + LOGIT_BYTES * model.vocab_size,
            use,
        )

    @property
    def _limit(self) -> int:
        if self._budget is None:
            return self._available
        return min(self._budget, self._available)

    def _plan(
        self, model: Model, rows: int, weight_bytes: int, cache_tokens: int | None
    ) -> MemoryPlan:
        return plan_memory(
            self._name,
            wanted=self._context,
            model_context=model.context_length,
            size=self._size(model, rows),
            weight_bytes=weight_bytes,
            available=self._available,
            cache_bytes=self._cache_bytes,
            cache_tokens=cache_tokens,
            conversations=self._conversations,
            budget=self._budget,
            usual=self._usual,
            smaller=self._size(model, rows, "q8") if self._cache_dtype == "f16" else None,
        )

    def _size(self, model: Model, rows: int, dtype: CacheDtype | None = None) -> CacheSize:
        """Return what the caches of all replicas take where a step has up to so many rows.

        dtype: of the cache; None: the one that is asked for.
        """
        return CacheSize.of(
            list(model.kv_cache_specs) * self._replicas,
            dtype or self._cache_dtype,
            whole=(*self._draft_specs, *head_specs(model)) * self._replicas,
            conversations=self._conversations,
            rows=rows,
        )

    def _states(self, model: Model, room: int) -> tuple[int, int]:
        """Return the number of recurrent states of a replica, and the bytes of all."""
        sequence_bytes = sum(layer.bytes_per_sequence for layer in model.kv_cache_specs)
        sequence_bytes *= self._replicas
        states = state_slots(sequence_bytes, room)
        return states, states * sequence_bytes
