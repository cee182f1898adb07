"""The nodes of a Ray cluster, and actors on them. The only file that knows Ray."""

# ruff: noqa: PLC0415 - Ray is an extra, and takes a second to import

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.cluster.actor import StageActor
from dure.errors import DureError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCAL = "local"
"""The address that means: a Ray of our own on this machine, which goes when we go."""

_CALLS_AT_ONCE = 8  # of an actor: it answers while it loads


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray knows it."""

    id: str
    host: str  # its address
    is_here: bool  # whether this process is on it

    def __str__(self) -> str:
        return self.host


class ActorLostError(Exception):
    """An actor, or its node, is gone or does not answer."""


class ActorSilentError(ActorLostError):
    """An actor does not answer: it hangs, or its node cannot be reached."""


class Actor:
    """An actor on a node. Calls that do not answer in time raise ActorSilentError."""

    def __init__(self, node: Node, handle: Any) -> None:
        self.node, self._handle = node, handle

    def ask(self, method: str, *args: Any, seconds: float) -> Any:
        """Call a method and wait for its result. Raises what it raises, or ActorLostError."""
        return self.result(self.begin(method, *args), seconds)

    def begin(self, method: str, *args: Any) -> Any:
        """Call a method; `result` waits for it."""
        return getattr(self._handle, method).remote(*args)

    def result(self, call: Any, seconds: float) -> Any:
        """Return the result of a call that was begun."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return ray.get(call, timeout=seconds)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DureError | OSError):
                raise cause from None
            raise
        except GetTimeoutError as error:
            raise ActorSilentError(f"{self.node} did not answer for {seconds:.0f} s") from error
        except RayError as error:
            raise ActorLostError(f"{self.node} was lost") from error

    def kill(self) -> None:
        """End the actor's process, whatever it does."""
        import ray

        if not ray.is_initialized():  # the connection is gone, and asking would start a Ray here
            return
        with suppress(Exception):
            ray.kill(self._handle)


class _StageInRay(StageActor):
    """A stage in a process of its own, which Ray has started."""

    def __init__(self, secret: bytes, host: str) -> None:
        _be_as_urgent_as_ray()
        super().__init__(secret, host)


def _be_as_urgent_as_ray() -> None:
    """Give this process the priority that Ray itself has on this node, where it may.

    Ray runs actors 15 steps of niceness lower, so that a stage would wait for whatever else runs
    there. Only root may undo that; others start Ray with RAY_worker_niceness=0.
    """
    threads = Path("/proc/self/task")
    for thread in [*threads.iterdir()] if threads.is_dir() else []:  # of Linux: each has its own
        with suppress(OSError):
            nice = os.getpriority(os.PRIO_PROCESS, os.getppid())
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


class Cluster:
    """A connection to Ray; `close` ends what it started."""

    def __init__(self, address: str) -> None:
        """address: LOCAL, "auto" for the cluster that runs on this machine, or HOST:PORT.

        Raises InvalidRequestError without Ray, or for a cluster that cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told who uses it
        try:
            import ray
        except ImportError as error:
            raise InvalidRequestError(
                "Stages on several machines need Ray.", hint="pip install 'dure[ray]'"
            ) from error
        self._was_there = ray.is_initialized()
        if not self._was_there:
            os.environ.setdefault("RAY_worker_niceness", "0")  # for LOCAL: see _be_as_urgent_as_ray
            options: dict[str, Any] = {"address": address, "log_to_driver": False}
            if address == LOCAL:
                options["include_dashboard"] = False
            try:
                ray.init(**options)
            except Exception as error:  # Ray raises many kinds, plain ones too
                raise InvalidRequestError(
                    f"The Ray cluster at {address} cannot be reached.",
                    hint="`ray status` shows whether it runs; --ray local starts one here",
                    detail=str(error),
                ) from error
        self._class = ray.remote(_StageInRay)
        self._host = "127.0.0.1" if address == LOCAL else None

    def nodes(self) -> list[Node]:
        """List the nodes that are alive, this machine first."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        found = [
            Node(each["NodeID"], self._host or each["NodeManagerAddress"], each["NodeID"] == here)
            for each in ray.nodes()
            if each["Alive"]
        ]
        return sorted(found, key=lambda node: (not node.is_here, node.host, node.id))

    def start(self, node: Node, secret: bytes) -> Actor:
        """Start an actor on a node; it is there when it answers."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {
            "num_cpus": 0,  # what a node has for a stage is measured, not counted
            "max_restarts": 0,  # a stage without its layers is none
            "max_concurrency": _CALLS_AT_ONCE,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False),
        }
        return Actor(node, self._class.options(**options).remote(secret, node.host))

    def close(self, actors: Sequence[Actor]) -> None:
        """End the actors, and the connection if it is ours."""
        import ray

        for actor in actors:
            actor.kill()
        if not self._was_there:
            ray.shutdown()
