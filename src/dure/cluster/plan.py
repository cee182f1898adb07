"""Plan a model in stages: which layers on which node, with a cache that fits in all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dure import hub
from dure.batch import CacheDtype
from dure.cluster.actor import StageOrder, new_secret, room_here
from dure.cluster.chain import RemoteStage
from dure.cluster.nodes import Actor, ActorLostError, Cluster, Node
from dure.cluster.split import Costs, Room, need
from dure.cluster.subject import Sizes, open_subject
from dure.errors import ClusterError
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
    subject = open_subject(
        name,
        threads=threads,
        exact=exact,
        quantize=quantize,
        cache_dtype=cache_dtype,
        memory=memory,
        download_progress=download_progress,
    )
    resolved, costs, budget = subject.resolved, subject.costs, subject.budget
    cluster, secret, actors = Cluster(address), new_secret(), []
    try:
        nodes = cluster.nodes()
        actors = [cluster.start(node, secret) for node in _chosen(nodes, count)]
        own = room_beside(subject.threads, budget, actors)
        rooms = [*ask_rooms(actors, threads, budget), own]
        starts = subject.cut(costs, rooms, context, every=count is not None)
        spans = Span.cut(len(costs.layers), starts)
        sizes = subject.sizes(
            spans, rooms, context=context, cache_bytes=cache_bytes, conversations=conversations
        )
        order = subject.order(spans[-1], sizes, threads)
        placed = [each for each in zip(actors, spans, rooms, strict=False) if each[1]]
        for actor in actors:
            if all(actor is not used for used, _, _ in placed):
                actor.kill()
    except BaseException:
        cluster.close(actors)
        raise
    plan = PipelinePlan(
        resolved=resolved,
        checkpoint=subject.checkpoint,
        cluster=cluster,
        secret=secret,
        host=next((node.host for node in nodes if node.is_here), "127.0.0.1"),
        costs=costs,
        remote=(),
        order=order,
        threads=subject.threads,
        rooms=[*(room for _, _, room in placed), rooms[-1]],
        budget=budget,
        sizes=sizes,
        hidden_bytes=4 * subject.model.hidden_size,
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


def ask_rooms(actors: Sequence[Actor], threads: int | None, budget: int | None) -> list[Room]:
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


def room_beside(threads: int, budget: int | None, actors: Sequence[Actor]) -> Room:
    """Return what this machine has for a last stage, beside actors on it."""
    share = 1 + sum(actor.node.is_here for actor in actors)
    return room_here(threads, budget, share)
