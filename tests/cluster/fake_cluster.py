"""A cluster in this process: actors are objects, nodes are names, and both can be lost."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dure.cluster.actor import StageActor
from dure.cluster.nodes import ActorLostError, ActorSilentError, Node
from dure.cluster.split import Room

HOST = "127.0.0.1"


@dataclass
class FakeNode:
    """A node with so much memory, of which each loaded stage takes what it was planned with."""

    name: str
    memory: int = 1 << 40
    speed: float = 1e9
    alive: bool = True
    is_cut: bool = False  # its network: nothing there answers
    actors: list[FakeActor] = field(default_factory=list)


class FakeActor:
    """A StageActor that is called on threads of its own, as Ray does."""

    def __init__(self, node: FakeNode, secret: bytes, *, is_here: bool) -> None:
        self.node = Node(node.name, HOST, is_here)
        self.inner = StageActor(secret, HOST)
        self.alive = node.alive
        self.hangs = False
        self.loads = 0
        self._fake = node
        self._threads = ThreadPoolExecutor(4)
        node.actors.append(self)

    def ask(self, method: str, *args: Any, seconds: float) -> Any:
        return self.result(self.begin(method, *args), seconds)

    def begin(self, method: str, *args: Any) -> Future[Any]:
        if not self.alive or not self._fake.alive:
            gone: Future[Any] = Future()
            gone.set_exception(ActorLostError(f"{self._fake.name} was lost"))
            return gone
        if self.hangs or self._fake.is_cut:
            return Future()
        if method == "room":
            return self._threads.submit(lambda: Room(self._fake.memory, self._fake.speed))
        self.loads += method == "load"
        return self._threads.submit(getattr(self.inner, method), *args)

    def result(self, call: Future[Any], seconds: float) -> Any:
        silent = self.hangs or self._fake.is_cut
        try:
            return call.result(timeout=min(seconds, 0.5) if silent else seconds)
        except TimeoutError as error:
            raise ActorSilentError("no answer") from error

    def kill(self) -> None:
        """End it as SIGKILL does: its sockets close."""
        self.alive = False
        self.inner.close()


class FakeCluster:
    """What `Cluster` is, over FakeNodes; the server's own node is the first of `nodes`."""

    def __init__(self, *nodes: FakeNode) -> None:
        self.fakes = list(nodes)
        self.closed = threading.Event()

    def nodes(self) -> list[Node]:
        return [
            Node(each.name, HOST, index == 0) for index, each in enumerate(self.fakes) if each.alive
        ]

    def start(self, node: Node, secret: bytes) -> FakeActor:
        fake = next(each for each in self.fakes if each.name == node.id)
        return FakeActor(fake, secret, is_here=node.is_here)

    def close(self, actors: Any) -> None:
        for actor in actors:
            actor.kill()
        self.closed.set()

    @property
    def living(self) -> list[FakeActor]:
        return [actor for fake in self.fakes for actor in fake.actors if actor.alive and fake.alive]


def cut(fake: FakeNode) -> None:
    """Cut a node's network: what runs there goes on, and nobody hears of it."""
    fake.is_cut = True
    for actor in fake.actors:
        assert actor.inner._work is not None
        actor.inner._work.leave()


def lose(fake: FakeNode) -> None:
    """Let a node die with all that runs on it."""
    fake.alive = False
    for actor in fake.actors:
        actor.kill()
