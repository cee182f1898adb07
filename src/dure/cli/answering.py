"""Answers that are computed on a thread of their own, so that Ctrl-C ends one at once.

A pass over 512 tokens of a long prompt may take seconds. The person has the prompt back while the
thread gives the pass up between two layers, or ends it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure.chat.output import Chunk

Stream = Generator["Chunk", None, None]


class _Over(Exception):  # noqa: N818 - no error
    """The stream has ended."""


class AnswerThread:
    """One thread that computes one answer after another: OpenMP's threads are made for it once."""

    def __init__(self, interrupted: threading.Event | None = None) -> None:
        """interrupted: is set while what is computed is not wanted; each model has its own."""
        self.interrupted = interrupted or threading.Event()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._ending = threading.Lock()  # of an answer: nobody interrupts what is over

    def chunks(self, begin: Callable[[], Stream]) -> Iterator[Chunk]:
        """Yield the chunks of the stream that `begin` returns. Raises what it raises.

        A caller that stops before the end has the stream closed, without waiting for it.
        """
        self.wait()
        interrupted = self.interrupted
        came: queue.SimpleQueue[Chunk | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def run() -> None:
            try:
                with contextlib.closing(begin()) as stream:
                    for chunk in stream:
                        came.put(chunk)
                        if stopped.is_set():
                            return
                came.put(_Over())
            except BaseException as error:
                came.put(error)
            finally:
                with self._ending:
                    interrupted.clear()
                    self._idle.set()

        self._idle.clear()
        self._start(run)
        try:
            while True:
                each = came.get()
                if isinstance(each, _Over):
                    return
                if isinstance(each, BaseException):
                    raise each
                yield each
        finally:
            stopped.set()
            with self._ending:
                if not self._idle.is_set():
                    interrupted.set()

    def wait(self) -> None:
        """Wait until the last answer has let go of the model."""
        self._idle.wait()

    def close(self) -> None:
        """Wait for the last answer, and end the thread."""
        self.wait()
        self._work.put(None)

    def _start(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="dure answer", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
