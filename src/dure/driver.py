"""Driver: begins requests, steps the engine and hands its tokens out, for any number of threads.

`LLM` drives with it; so does a server's worker, which steps for itself and holds the lock.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from dure.batch import PassInterruptedError
from dure.chat.output import Chunk, Completion, OutputProcessor
from dure.engine.router import asked_of, choose
from dure.errors import InvalidRequestError
from dure.pooling.output import Pooled, PoolingOutput

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest
    from dure.engine.engine import Engine
    from dure.engine.request import Request
    from dure.engine.router import Asked
    from dure.pooling.request import PreparedPooling
    from dure.text.tokenizer import Tokenizer

    Answer = OutputProcessor | PoolingOutput

MOST_MOVES = 2
"""How often an answer goes on elsewhere: one that is itself what fails replicas meets no more."""

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
        self.peers: Sequence[Driver] = (self,)
        """The drivers of all replicas, this one too."""
        self._lost: Exception | None = None  # why the runner, which is not whole, stays so
        self._answers: dict[str, Answer] = {}
        self._is_closed = False

    @property
    def drivers(self) -> tuple[Driver, ...]:
        """This one alone: a model without replicas has one."""
        return (self,)

    def place(self, prepared: PreparedRequest | PreparedPooling) -> Driver:
        """Choose who computes a request: see `Replicas.place`. Here there is no choice."""
        del prepared
        return self

    def forget(self, sent: PreparedRequest | PreparedPooling | Handover) -> None:
        """Expect what was sent no more: it is begun, or never will be. Any thread may call it."""
        self.expected.pop(id(sent), None)

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
        try:
            answers = [
                OutputProcessor(self.engine, self._tokenizer, request, prepared.reading, told)
                for request in first.choices or (first,)
            ]
        except BaseException:  # nobody would read it
            self.engine.abort(first.id)
            raise
        self._answers.update((answer.request.id, answer) for answer in answers)
        return answers

    def begin_pooling(self, prepared: PreparedPooling) -> PoolingOutput:
        """Queue the first of the request's texts; the others follow. For who holds `lock`."""
        self.forget(prepared)
        self._check_open()
        output = PoolingOutput(self.engine, prepared, self._begin_text)
        try:
            output.begin()
        except BaseException:
            self.abandon([output])
            raise
        return output

    def _begin_text(self, output: PoolingOutput, ids: tuple[int, ...]) -> Request:
        prepared = output.prepared
        request = self.engine.add_pooling(
            ids, prepared.pooling, cache_salt=prepared.cache_salt, priority=prepared.priority
        )
        self._answers[request.id] = output
        return request

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
        answer: Answer,
        told: Callable[[], None] | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Step until the answer is over, or `stopped`; `told` is called after each step."""
        while not answer.is_over and not stopped():
            self._step_for(answer, lambda: answer.is_over)
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
                self._step_for(answer, lambda: bool(answer.chunks) or answer.is_over)
            answer.result()
        finally:
            self.abandon([answer])

    def step(self) -> None:
        """Make one step of the engine and hand each answer the tokens it got.

        For a caller that holds `lock`. Whatever one answer fails with ends that answer alone.
        Ctrl-C ends the pass between two layers, and is raised when the step has been left in order.
        Whatever else the step raises, another replica may go on with the answers: see `hand_over`.
        One that was lost, and could not be mended, does not try again while there is another.
        """
        runner = self.engine.runner
        if self._lost is not None and not runner.is_whole and self._others():
            raise self._lost.with_traceback(None)
        with _interrupts_deferred() as pressed:
            self.engine.meter.enter(self.engine)
            try:
                self._step(lambda: self.interrupted.is_set() or pressed())
            except Exception as error:
                self._lost = None if runner.is_whole else error
                raise
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
                self._lost = None

    def hand_over(self, answers: Sequence[Answer]) -> Handover | None:
        """Give answers up after a step that failed, so that another replica goes on with them.

        None if they stay, and end with its error: no replica is left, they were handed over too
        often, or the step was left in the midst of what it brought. With one choice of a request
        all others go. For a caller that holds `lock`, and calls `Handover.adopt` without it.
        """
        places = self._others()
        requests = [request for each in answers if not each.is_over for request in each.requests]
        firsts = list({id(each.choices[0]): each.choices[0] for each in requests}.values())
        choices = [each for first in firsts for each in first.choices if not each.is_finished]
        moving = {id(a): a for c in choices if (a := self._answers.get(c.id)) is not None}.values()
        may = all(each.may_move for each in moving) and not any(
            each.in_flight or each.num_moves >= MOST_MOVES for each in choices
        )
        if not (places and choices and may):
            return None
        asked = asked_of(choices)
        index, cached = choose(asked, places, 0)
        handover = Handover(places[index], tuple(moving), firsts)
        for each in choices:
            self._answers.pop(each.id, None)
        for first in firsts:
            self.engine.give_up(first)
        handover.to.expected[id(handover)] = replace(asked, cached=cached)
        return handover

    def _others(self) -> list[Driver]:
        """Return the replicas that could go on with answers of this one.

        One that has just been lost is one of them: as a rule it is mended.
        """
        return [
            each
            for each in self.peers
            if each is not self
            and not each._is_closed
            and (each.engine.runner.is_whole or each._lost is None)
        ]

    def _home_of(self, answer: Answer) -> Driver:
        """Return the replica that has the answer now."""
        return next((each for each in self.peers if each.engine is answer.engine), self)

    def _step_for(self, answer: Answer, is_served: Callable[[], bool]) -> None:
        """Step whichever replica has the answer, unless another thread's step has served it.

        If the step fails, another replica goes on with the answer; if none can, it is raised.
        """
        home = self._home_of(answer)
        with home.lock:
            try:
                if not is_served():
                    home.step()
                return
            except Exception:
                handover = home.hand_over([answer])
                if handover is None:
                    raise
        handover.adopt()

    def _adopt(self, handover: Handover) -> None:
        with self.lock:
            self.forget(handover)
            self._check_open()
            self.engine.take_over(handover.requests)
            for answer in handover.answers:
                if isinstance(answer, PoolingOutput):
                    answer.move_to(self.engine, self._begin_text)
                else:
                    answer.move_to(self.engine)
                self._answers.update((request.id, answer) for request in answer.requests)

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

    def abandon(self, answers: Iterable[Answer]) -> None:
        """Have the engine forget the answers that are not over, and take their blocks back.

        Raises the first error that one of them met, when all have been tried.
        """
        errors: list[Exception] = []
        for answer in answers:
            home = self._home_of(answer)
            with home.lock:
                for request in answer.requests:
                    home._answers.pop(request.id, None)
                try:
                    answer.abort()
                except Exception as error:
                    errors.append(error)
        if errors:
            raise errors[0]


@dataclass(frozen=True, eq=False)
class Handover:
    """Answers on their way from a replica that failed to another."""

    to: Driver
    answers: Sequence[Answer]
    requests: Sequence[Request]  # the first choice of each

    def adopt(self) -> None:
        """Have the other replica go on with them; for a caller that holds no other's lock.

        Raises what it refuses them with, all together: then no engine has them.
        """
        self.to._adopt(self)


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
