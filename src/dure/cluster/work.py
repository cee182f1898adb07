"""The work of one stage: passes come in, go through its layers, and on to the next stage."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dure.cluster.link import Address, Door, Link, connect
from dure.cluster.wire import FAILURE, Frame, WireError, pack, pack_failure, unpack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch

CONNECT_SECONDS = 60.0
"""How long a stage waits for its neighbours when links are made."""


class Computes(Protocol):
    """A stage's layers."""

    def forward(self, batch: Batch, x: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Run them on x (n, hidden), or on the batch's tokens."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a stage has done, and what it is at."""

    passes: int  # done since it was made
    rows: int
    busy_seconds: float  # computing
    sent_bytes: int
    queued: int  # passes that came and wait
    current_seconds: float  # that the pass it is at has taken so far; 0: it is at none


class StageWork:
    """One stage's links and the threads at them. One thread computes, pass by pass in their order.

    An *epoch* is a time in which all stages are linked to a ring. When one is lost, the others are
    linked anew: what was on its way in an earlier epoch is dropped.
    """

    def __init__(self, stage: Computes, host: str, secret: bytes) -> None:
        """host: the address of this machine at which the stage before it comes in."""
        self._stage, self._secret = stage, secret
        self._door = Door(host, secret)
        self._ring: _Ring | None = None
        self._done = [0, 0, 0, 0.0]  # passes, rows, bytes sent, seconds
        self._since = 0.0
        self._rings: queue.SimpleQueue[_Ring | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dure stage", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where the stage before comes in."""
        return self._door.address

    def join(self, epoch: int, next_address: Address) -> None:
        """Leave the ring of an earlier epoch, and link to the next stage in this one.

        Returns when the next stage has taken the link; the one before may come later. Raises
        OSError.
        """
        self.leave()
        after = connect(next_address, self._secret, epoch)
        ring = _Ring(epoch, after)
        self._ring = ring
        self._rings.put(ring)
        threading.Thread(target=self._read, args=(ring,), name="dure link", daemon=True).start()

    def leave(self) -> None:
        """Drop the links, and what came over them."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.end()

    def progress(self) -> Progress:
        """Tell what the stage has done, and what it is at."""
        since, ring = self._since, self._ring
        passes, rows, sent, seconds = self._done
        return Progress(
            int(passes),
            int(rows),
            seconds,
            int(sent),
            0 if ring is None else ring.came.qsize(),
            time.monotonic() - since if since else 0.0,
        )

    def close(self) -> None:
        """End the threads and the links."""
        self.leave()
        self._door.close()
        self._rings.put(None)

    def _read(self, ring: _Ring) -> None:
        """Take what comes from the stage before, while another pass is computed."""
        try:
            before = self._door.accept(ring.epoch, CONNECT_SECONDS, ring.ended)
            ring.take(before)
            while True:
                ring.came.put(before.receive())
        except (OSError, WireError):
            ring.end()  # the stage after this one sees it, and so in the end the server

    def _run(self) -> None:
        while (ring := self._rings.get()) is not None:
            while (frame := ring.came.get()) is not None:
                try:
                    self._pass_on(ring, frame)
                except OSError:
                    ring.end()

    def _pass_on(self, ring: _Ring, frame: Frame) -> None:
        if ring.ended.is_set():
            return
        if frame.kind == FAILURE:
            ring.after.send(pack_failure(frame.number, str(frame.body, "utf-8", "replace")))
            return
        self._since = began = time.monotonic()
        rows = 0
        try:
            batch, x = unpack(frame)
            rows = len(batch.tokens)
            pieces = pack(frame.number, batch, self._stage.forward(batch, x))
        except Exception as error:
            pieces = pack_failure(frame.number, f"{type(error).__name__}: {error}")
        finally:
            self._since = 0.0
        done = self._done
        size = sum(map(len, pieces))
        self._done = [
            done[0] + 1,
            done[1] + rows,
            done[2] + size,
            done[3] + time.monotonic() - began,
        ]
        ring.after.send(pieces)


class _Ring:
    """A stage's two links in one epoch."""

    def __init__(self, epoch: int, after: Link) -> None:
        self.epoch, self.after = epoch, after
        self.came: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        self._before: Link | None = None

    def take(self, before: Link) -> None:
        """Keep the link that came in."""
        self._before = before
        if self.ended.is_set():
            before.close()

    def end(self) -> None:
        """Close both links; the thread that computes goes on to the next ring."""
        self.ended.set()
        for link in (self._before, self.after):
            if link is not None:
                with suppress(OSError):
                    link.close()
        self.came.put(None)
