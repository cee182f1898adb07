"""Driver: begins requests, steps the engine and hands its tokens out, for any number of threads.

`LLM` drives with it; so does a server's worker, which steps for itself and holds the lock.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from dure.batch import PassInterruptedError
from dure.chat.output import Chunk, Completion, OutputProcessor
from dure.errors import InvalidRequestError
from dure.pooling.output import Pooled, PoolingOutput

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest
    from dure.engine.engine import Engine
    from dure.engine.request import Request
    from dure.engine.router import Asked
    from dure.pooling.request import PreparedPooling
    from dure.text.tokenizer import Tokenizer


_home: list[int] = []
"""The process whose threads compute, once a model was loaded: OpenMP's belong to one for good."""


def check_process() -> None:
    """Raise InvalidRequestError in a process that was forked from one that loaded a model.

    fork() copies memory and no threads but one: the kernels would wait for theirs for ever.
    """
    if _home and _home[0] != os.getpid():
        raise InvalidRequestError(
            f"This process was forked from {_home[0]}, which had loaded a model, and fork() does "
            "not carry a model's threads over.",
            hint='load models in the child alone, or multiprocessing.get_context("spawn")',
        )


class Driver:
    """One engine behind one lock. Threads may share it: whoever holds the lock steps for all."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        on_complete: Callable[[PreparedRequest, Completion], None] | None = None,
    ) -> None:
        """on_complete: is told of every whole answer to a request.

        `interrupted` may be set by any thread: a pass is then given up between two layers, and
        streams end without a completion.
        """
        check_process()
        _home[:] = [os.getpid()]
        self.engine = engine
        self._on_complete = on_complete
        self.lock = threading.RLock()
        self.interrupted = threading.Event()
        self._tokenizer = tokenizer
        self.expected: dict[int, Asked] = {}
        """By the id of what was prepared: requests that a router sent here and are not begun."""
        self._answers: dict[str, OutputProcessor | PoolingOutput] = {}
        self._is_closed = False

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """This one alone: a model without replicas has one."""
        return (self,)

    def place(self, prepared: PreparedRequest | PreparedPooling) -> Driver:
        """Choose who computes a request: see `Replicas.place`. Here there is no choice."""
        del prepared
        return self

    def forget(self, prepared: PreparedRequest | PreparedPooling) -> None:
        """Expect the request no more: it is begun, or never will be. Any thread may call it."""
        self.expected.pop(id(prepared), None)

    def begin(self, prepared: PreparedRequest) -> list[OutputProcessor]:
        """Queue the request's n choices in the engine; for a caller that holds `lock`."""
        self.forget(prepared)
        self._check_open()
        first = self.engine.add(
            prepared.token_ids,
            prepared.params,
            cache_salt=prepared.cache_salt,
            priority=prepared.priority,
            grammar=prepared.grammar,
            deferred=prepared.reading.starts_in_reasoning,
            prediction_ids=prepared.prediction_ids,
        )
        told = None if self._on_complete is None else partial(self._on_complete, prepared)
        answers = [
            OutputProcessor(self.engine, self._tokenizer, request, prepared.reading, told)
            for request in first.choices or (first,)
        ]
        self._answers.update((answer.request.id, answer) for answer in answers)
        return answers

    def begin_pooling(self, prepared: PreparedPooling) -> PoolingOutput:
        """Queue the first of the request's texts; the others follow. For who holds `lock`."""
        self.forget(prepared)
        self._check_open()
        waiting: list[Request] = []  # of texts that are begun before there is an output

        def begin(ids: tuple[int, ...]) -> Request:
            request = self.engine.add_pooling(
                ids,
                prepared.pooling,
                cache_salt=prepared.cache_salt,
                priority=prepared.priority,
            )
            if output is None:
                waiting.append(request)
            else:
                self._answers[request.id] = output
            return request

        output: PoolingOutput | None = None
        try:
            output = PoolingOutput(self.engine, prepared, begin)
        except BaseException:
            for request in waiting:
                self.engine.abort(request.id)
            raise
        self._answers.update((request.id, output) for request in waiting)
        return output

    def pool(self, prepared: PreparedPooling) -> Pooled:
        """Compute the vectors of all texts of one request."""
        with self.lock:
            output = self.begin_pooling(prepared)
        try:
            self.run(output)
            return output.result()
        finally:
            self.abandon([output])

    def answer(
        self,
        requests: Sequence[PreparedRequest],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Answer all requests at once; return one Completion each, in order.

        With n > 1 the first choice's Completion carries the others in `choices`. progress: is
        called with (requests done, requests in all).
        """
        groups: list[list[OutputProcessor]] = []
        try:
            with self.lock:
                for prepared in requests:
                    groups.append(self.begin(prepared))
            told = None if progress is None else Counted(groups, progress)
            for answer in [answer for group in groups for answer in group]:
                self.run(answer, told)
            return joined_all(groups)
        finally:
            self.abandon(answer for group in groups for answer in group)

    def run(
        self,
        answer: OutputProcessor | PoolingOutput,
        told: Callable[[], None] | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Step until the answer is over, or `stopped`; `told` is called after each step."""
        while not answer.is_over and not stopped():
            with self.lock:
                if not answer.is_over:  # another thread's step may have ended it
                    self.step()
            if told is not None:
                told()

    def stream(
        self, prepared: PreparedRequest, on_prefill: Callable[[int, int], None] | None
    ) -> Generator[Chunk, None, None]:
        """Answer one request; yield a Chunk a token. Closing the generator aborts the request.

        on_prefill is called with (prompt tokens done, prompt tokens in all) before the first token.
        """
        with self.lock:
            answer = self.begin(prepared)[0]
        try:
            while answer.chunks or not answer.is_over:
                if answer.chunks:
                    yield answer.chunks.popleft()
                    continue
                if self.interrupted.is_set():
                    return
                if on_prefill is not None and not answer.started:
                    on_prefill(*answer.prefilled)
                with self.lock:
                    if not answer.chunks and not answer.is_over:  # thanks to another thread
                        self.step()
            answer.result()
        finally:
            self.abandon([answer])

    def step(self) -> None:
        """Make one step of the engine and hand each answer the tokens it got.

        For a caller that holds `lock`. Whatever one answer fails with ends that answer alone.
        Ctrl-C ends the pass between two layers, and is raised when the step has been left in order.
        """
        with _interrupts_deferred() as pressed:
            self.engine.meter.enter(self.engine)
            try:
                self._step(lambda: self.interrupted.is_set() or pressed())
            finally:
                self.engine.meter.leave(self.engine, has_work=self.engine.has_work)

    def _step(self, given_up: Callable[[], bool]) -> None:
        try:
            outputs = self.engine.step(given_up)
        except PassInterruptedError:
            return
        for output in outputs:
            answer = self._answers.pop(output.request.id, None)
            if answer is None:
                continue
            try:
                answer.take(output)
            except Exception as error:  # of its text or its calls: no other answer's fault
                self.abandon([answer])
                answer.error = error
            if isinstance(answer, OutputProcessor) and not answer.is_over:
                self._answers[answer.request.id] = answer

    def mend(self) -> None:
        """Start again what the engine's runner has lost, if nobody waits for an answer of it.

        Whoever does has it done by the next step. Raises what starting it again raises.
        """
        with self.lock:
            if not self.engine.has_work and not self.engine.runner.is_whole:
                self.engine.scheduler.start_over()  # nothing of its cache is left
                self.engine.runner.mend()

    def close(self) -> None:
        """End all answers with an error, and begin no more. May be called by any thread."""
        with self.lock:
            self._is_closed = True
            answers = list(self._answers.values())
            self.abandon(answers)
            for answer in answers:
                answer.error = answer.error or closed_error()
            # A meter that others share remembers the engine that it left in the midst of work.
            self.engine.meter.enter(self.engine)
            self.engine.meter.leave(self.engine, has_work=False)

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error()

    def abandon(self, answers: Iterable[OutputProcessor | PoolingOutput]) -> None:
        """Have the engine forget the answers that are not over, and take their blocks back."""
        with self.lock:
            for answer in answers:
                for request_id in answer.open_ids:
                    self._answers.pop(request_id, None)
                answer.abort()


class Counted:
    """Tells somebody how many of several requests are over, whenever that has changed."""

    def __init__(
        self, groups: Sequence[Sequence[OutputProcessor]], progress: Callable[[int, int], None]
    ) -> None:
        self._open, self._total, self._progress = list(groups), len(groups), progress
        progress(0, self._total)

    def __call__(self) -> None:
        left = [group for group in self._open if not all(each.is_over for each in group)]
        if len(left) < len(self._open):
            self._open = left
            self._progress(self._total - len(left), self._total)


def closed_error() -> InvalidRequestError:
    """Return what calls of a closed model are answered with."""
    return InvalidRequestError("The model was closed.", hint="load it again: LLM(…)")


def joined_all(groups: Sequence[Sequence[OutputProcessor]]) -> list[Completion]:
    """Return the completion of each request, of its choices; raise what one failed with."""
    return [_joined(group) for group in groups]


def _joined(group: Sequence[OutputProcessor]) -> Completion:
    """Return the group's first completion; if there are several, with all of them as `choices`."""
    choices = tuple(answer.result() for answer in group)
    return choices[0] if len(choices) == 1 else replace(choices[0], choices=choices)


@contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of the block, so that it never leaves the engine in mid-step.

    Yields what says whether it was pressed; never where signals do not come to this thread.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous in (
        None,
        signal.SIG_IGN,
    ):
        yield lambda: False
        return
    pressed = threading.Event()

    def remember(_signal: int, _frame: FrameType | None) -> None:
        pressed.set()

    signal.signal(signal.SIGINT, remember)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
        if pressed.is_set():
            signal.raise_signal(signal.SIGINT)
