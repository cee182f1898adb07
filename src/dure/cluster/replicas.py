"""Plan replicas of a model: whole pipelines on the nodes of a cluster, whose heads are here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dure import machine
from dure.cluster.actor import new_secret
from dure.cluster.chain import RemoteStage
from dure.cluster.nodes import Actor, Cluster, Node
from dure.cluster.plan import PipelinePlan, ask_rooms, room_beside
from dure.cluster.split import Cost, Room
from dure.cluster.subject import open_subject
from dure.errors import NotEnoughMemoryError
from dure.weights.span import Span

if TYPE_CHECKING:
    from dure import hub
    from dure.batch import CacheDtype

_Placed = tuple[Actor, Span, Room]  # a stage that is not here, with its layers and its node's room


def plan_replicas(
    name: str | os.PathLike[str] | None,
    *,
    address: str,
    replicas: int,
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
) -> list[PipelinePlan]:
    """Plan so many pipelines of the model `name` on the nodes of the Ray cluster at `address`.

    stages: of each, the head included, which all have in this process; "auto": the nodes are dealt
    out evenly, one stage on each. All caches have the same size. The rest is as for
    `plan.plan_pipeline`. Raises what that does, with the replica that there is no room for.
    """
    subject = open_subject(
        name,
        threads=threads,
        exact=exact,
        quantize=quantize,
        cache_dtype=cache_dtype,
        memory=memory,
        download_progress=download_progress,
    )
    count = None if stages == "auto" else int(stages)
    layers, budget = len(subject.costs.layers), subject.budget
    headless = replace(subject.costs, head=Cost())
    cluster, secret, actors = Cluster(address), new_secret(), list[Actor]()
    try:
        nodes = cluster.nodes()
        teams = deal(nodes, replicas, count)
        actors = [cluster.start(node, secret) for team in teams for node in team]
        left = iter(zip(actors, ask_rooms(actors, threads, budget), strict=True))
        own = room_beside(subject.threads, budget, actors)
        placed: list[list[_Placed]] = []
        for number, chosen in enumerate(teams, 1):
            has = [next(left) for _ in chosen]
            try:
                starts = subject.cut(
                    headless, [room for _, room in has], context, every=count is not None
                )
            except NotEnoughMemoryError as error:
                raise NotEnoughMemoryError(
                    f"There is no room for replica {number} of {replicas}: {error.message}",
                    hint="add a node, or ask for fewer replicas or a shorter context",
                ) from error
            *spans, head = Span.cut(layers, (*starts, layers))
            placed.append(
                [
                    (actor, span, room)
                    for (actor, room), span in zip(has, spans, strict=True)
                    if span
                ]
            )
        every = [each for team in placed for each in team]
        for actor in actors:
            if all(actor is not used for used, _, _ in every):
                actor.kill()
        sizes = subject.sizes(
            [*(span for _, span, _ in every), head],
            [*(room for _, _, room in every), own],
            context=context,
            cache_bytes=cache_bytes,
            conversations=conversations,
        )
    except BaseException:
        cluster.close(actors)
        raise
    order = subject.order(head, sizes, threads)
    here = next((node.host for node in nodes if node.is_here), "127.0.0.1")
    base = PipelinePlan(
        resolved=subject.resolved,
        checkpoint=subject.checkpoint,
        cluster=cluster,
        secret=secret,
        host=here,
        costs=subject.costs,
        remote=(),
        order=order,
        threads=threads or max(1, machine.usable_threads() // replicas),
        rooms=[own],
        budget=budget,
        sizes=sizes,
        hidden_bytes=4 * subject.model.hidden_size,
    )
    return _with_stages(base, placed)


def _with_stages(base: PipelinePlan, placed: Sequence[Sequence[_Placed]]) -> list[PipelinePlan]:
    """Return a plan for each replica, of its stages' nodes. base: has the head's alone."""
    crowded = [{actor.node.id for actor, _, _ in team} for team in placed]
    plans = []
    for team in placed:
        remote = [
            RemoteStage(
                actor,
                replace(
                    base.order, span=span, share=sum(actor.node.id in each for each in crowded)
                ),
                base.needs(span),
            )
            for actor, span, _ in team
        ]
        rooms = [*(room for _, _, room in team), *base.rooms]
        plans.append(replace(base, remote=remote, rooms=rooms))
    return plans


def deal(nodes: Sequence[Node], replicas: int, stages: int | None) -> list[list[Node]]:
    """Return the nodes of each replica's stages but its head.

    stages: of each replica, with the head; None: as many as there are nodes for. Other machines
    come first, as the server has the heads; where nodes are too few, they are shared.
    """
    order = [*(n for n in nodes if not n.is_here), *(n for n in nodes if n.is_here)]
    each = max(1, len(order) // replicas) if stages is None else stages - 1
    slots = [order[i % len(order)] for i in range(replicas * each)]
    return [slots[i * each : (i + 1) * each] for i in range(replicas)]
