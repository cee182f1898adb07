"""Stages linked to a ring: passes go round in their order, and a ring that is cut is made anew."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from dure.batch import Batch
from dure.cluster.link import Door, Link, connect
from dure.cluster.wire import FAILURE, Frame, WireError, pack, unpack
from dure.cluster.work import StageWork

SECRET, HOST = b"s" * 32, "127.0.0.1"


def batch_of(token: int) -> Batch:
    one = np.zeros(1, np.int32)
    return Batch(one + token, one, one, one.reshape(1, 1), one)


class Adds:
    """A stage whose hidden states are what came, times ten, plus its own number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, batch: Batch, x: np.ndarray | None) -> np.ndarray:
        self.gate.wait(20)
        if batch.tokens[0] == 66:
            raise ValueError("token 66")
        x = batch.tokens.reshape(1, 1).astype(np.float32) if x is None else x
        return x * np.float32(10) + np.float32(self.number)


@contextmanager
def ring_of(*stages: Adds) -> Iterator[tuple[list[StageWork], Door]]:
    works = [StageWork(stage, HOST, SECRET) for stage in stages]
    door = Door(HOST, SECRET)
    try:
        yield works, door
    finally:
        door.close()
        for work in works:
            work.close()


def linked(works: list[StageWork], door: Door, epoch: int) -> tuple[Link, Link]:
    """The links into the first stage and out of the last."""
    found: queue.SimpleQueue[Link] = queue.SimpleQueue()
    threading.Thread(
        target=lambda: found.put(door.accept(epoch, 20, threading.Event())), daemon=True
    ).start()
    after = door.address
    for work in reversed(works):
        work.join(epoch, after)
        after = work.address
    return connect(after, SECRET, epoch), found.get(timeout=20)


def value(frame: Frame) -> float:
    x = unpack(frame)[1]
    assert x is not None
    return float(x[0, 0])


def test_passes_go_round_in_their_order() -> None:
    with ring_of(Adds(1), Adds(2)) as (works, door):
        into, out = linked(works, door, 1)
        for number in range(20):
            into.send(pack(number, batch_of(number), None))
        frames = [out.receive() for _ in range(20)]
        assert [frame.number for frame in frames] == list(range(20))
        assert [value(frame) for frame in frames] == [100.0 * n + 12 for n in range(20)]
        told = works[0].progress()
        assert (told.passes, told.rows, told.queued) == (20, 20, 0)
        assert told.sent_bytes > 0
        into.close()
        out.close()


def test_a_pass_that_fails_comes_back_with_its_reason() -> None:
    with ring_of(Adds(1), Adds(2)) as (works, door):
        into, out = linked(works, door, 1)
        for token in (3, 66, 4):
            into.send(pack(token, batch_of(token), None))
        first, failed, last = (out.receive() for _ in range(3))
        assert (value(first), value(last)) == (312.0, 412.0)
        assert (failed.kind, failed.number) == (FAILURE, 66)
        assert str(failed.body, "utf-8") == "ValueError: token 66"
        into.close()
        out.close()


def test_a_ring_that_is_cut_is_made_anew_and_old_passes_do_not_come() -> None:
    stages = [Adds(1), Adds(2), Adds(3)]
    with ring_of(*stages) as (works, door):
        into, out = linked(works, door, 1)
        into.send(pack(1, batch_of(5), None))
        assert value(out.receive()) == 5123.0
        stages[1].gate.clear()
        into.send(pack(2, batch_of(6), None))
        works[2].close()  # a stage is lost while a pass is on its way
        with pytest.raises(ConnectionError):
            out.receive()
        stages[1].gate.set()
        works[2] = StageWork(Adds(4), HOST, SECRET)
        again, came = linked(works, door, 2)
        again.send(pack(3, batch_of(7), None))
        frame = came.receive()
        assert (frame.number, value(frame)) == (3, 7124.0)
        for link in (into, out, again, came):
            link.close()


def test_who_does_not_know_the_secret_does_not_come_in() -> None:
    door = Door(HOST, SECRET)
    over = threading.Event()
    taken: queue.SimpleQueue[object] = queue.SimpleQueue()

    def wait() -> None:
        try:
            taken.put(door.accept(7, 20, over))
        except TimeoutError as error:
            taken.put(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises((OSError, WireError)):
        connect(door.address, b"t" * 32, 7, seconds=0.3)
    with pytest.raises((OSError, WireError)):
        connect(door.address, SECRET, 6, seconds=0.3)
    with socket.create_connection(door.address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        stranger.settimeout(20)
        with suppress(ConnectionResetError):
            while stranger.recv(4096):  # a nonce and a proof that tell nothing, then the end
                pass
    link = connect(door.address, SECRET, 7)
    found = taken.get(timeout=20)
    assert isinstance(found, Link)
    found.close()
    link.close()
    door.close()
    thread.join(20)


def test_nobody_is_waited_for_when_it_is_over() -> None:
    door, over = Door(HOST, SECRET), threading.Event()
    over.set()
    with pytest.raises(TimeoutError):
        door.accept(1, 60, over)
    door.close()
