"""The stages on other nodes, their links, and what happens when one of them is lost."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dure.batch import PassLostError
from dure.cluster.link import Door, Link, connect
from dure.cluster.nodes import Actor, ActorLostError, ActorSilentError, Cluster, Node
from dure.cluster.split import Costs, Room, cut
from dure.cluster.wire import FAILURE, Frame, WireError, pack, unpack
from dure.errors import ClusterError, DureError
from dure.weights.span import Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch
    from dure.cluster.actor import StageOrder
    from dure.cluster.work import Progress

_LOG = logging.getLogger("dure.cluster")

STALL_SECONDS = 120.0
"""A pass that takes a stage longer than this hangs."""

_ATTEMPTS = 5  # to link all stages
_LOOK_SECONDS = 1.0  # between two looks at stages that nothing comes from
_ANSWER_SECONDS = 10.0  # in which a stage that is alive tells what it is at
_GRACE_SECONDS = 1.0  # after them
_START_SECONDS = 120.0  # in which an actor must be there
_SILENT_START_SECONDS = 20.0  # the same, on a node that did not answer shortly before
_SILENT_SECONDS = 60.0  # that this is "shortly": Ray itself takes half a minute to give a node up
_LOAD_SECONDS = 6 * 3600.0  # in which it must have read its layers


class StageFailedError(RuntimeError):
    """A stage could not compute a pass."""


@dataclass
class RemoteStage:
    """One stage on another node."""

    actor: Actor
    order: StageOrder
    needs_bytes: int  # memory, all told
    cache_bytes: int = 0
    address: tuple[str, int] = ("", 0)
    last: Progress | None = None  # what it told last


@dataclass(frozen=True)
class StageStatus:
    """One stage, as people and dashboards see it."""

    node: str
    first_layer: int
    last_layer: int
    memory_bytes: int  # that it was planned with
    cache_bytes: int  # of that, for keys, values and states
    passes: int = 0  # since it was started, as the next three
    rows: int = 0
    busy_seconds: float = 0.0
    sent_bytes: int = 0
    queued: int = 0  # passes that wait for it
    replica: int = 1  # which one's stage it is


class Crowd:
    """All pipelines of one model: what they take of each node, and who places stages anew."""

    def __init__(self) -> None:
        self.placing = threading.Lock()  # one at a time: each must see what the others took
        self._members: list[Stages] = []

    def join(self, stages: Stages) -> None:
        """Count one more pipeline's stages."""
        self._members.append(stages)

    def held(self, node_id: str) -> int:
        """Return the bytes that stages on a node were planned with."""
        return sum(each.held(node_id) for each in self._members)


class Stages:
    """All stages but the last, linked to a ring that begins and ends in this process.

    When a stage is lost, another takes its layers, on its own node or on one that has room; if none
    has, the layers are cut anew for the nodes that are left. Everything on its way is then lost
    (PassLostError), and the engine computes it again: its next pass finds the stages in order.
    """

    def __init__(
        self,
        cluster: Cluster,
        stages: Sequence[RemoteStage],
        *,
        secret: bytes,
        host: str,
        budget: int | None,
        recut: Callable[[Sequence[Room]], tuple[int, ...]],
        needs: Callable[[Span], int],
        crowd: Crowd | None = None,
    ) -> None:
        """host: where the last of them links to this process.

        budget: of a node, in bytes. recut: the layers before which stages begin on nodes with such
        rooms, the end of the last of them too. needs: the bytes that a span takes. crowd: of
        several pipelines of one model; None: this is the only one.
        """
        self._crowd = Crowd() if crowd is None else crowd
        self._crowd.join(self)
        self._cluster, self.stages, self._secret = cluster, list(stages), secret
        self._budget, self._recut, self._needs = budget, recut, needs
        self._door = Door(host, secret)
        self._epoch = 0
        self._number = 0
        self._first: Link | None = None
        self._came: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self.restarts = 0
        self.recovery_seconds = 0.0  # that the last one took
        self.is_broken = True
        self._asking: threading.Thread | None = None
        self._silent: dict[str, float] = {}  # nodes that did not answer, and when

    @property
    def cache_bytes(self) -> int:
        """Bytes of their cache."""
        return sum(stage.cache_bytes for stage in self.stages)

    @property
    def is_whole(self) -> bool:
        """Whether all stages are linked, as far as is known."""
        return not self.is_broken and not self._over.is_set()

    def mend(self) -> None:
        """Put others in the place of lost stages; see `pipeline.Chain`."""
        self._recover()

    def start(self) -> None:
        """Load all stages at once, and link them. Raises what loading raises."""
        self._load(self.stages)
        self._link()

    def send(self, batch: Batch) -> None:
        """Give the first stage a batch; see `pipeline.Chain`."""
        if self.is_broken:
            self._recover()
        assert self._first is not None
        self._number += 1
        try:
            self._first.send(pack(self._number, batch, None))
        except OSError as error:
            self._unlink()
            raise PassLostError from error

    def receive(self) -> NDArray[np.float32]:
        """Return the hidden states of the oldest batch; see `pipeline.Chain`.

        Raises StageFailedError for a pass that a stage could not compute; then all are lost, too.
        """
        frame = None
        try:
            frame = self._wait()
        except (ActorLostError, OSError) as error:
            _LOG.warning("a stage was lost: %s", error)
        if frame is None:
            self._unlink()
            raise PassLostError
        if frame.kind == FAILURE:
            self.is_broken = True
            raise StageFailedError(str(frame.body, "utf-8", "replace"))
        try:
            x = unpack(frame)[1]
        except WireError as error:
            self.is_broken = True
            raise StageFailedError(error.message) from error
        assert x is not None
        return x

    def status(self) -> list[StageStatus]:
        """Return what each stage told last, and ask them for the next time; waits for none."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask_all, name="dure status", daemon=True)
            self._asking.start()
        return [_status_of(stage) for stage in self.stages]

    def _ask_all(self) -> None:
        calls = [(stage, stage.actor.begin("progress")) for stage in self.stages]
        for stage, call in calls:
            with suppress(ActorLostError):
                stage.last = stage.actor.result(call, _ANSWER_SECONDS)

    def held(self, node_id: str) -> int:
        """Return the bytes that its stages on a node were planned with."""
        return sum(s.needs_bytes for s in self.stages if s.actor.node.id == node_id)

    def end(self) -> None:
        """End all stages, links and threads."""
        self._unlink()
        self._door.close()
        for stage in self.stages:
            stage.actor.kill()

    def close(self) -> None:
        """End all stages, and the connection to the cluster."""
        self.end()
        self._cluster.close([])

    def _wait(self) -> Frame | None:
        """Wait for the next frame; None if the ring was cut. Raises ActorLostError."""
        while True:
            try:
                return self._came.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                self._look()

    def _look(self) -> None:
        """Raise ActorLostError if a stage does not answer, or is at one pass for too long."""
        for stage, answer in self._answers():
            if isinstance(answer, ActorLostError):
                raise answer
            stage.last = answer
            if answer is not None and answer.current_seconds > STALL_SECONDS:
                stage.actor.kill()
                raise ActorLostError(f"{stage.actor.node} hangs at a pass")

    def _answers(self) -> Iterator[tuple[RemoteStage, Progress | ActorLostError | None]]:
        """Ask all stages at once what they are at; one that does not answer in time is ended."""
        calls = [(stage, stage.actor.begin("progress")) for stage in self.stages]
        until = time.monotonic() + _ANSWER_SECONDS
        for stage, call in calls:
            try:
                with suppress(ActorSilentError):
                    yield stage, stage.actor.result(call, max(0.0, until - time.monotonic()))
                    continue
                # If this machine stood still, the answer is there by now.
                yield stage, stage.actor.result(call, _GRACE_SECONDS)
            except ActorLostError as error:
                if isinstance(error, ActorSilentError):
                    self._silent[stage.actor.node.id] = time.monotonic()
                    stage.actor.kill()  # so that nobody waits for it a second time
                yield stage, error

    def _is_silent(self, node: Node) -> bool:
        """Whether a node did not answer shortly before."""
        return time.monotonic() - self._silent.get(node.id, float("-inf")) < _SILENT_SECONDS

    def _link(self) -> None:
        """Link all stages to a ring of a new epoch. Raises ActorLostError or OSError."""
        self._unlink()
        self._epoch += 1
        self._over, self._came = threading.Event(), queue.SimpleQueue()
        reader = threading.Thread(
            target=_read,
            args=(self._door, self._epoch, self._over, self._came),
            name="dure ring",
            daemon=True,
        )
        reader.start()
        after = self._door.address
        for stage in reversed(self.stages):
            stage.actor.ask("join", self._epoch, after, seconds=_START_SECONDS)
            after = stage.address
        self._first = connect(after, self._secret, self._epoch)
        self.is_broken = False

    def _unlink(self) -> None:
        self.is_broken = True
        self._over.set()
        first, self._first = self._first, None
        if first is not None:
            first.close()

    def _load(self, stages: Sequence[RemoteStage]) -> None:
        calls = [(stage, stage.actor.begin("load", stage.order)) for stage in stages]
        for stage, call in calls:
            stage.address, stage.cache_bytes = stage.actor.result(call, _LOAD_SECONDS)

    def _recover(self) -> None:
        """Put others in the place of lost stages and link all anew.

        Raises NotEnoughMemoryError if no node has room, ClusterError if the stages cannot be
        linked: the next call tries again.
        """
        began = time.monotonic()
        self._unlink()
        for attempt in range(1, _ATTEMPTS + 1):
            lost = self._lost()
            try:
                if lost:
                    self.restarts += len(lost)
                    with self._crowd.placing:
                        self._replace(lost)
                self._link()
                break
            except (ActorLostError, OSError, WireError) as error:
                _LOG.warning("a stage was lost while others were linked: %s", error)
                if attempt == _ATTEMPTS:
                    raise ClusterError(
                        "The stages of this model cannot be linked.",
                        hint="`ray status` shows the nodes; a firewall may close their ports",
                        detail=str(error),
                    ) from error
        self.recovery_seconds = time.monotonic() - began
        _LOG.warning("%d stages lost; all linked after %.1f s", len(lost), self.recovery_seconds)

    def _lost(self) -> list[int]:
        """Return which stages do not answer any more; what is left of them is ended."""
        lost = []
        for index, (stage, answer) in enumerate(self._answers()):
            if answer is None or isinstance(answer, ActorLostError):
                _LOG.warning("stage %d is lost: %s", index + 1, answer or "it has no layers")
                stage.actor.kill()
                lost.append(index)
        return lost

    def _replace(self, lost: Sequence[int]) -> None:
        """Start each lost stage elsewhere, or cut the layers anew. Raises NotEnoughMemoryError."""
        found: list[RemoteStage] = []
        for index in lost:
            stage = self.stages[index]
            actor = self._actor_with_room(stage)
            if actor is None:
                for other in found:
                    other.actor.kill()
                self._cut_anew(lost)
                return
            found.append(replace(stage, actor=actor, last=None))
        for index, stage in zip(lost, found, strict=True):
            self.stages[index] = stage
        self._load(found)

    def _actor_with_room(self, stage: RemoteStage) -> Actor | None:
        """Start an actor on a node that has room for the stage: on its own, if that answers."""
        before, crowd = stage.actor.node, self._crowd

        def place(node: Node) -> tuple[bool, bool, bool, int]:
            silent = self._is_silent(node)
            return silent, node.id != before.id, node.is_here, crowd.held(node.id)

        for node in sorted(self._cluster.nodes(), key=place):
            actor = self._cluster.start(node, self._secret)
            seconds = _SILENT_START_SECONDS if self._is_silent(node) else _START_SECONDS
            try:
                room = actor.ask("room", 1, self._budget, 1, seconds=seconds)
            except ActorLostError:
                actor.kill()
                continue
            held = crowd.held(node.id)
            held -= stage.needs_bytes if node.id == before.id else 0
            limit = room.memory if self._budget is None else min(room.memory, self._budget - held)
            if limit >= stage.needs_bytes:
                return actor
            actor.kill()
        return None

    def _room_for(self, actor: Actor, kept: Sequence[RemoteStage]) -> Room:
        """Return what an actor's node has when the stages that are kept so far are ended."""
        threads = self.stages[0].order.threads
        room: Room = actor.ask("room", threads, None, 1, seconds=_START_SECONDS)
        given_back = sum(s.needs_bytes for s in kept if s.actor.node.id == actor.node.id)
        memory = room.memory + given_back
        if self._budget is not None:
            node = actor.node.id
            others = self._crowd.held(node) - self.held(node)
            memory = min(memory, max(0, self._budget - others))
        return replace(room, memory=memory)

    def _cut_anew(self, lost: Sequence[int]) -> None:
        """Cut the layers of all these stages for the nodes that are left."""
        kept = [s for i, s in enumerate(self.stages) if i not in lost]
        order, end = self.stages[0].order, self.stages[-1].order.span.last
        nodes = {stage.actor.node.id: stage.actor.node for stage in kept}
        for node in self._cluster.nodes():
            if not self._is_silent(node) and (not node.is_here or not nodes):
                nodes.setdefault(node.id, node)
        actors = [self._cluster.start(node, self._secret) for node in nodes.values()]
        try:
            starts = self._recut([self._room_for(actor, kept) for actor in actors])
        except BaseException:
            for actor in actors:
                actor.kill()
            raise
        for stage in kept:
            stage.actor.kill()
        edges = [0, *starts, end]
        made = []
        for actor, first, last in zip(actors, edges, edges[1:], strict=False):
            if first == last:
                actor.kill()
                continue
            span = Span(first, last, order.span.layers, headless=True)
            made.append(RemoteStage(actor, replace(order, span=span), self._needs(span)))
        self.stages = made
        self._load(made)


def plan_remote(
    name: str, costs: Costs, end: int, *, tokens: int, sequences: int
) -> Callable[[Sequence[Room]], tuple[int, ...]]:
    """Return what cuts the layers before `end` for the rooms of stages; see `Stages.recut`."""
    head = replace(costs.head, weight_bytes=0, read_bytes=0.0)
    part = replace(costs, layers=costs.layers[:end], head=head)

    def recut(rooms: Sequence[Room]) -> tuple[int, ...]:
        return cut(name, part, rooms, tokens=tokens, sequences=sequences)

    return recut


def _read(
    door: Door, epoch: int, over: threading.Event, came: queue.SimpleQueue[Frame | None]
) -> None:
    """Take what comes from the last of the stages until the ring is cut."""
    link: Link | None = None
    try:
        link = door.accept(epoch, _START_SECONDS, over)
        while not over.is_set():
            came.put(link.receive())
    except (OSError, DureError):
        pass
    finally:
        if link is not None:
            link.close()
        over.set()  # seen also while nothing is waited for
        came.put(None)


def _status_of(stage: RemoteStage) -> StageStatus:
    span, told = stage.order.span, stage.last
    status = StageStatus(
        str(stage.actor.node), span.first, span.last - 1, stage.needs_bytes, stage.cache_bytes
    )
    if told is None:
        return status
    return replace(
        status,
        passes=told.passes,
        rows=told.rows,
        busy_seconds=told.busy_seconds,
        sent_bytes=told.sent_bytes,
        queued=told.queued,
    )
