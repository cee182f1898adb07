"""Plan a model in stages: which layers on which node, with a cache that fits in all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure import hub
from dure.batch import BLOCK_SIZE, CacheDtype
from dure.cluster.actor import StageOrder, new_secret, room_here, version_here
from dure.cluster.chain import RemoteStage
from dure.cluster.files import fingerprint
from dure.cluster.nodes import Actor, ActorLostError, Cluster, Node
from dure.cluster.split import Cost, Costs, Room, cut, need
from dure.errors import ClusterError, InvalidRequestError, NotEnoughMemoryError
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
from dure.weights.quantize import check_scheme
from dure.weights.span import Span

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

_ROOM_SECONDS = 180.0  # in which a node must tell what it has


@dataclass(frozen=True)
class PipelinePlan:
    """Where the layers of a model go. Its actors run already, and have loaded nothing."""

    resolved: hub.ResolvedModel
    checkpoint: Checkpoint
    cluster: Cluster
    secret: bytes
    host: str  # of this machine, for links
    costs: Costs
    remote: Sequence[RemoteStage]
    order: StageOrder  # of the last stage, which is here
    threads: int  # here
    rooms: Sequence[Room]  # of the remote stages, then of the last
    budget: int | None
    sizes: Sizes
    hidden_bytes: int  # of a token between two stages

    def needs(self, span: Span) -> int:
        """Return the bytes of memory that a stage of the span takes."""
        return need(self.costs.of_span(span), self.sizes.cache_tokens, self.sizes.num_states)

    def seconds(self, span: Span, room: Room) -> float:
        """Return how long one token's weights take in a stage, by the speed of its node."""
        return self.costs.of_span(span).read_bytes / room.speed

    def close(self) -> None:
        """End the actors and the connection."""
        self.cluster.close([stage.actor for stage in self.remote])


@dataclass(frozen=True)
class Sizes:
    """What the caches of all stages have in common, in tokens and sequences."""

    context: int
    cache_tokens: int
    window_tokens: int
    num_states: int


def plan_pipeline(
    name: str | os.PathLike[str] | None,
    *,
    address: str,
    stages: int | str = "auto",
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    quantize: str | None = None,
    cache_bytes: int | None = None,
    cache_dtype: CacheDtype = "f16",
    conversations: int = 1,
    memory: int | None = None,
    download_progress: Callable[[hub.Progress], None] | None = None,
) -> PipelinePlan:
    """Plan the model `name` in stages on the nodes of the Ray cluster at `address`.

    Arguments as of `load.load_pipeline`. No weight is read. Raises NotEnoughMemoryError if it does
    not fit, InvalidRequestError for a model that cannot be cut, and what opening a model raises.
    """
    count = None if stages == "auto" else int(stages)
    asked = "" if name is None else os.fspath(name)
    here_threads = check_threads(threads)
    budget = None if memory is None else check_memory(memory)
    dtype = check_cache_dtype(cache_dtype, exact=exact)
    scheme = None if quantize is None else check_scheme(quantize)
    resolved = hub.resolve(asked or None, progress=download_progress)
    checkpoint = open_checkpoint(resolved.path)
    model, weights = header_model(checkpoint, quantize=scheme)
    costs = Costs.of(model, weights, dtype)
    if not costs.cuts:
        raise InvalidRequestError(
            f"{resolved.name} cannot be cut in stages: its layers need more of others than hidden "
            "states.",
            hint="serve it on one machine",
        )
    cluster, secret, actors = Cluster(address), new_secret(), []
    try:
        nodes = cluster.nodes()
        actors = [cluster.start(node, secret) for node in _chosen(nodes, count)]
        rooms = [*_rooms(actors, threads, budget), _own_room(here_threads, budget, actors)]
        recurrent = any(layer.state_bytes for layer in costs.layers)
        usual = min(model.context_length, resolved.settings.context or DEFAULT_CONTEXT)
        least = min(model.context_length, SMALLEST_CONTEXT)
        starts = _cut(
            resolved.name,
            costs,
            rooms,
            [usual, least] if context is None else [context],
            sequences=2 if recurrent else 0,
            every=count is not None,
        )
        spans = Span.cut(len(costs.layers), starts)
        sizes = _sizes(
            model,
            [costs.of_span(span) for span in spans],
            spans,
            rooms,
            name=resolved.name,
            dtype=dtype,
            context=context,
            cache_bytes=cache_bytes,
            conversations=conversations,
            usual=usual,
        )
        order = StageOrder(
            name=asked or resolved.name,
            path=str(resolved.path.absolute()),
            fingerprint=fingerprint(checkpoint),
            version=version_here(),
            span=spans[-1],
            threads=threads,
            exact=exact,
            quantize=scheme,
            num_blocks=sizes.cache_tokens // BLOCK_SIZE,
            num_window_blocks=sizes.window_tokens // BLOCK_SIZE,
            num_states=sizes.num_states,
            cache_dtype=dtype,
        )
        placed = [each for each in zip(actors, spans, rooms, strict=False) if each[1]]
        for actor in actors:
            if all(actor is not used for used, _, _ in placed):
                actor.kill()
    except BaseException:
        cluster.close(actors)
        raise
    plan = PipelinePlan(
        resolved=resolved,
        checkpoint=checkpoint,
        cluster=cluster,
        secret=secret,
        host=next((node.host for node in nodes if node.is_here), "127.0.0.1"),
        costs=costs,
        remote=(),
        order=order,
        threads=here_threads,
        rooms=[*(room for _, _, room in placed), rooms[-1]],
        budget=budget,
        sizes=sizes,
        hidden_bytes=4 * model.hidden_size,
    )
    remote = [
        RemoteStage(actor, replace(order, span=span), plan.needs(span)) for actor, span, _ in placed
    ]
    return replace(plan, remote=remote)


def _chosen(nodes: Sequence[Node], count: int | None) -> list[Node]:
    """Return the node of each stage but the last, which is here.

    Other machines come first; on a cluster of this one alone its stages share it.
    """
    others = [node for node in nodes if not node.is_here] or list(nodes)
    wanted = len(others) if count is None else count - 1
    return [others[i % len(others)] for i in range(wanted)]


def _rooms(actors: Sequence[Actor], threads: int | None, budget: int | None) -> list[Room]:
    """Ask each actor what its node has for it, with those that share it."""
    ids = [actor.node.id for actor in actors]
    shares = [ids.count(each) + actor.node.is_here for each, actor in zip(ids, actors, strict=True)]
    calls = [
        actor.begin("room", threads, budget, share)
        for actor, share in zip(actors, shares, strict=True)
    ]
    rooms = []
    for actor, call in zip(actors, calls, strict=True):
        try:
            rooms.append(actor.result(call, _ROOM_SECONDS))
        except ActorLostError as error:
            raise ClusterError(
                f"No stage could be started on {actor.node}: {error}.",
                hint="install the same dure and Python there as here; `ray status` shows nodes",
            ) from error
    return rooms


def _own_room(threads: int, budget: int | None, actors: Sequence[Actor]) -> Room:
    """Return what this machine has for the last stage, beside others on it."""
    share = 1 + sum(actor.node.is_here for actor in actors)
    return room_here(threads, budget, share)


def _cut(
    name: str,
    costs: Costs,
    rooms: Sequence[Room],
    tokens: Sequence[int],
    sequences: int,
    *,
    every: bool,
) -> tuple[int, ...]:
    """Cut for the first of these context lengths that fits. Raises NotEnoughMemoryError."""
    for each in tokens[:-1]:
        with suppress(NotEnoughMemoryError):
            return cut(name, costs, rooms, tokens=each, sequences=sequences, every=every)
    return cut(name, costs, rooms, tokens=tokens[-1], sequences=sequences, every=every)


def _sizes(
    model: Any,
    parts: Sequence[Cost],
    spans: Sequence[Span],
    rooms: Sequence[Room],
    *,
    name: str,
    dtype: CacheDtype,
    context: int | None,
    cache_bytes: int | None,
    conversations: int,
    usual: int,
) -> Sizes:
    """Plan a cache that fits in every stage: its blocks have the same numbers in all of them."""
    specs = list(zip(model.cache_layers, model.kv_cache_specs, strict=True))
    whole = CacheSize.of(model.kv_cache_specs, dtype, conversations=conversations)
    tokens = None if cache_bytes is None else whole.tokens_in(cache_bytes)
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
                f"A stage of {name}",
                wanted=context,
                model_context=model.context_length,
                size=CacheSize.of(own, dtype, conversations=conversations),
                weight_bytes=part.weight_bytes + part.state_bytes * states,
                available=room.memory,
                cache_tokens=tokens,
                conversations=conversations,
                usual=usual,
            )
        )
    cache = min(plan.cache_tokens for plan in plans)
    return Sizes(min(plan.context for plan in plans), cache, whole.window_tokens(cache), states)
