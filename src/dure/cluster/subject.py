"""A model that is to be cut in stages, read from its headers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure import hub
from dure.batch import BLOCK_SIZE, CacheDtype
from dure.cluster.actor import StageOrder, version_here
from dure.cluster.files import fingerprint
from dure.cluster.split import Costs, Room, cut
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.formats.checkpoint import open_checkpoint
from dure.loading.cache_size import CacheSize
from dure.loading.memory import (
    DEFAULT_CONTEXT,
    OVERHEAD_BYTES,
    SMALLEST_CONTEXT,
    MemoryPlan,
    check_cache_dtype,
    check_memory,
    check_threads,
    plan_memory,
    state_slots,
)
from dure.models import header_model
from dure.weights.quantize import Scheme, check_scheme

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.weights.span import Span


@dataclass(frozen=True)
class Sizes:
    """What the caches of all stages have in common, in tokens and sequences."""

    context: int
    cache_tokens: int
    window_tokens: int
    num_states: int


@dataclass(frozen=True)
class Subject:
    """A model and how it is to be computed."""

    asked: str  # the name that it was asked for by
    resolved: hub.ResolvedModel
    checkpoint: Checkpoint
    model: Any  # without weights
    costs: Costs
    threads: int  # here
    budget: int | None  # of each node
    exact: bool
    scheme: Scheme | None
    dtype: CacheDtype

    @property
    def usual_context(self) -> int:
        """The context where none is asked for and it fits, in tokens."""
        usual: int = self.resolved.settings.context or DEFAULT_CONTEXT
        return min(int(self.model.context_length), usual)

    def cut(
        self, costs: Costs, rooms: Sequence[Room], context: int | None, *, every: bool
    ) -> tuple[int, ...]:
        """Return the layers before which stages begin, for the longest usual context that fits.

        costs: of the model, or of a part of it; every: as for `split.cut`. Raises what that does.
        """
        least = min(self.model.context_length, SMALLEST_CONTEXT)
        tokens = [self.usual_context, least] if context is None else [context]
        sequences = 2 if any(layer.state_bytes for layer in costs.layers) else 0
        name = self.resolved.name
        for each in tokens[:-1]:
            with suppress(NotEnoughMemoryError):
                return cut(name, costs, rooms, tokens=each, sequences=sequences, every=every)
        return cut(name, costs, rooms, tokens=tokens[-1], sequences=sequences, every=every)

    def order(self, span: Span, sizes: Sizes, threads: int | None) -> StageOrder:
        """Return what a stage of the span is to be; threads: None: its node's physical cores."""
        return StageOrder(
            name=self.asked or self.resolved.name,
            path=str(self.resolved.path.absolute()),
            fingerprint=fingerprint(self.checkpoint),
            version=version_here(),
            span=span,
            threads=threads,
            exact=self.exact,
            quantize=self.scheme,
            num_blocks=sizes.cache_tokens // BLOCK_SIZE,
            num_window_blocks=sizes.window_tokens // BLOCK_SIZE,
            num_states=sizes.num_states,
            cache_dtype=self.dtype,
        )

    def sizes(
        self,
        spans: Sequence[Span],
        rooms: Sequence[Room],
        *,
        context: int | None,
        cache_bytes: int | None,
        conversations: int,
    ) -> Sizes:
        """Plan a cache that fits in the stage of every span, in its room.

        Its blocks have the same numbers in all of them. Raises what `plan_memory` does.
        """
        model, dtype = self.model, self.dtype
        specs = list(zip(model.cache_layers, model.kv_cache_specs, strict=True))
        whole = CacheSize.of(model.kv_cache_specs, dtype, conversations=conversations)
        tokens = None if cache_bytes is None else whole.tokens_in(cache_bytes)
        parts = [self.costs.of_span(span) for span in spans]
        plans: list[MemoryPlan] = []
        states = 0
        for part, room in zip(parts, rooms, strict=True):
            if not part.state_bytes:
                continue
            slots = state_slots(part.state_bytes, room.memory - part.weight_bytes - OVERHEAD_BYTES)
            states = min(states or slots, slots)
        for part, span, room in zip(parts, spans, rooms, strict=True):
            if not span and span.headless:
                continue
            own = [spec for layer, spec in specs if layer in span]
            plans.append(
                plan_memory(
                    f"A stage of {self.resolved.name}",
                    wanted=context,
                    model_context=model.context_length,
                    size=CacheSize.of(own, dtype, conversations=conversations),
                    weight_bytes=part.weight_bytes + part.state_bytes * states,
                    available=room.memory,
                    cache_tokens=tokens,
                    conversations=conversations,
                    usual=self.usual_context,
                )
            )
        cache = min(plan.cache_tokens for plan in plans)
        context = min(plan.context for plan in plans)
        return Sizes(context, cache, whole.window_tokens(cache), states)


def open_subject(
    name: str | os.PathLike[str] | None,
    *,
    threads: int | None,
    exact: bool,
    quantize: str | None,
    cache_dtype: CacheDtype,
    memory: int | None,
    download_progress: Callable[[hub.Progress], None] | None,
) -> Subject:
    """Open the model `name`, and check the rest, which is as `load.load_pipeline` takes it.

    Raises InvalidRequestError for a model that cannot be cut, and what opening a model raises.
    """
    asked = "" if name is None else os.fspath(name)
    here = check_threads(threads)
    budget = None if memory is None else check_memory(memory)
    dtype = check_cache_dtype(cache_dtype, exact=exact)
    scheme = None if quantize is None else check_scheme(quantize)
    resolved = hub.resolve(asked or None, progress=download_progress)
    checkpoint = open_checkpoint(resolved.path)
    model, weights = header_model(checkpoint, exact=exact, quantize=scheme)
    costs = Costs.of(model, weights, dtype)
    if not costs.cuts:
        raise InvalidRequestError(
            f"{resolved.name} cannot be cut in stages: its layers need more of others than hidden "
            "states.",
            hint="serve it on one machine",
        )
    return Subject(asked, resolved, checkpoint, model, costs, here, budget, exact, scheme, dtype)
