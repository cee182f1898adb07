"""Replicas: several drivers of one model, used as one.

A replica is an engine with a cache of its own: over the same weights in this process, or over a
pipeline of its own on other machines. Each is stepped by a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dure.chat.output import OutputProcessor
from dure.chat.prompt import PreparedRequest
from dure.driver import Counted, Driver, joined_all
from dure.engine.block_pool import root_digest
from dure.engine.router import Asked, choose

if TYPE_CHECKING:
    from dure.chat.output import Chunk, Completion
    from dure.engine.engine import Engine
    from dure.pooling.output import Pooled
    from dure.pooling.request import PreparedPooling

_TOLD_SECONDS = 0.1  # between two looks at how many answers are done


class Replicas:
    """Several drivers of one model. A request goes to the one that `choose` says."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        """Take the drivers; from now on all are interrupted together."""
        self.drivers = tuple(drivers)
        self.interrupted = self.drivers[0].interrupted
        for driver in self.drivers:
            driver.interrupted = self.interrupted
            driver.peers = self.drivers
        self._placing = threading.Lock()
        self._turn = 0

    @property
    def engine(self) -> Engine:
        """The first replica's engine; the others differ in what runs and is cached."""
        return self.drivers[0].engine

    def place(self, prepared: PreparedRequest | PreparedPooling) -> Driver:
        """Choose who computes a request, and let that driver expect it.

        Whoever places it must begin it there or `forget` it. Any thread may call it.
        """
        with self._placing:  # the next request sees where this one went
            asked = _asked(prepared, self.engine.model_id)
            index, cached = choose(asked, self.drivers, self._turn)
            self._turn = index + 1
            self.drivers[index].expected[id(prepared)] = replace(asked, cached=cached)
        return self.drivers[index]

    def answer(
        self,
        requests: Sequence[PreparedRequest],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Answer all requests at once; see `Driver.answer`."""
        placed = [self.place(each) for each in requests]
        groups: dict[int, list[OutputProcessor]] = {}
        runs: list[_Run] = []
        try:
            for driver in self.drivers:
                with driver.lock:
                    for index, each in enumerate(requests):
                        if placed[index] is driver:
                            groups[index] = driver.begin(each)
            ordered = [groups[index] for index in range(len(requests))]
            for driver in self.drivers:
                own = [a for i, group in groups.items() if placed[i] is driver for a in group]
                runs += [_Run(driver, own)] if own else []
            told = None if progress is None else Counted(ordered, progress)
            for run in runs:
                while run.is_alive():
                    run.join(_TOLD_SECONDS)
                    if told is not None:
                        told()
            for error in [run.error for run in runs if run.error is not None]:
                raise error
            return joined_all(ordered)
        finally:
            for run in runs:
                run.stop()
            for index, driver in enumerate(placed):
                driver.forget(requests[index])
                driver.abandon(groups.get(index, ()))

    def stream(
        self, prepared: PreparedRequest, on_prefill: Callable[[int, int], None] | None
    ) -> Generator[Chunk, None, None]:
        """Answer one request; see `Driver.stream`."""
        driver = self.place(prepared)
        try:
            yield from driver.stream(prepared, on_prefill)
        finally:
            driver.forget(prepared)

    def pool(self, prepared: PreparedPooling) -> Pooled:
        """Compute the vectors of all texts of one request."""
        driver = self.place(prepared)
        try:
            return driver.pool(prepared)
        finally:
            driver.forget(prepared)

    def close(self) -> None:
        """End all answers with an error, and begin no more. May be called by any thread."""
        for driver in self.drivers:
            driver.close()


Drivers = Driver | Replicas
"""What steps a model: one driver, or those of its replicas."""


class _Run(threading.Thread):
    """A thread that steps one driver until these answers are over, or it is stopped."""

    def __init__(self, driver: Driver, answers: Sequence[OutputProcessor]) -> None:
        super().__init__(name="dure replica", daemon=True)
        self.error: Exception | None = None
        self._driver, self._answers, self._stopped = driver, answers, threading.Event()
        self.start()

    def run(self) -> None:
        try:
            for answer in self._answers:
                self._driver.run(answer, stopped=self._stopped.is_set)
        except Exception as error:  # raised where all answers are waited for
            self.error = error

    def stop(self) -> None:
        """End it within one step."""
        self._stopped.set()
        self.join()


def _asked(prepared: PreparedRequest | PreparedPooling, model_id: str) -> Asked:
    """Return what a request asks, whatever it is made of."""
    root = root_digest(prepared.cache_salt, model_id)
    if not isinstance(prepared, PreparedRequest):
        return Asked(root, (), prepared.num_tokens, answers=0)
    params = prepared.params
    found = params.prompt_logprobs is None  # else every row of the prompt is computed
    prompt = prepared.token_ids if found else ()
    return Asked(root, prompt, prepared.num_tokens, params.n, params.max_tokens)
