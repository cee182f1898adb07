"""Which way is the fastest from stage to stage: Ray's actor calls, compiled graphs, or sockets?

    python bench/ray_transport.py [rounds]

Two actors and this process are a ring, as three stages are: hidden states (rows, 1536) float32 go
round, and nothing is computed. Prints the usual time of a round, the median, in microseconds, one
at a time and with three on their way. Needs `pip install 'dure[ray]'`.
"""

from __future__ import annotations

import os
import queue
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback alone

import ray
from ray.dag import InputNode

from dure.batch import Batch
from dure.cluster.link import Door, Link, connect
from dure.cluster.wire import pack
from dure.cluster.work import StageWork

HIDDEN, ROWS, STAGES, AT_ONCE = 1536, (1, 16, 256), 2, 3
SECRET = b"b" * 32


class Same:
    """A stage that passes on what comes."""

    def forward(self, batch: Batch, x: np.ndarray | None) -> np.ndarray:
        return np.ones((len(batch.tokens), HIDDEN), np.float32) if x is None else x


@ray.remote(num_cpus=0, max_concurrency=4)
class Node:
    """An actor that has the three ways in and out."""

    def same(self, x: np.ndarray) -> np.ndarray:
        return x

    def listen(self) -> tuple[str, int]:
        self.work = StageWork(Same(), "127.0.0.1", SECRET)
        return self.work.address

    def join(self, address: tuple[str, int]) -> None:
        self.work.join(1, address)


def alone(send: Callable[[], Any], receive: Callable[[Any], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        receive(send())
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


def together(send: Callable[[], Any], receive: Callable[[Any], Any], rounds: int) -> float:
    flying: deque[Any] = deque()
    began = time.perf_counter()
    for _ in range(rounds):
        while len(flying) < AT_ONCE:
            flying.append(send())
        receive(flying.popleft())
    seconds = time.perf_counter() - began
    while flying:
        receive(flying.popleft())
    return 1e6 * seconds / rounds


def told(way: str, rows: int, send: Any, receive: Any, rounds: int) -> None:
    for _ in range(10):
        receive(send())
    one, many = alone(send, receive, rounds), together(send, receive, rounds)
    print(f"{way:<16}{rows:>5} rows {one:>9.0f} us alone {many:>9.0f} us of {AT_ONCE}", flush=True)


def main(rounds: int) -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    nodes = [Node.remote() for _ in range(STAGES)]
    for rows in ROWS:
        x = np.ones((rows, HIDDEN), np.float32)

        def call(x: np.ndarray = x) -> Any:
            ref: Any = x
            for node in nodes:
                ref = node.same.remote(ref)
            return ref

        told("actor calls", rows, call, ray.get, rounds)
    by_sockets(nodes, rounds)
    graphed = [Node.remote() for _ in range(STAGES)]
    with InputNode() as inside:
        out: Any = inside
        for node in graphed:
            out = node.same.bind(out)
    graph = out.experimental_compile(_max_inflight_executions=AT_ONCE + 1)
    for rows in ROWS:
        x = np.ones((rows, HIDDEN), np.float32)
        told("compiled graph", rows, lambda x=x: graph.execute(x), ray.get, rounds)
    graph.teardown(kill_actors=True)  # waits without end in Ray 2.60 otherwise
    ray.shutdown()


def by_sockets(nodes: list[Any], rounds: int) -> None:
    door, found = Door("127.0.0.1", SECRET), queue.SimpleQueue[Link]()
    addresses = ray.get([node.listen.remote() for node in nodes])
    taking = threading.Thread(
        target=lambda: found.put(door.accept(1, 60, threading.Event())), daemon=True
    )
    taking.start()
    after = door.address
    for node, address in zip(reversed(nodes), reversed(addresses), strict=True):
        ray.get(node.join.remote(after))
        after = address
    into, out = connect(after, SECRET, 1), found.get(timeout=60)
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                came.put(out.receive())
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()
    for rows in ROWS:
        row, one = np.zeros(rows, np.int32), np.zeros((1, 8), np.int32)
        batch = Batch(row, row, row, one, row)
        x = np.ones((rows, HIDDEN), np.float32)
        told(
            "sockets",
            rows,
            lambda batch=batch, x=x: into.send(pack(1, batch, x)),
            lambda _: came.get(),
            rounds,
        )
    into.close()
    out.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
