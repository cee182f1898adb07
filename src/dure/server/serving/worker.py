"""The worker: a thread that steps one model's engine and passes its output to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dure.chat.prompt import PreparedRequest
from dure.chat.usage import Usage
from dure.errors import DureError
from dure.server.serving.generation import Generation, Progress

if TYPE_CHECKING:
    from dure.chat.output import Chunk, OutputProcessor
    from dure.driver import Driver, Handover
    from dure.llm import LLM
    from dure.metering.prices import Prices
    from dure.pooling.output import PoolingOutput
    from dure.pooling.request import PreparedPooling

log = logging.getLogger("dure.server")

LOOK_SECONDS = 1.0
"""Between two looks at stages on other machines that nobody asks for anything."""
MOST_LOOK_SECONDS = 60.0
"""The same, after attempts to start them again that failed."""


@dataclass
class StepUpdate:
    """What one step produced for one generation."""

    generation: Generation
    progress: Progress
    chunks: list[tuple[int, Chunk]] = field(default_factory=list)
    started: float = 0.0  # the step's start, if its prefill began in this step
    error: Exception | None = None
    final: Usage | None = None  # all that it took: nothing more comes


@dataclass
class _Run:
    """A generation on the engine's thread."""

    answers: Sequence[OutputProcessor | PoolingOutput]
    progress: Progress
    started: bool = False


class Worker:
    """Runs one engine of a model on a thread of its own. Make it and call it on the event loop.

    Only that thread touches the engine, between two steps. One call a step passes the output to the
    event loop, where `on_news` is called with the time at which the step ended.
    """

    def __init__(
        self,
        llm: LLM,
        driver: Driver,
        worker_of: Callable[[Driver], Worker],
        *,
        on_news: Callable[[float, list[StepUpdate]], None] | None = None,
    ) -> None:
        """driver: steps the engine, which is that of the model or of one of its replicas.

        worker_of: who steps which of them.
        """
        self.llm = llm
        self._driver, self._worker_of = driver, worker_of
        self.active: set[Generation] = set()  # unfinished requests; used on the event loop only
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Generation, Callable[[], None]]] = deque()
        self._ended = False
        self._look_seconds = None if llm.stages is None else LOOK_SECONDS
        self._running: dict[Generation, _Run] = {}  # this and the next two belong to the thread
        self._moved: WeakKeyDictionary[Generation, Worker] = WeakKeyDictionary()
        self._news: list[StepUpdate] = []
        self._thread = threading.Thread(target=self._run, name="dure engine", daemon=True)
        self._thread.start()

    async def submit(
        self,
        prepared: PreparedRequest | PreparedPooling,
        *,
        model: str,
        tenant: str = "",
        prices: Prices | None = None,
        id: str | None = None,  # noqa: A002 - its name in every API
        on_over: Callable[[], None] | None = None,
        on_end: Callable[[Generation, Usage], Awaitable[None] | None] | None = None,
    ) -> Generation:
        """Submit a request; return its generation once the engine has accepted it.

        on_over: called once, on the event loop, when the generation has finished or is closed.
        on_end: called once after that, when all that it took is known, and before its last chunk
        is read. Raises what the engine refuses it with.
        """

        def over(generation: Generation) -> None:
            self.active.discard(generation)
            if None in generation.completions:
                self._post(generation, partial(self._abandon, generation))
            if on_over is not None:
                on_over()

        generation = Generation(
            prepared,
            model=model,
            tenant=tenant,
            tokenizer=self.llm.tokenizer,
            prices=prices,
            id=id,
            on_over=over,
            on_end=on_end,
            on_end_thinking=lambda each: self._post(each, partial(self._end_thinking, each)),
        )
        self.active.add(generation)
        self._post(generation, partial(self._begin, generation))
        try:
            await generation.begun
        except BaseException:
            generation.close()
            raise
        return generation

    def end(self) -> None:
        """Stop the thread within one step; requests that still run get an error."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self.end()
        self._thread.join()

    def _post(self, generation: Generation, action: Callable[[], None]) -> None:
        """Have the thread do something for a generation between two steps."""
        with self._wake:
            self._inbox.append((generation, action))
            self._wake.notify()

    def _run(self) -> None:
        ended = False
        while not ended:
            with self._wake:
                while not (self._inbox or self._running or self._ended):
                    if not self._wake.wait(self._look_seconds):
                        break
                actions, self._inbox = self._inbox, deque()
                ended = self._ended
            if not (actions or self._running or ended):
                self._mend()
                continue
            with self._driver.lock:
                for generation, action in actions:
                    self._do(generation, action)
                if ended:
                    self._fail_all(RuntimeError("the model was unloaded"))
                elif self._running:
                    self._survive_step()
            self._tell()

    def _mend(self) -> None:
        """Start again what the engine lost while nobody asked for anything."""
        if self._driver.engine.runner.is_whole:
            return
        try:
            self._driver.mend()
            self._look_seconds = LOOK_SECONDS
        except Exception as error:  # no room, or no node: it may be there later
            log.warning("what was lost cannot be started again yet: %s", error)
            self._look_seconds = min(MOST_LOOK_SECONDS, 2 * (self._look_seconds or LOOK_SECONDS))

    def _do(self, generation: Generation, action: Callable[[], None]) -> None:
        """Run an action for a generation; what it raises ends that generation, and no other.

        The next action is still run: somebody waits for it.
        """
        try:
            action()
            return
        except DureError as error:
            self._fail(generation, error)
        except BaseException as error:  # the panic of a library in Rust is no Exception
            log.exception("a request failed")
            self._fail(generation, error)
        self._tell()  # it is refused now, and not only when this step is over

    def _survive_step(self) -> None:
        """Make a step; if it raises, others go on with the running requests, or they fail."""
        try:
            self._step()
        except BaseException as error:  # the panic of a library in Rust is no Exception
            log.exception("the engine failed")
            self._hand_over()
            self._fail_all(error)

    def _step(self) -> None:
        began = time.perf_counter()
        self._driver.step()
        self._collect(began)

    def _begin(self, generation: Generation) -> None:
        if generation.closed:
            self._driver.forget(generation.prepared)
            return  # what abandons it follows
        answers = self._begun(generation.prepared)
        self._running[generation] = _Run(answers, generation.progress)
        self._news.append(StepUpdate(generation, generation.progress))
        self._tell()  # it is accepted now, and not only when this step is over

    def _begun(
        self, prepared: PreparedRequest | PreparedPooling
    ) -> Sequence[OutputProcessor | PoolingOutput]:
        driver = self._driver
        if isinstance(prepared, PreparedRequest):
            return driver.begin(prepared)
        return [driver.begin_pooling(prepared)]

    def _hand_over(self) -> None:
        """Have the workers of other replicas go on with what runs here, as far as they may."""
        self._tell()  # what they tell comes after it
        for generation, run in list(self._running.items()):
            try:
                handover = self._driver.hand_over(run.answers)
            except Exception:
                log.exception("an answer could not be handed over")
                continue
            if handover is None:
                continue
            del self._running[generation]
            worker = self._moved[generation] = self._worker_of(handover.to)
            worker._post(generation, partial(worker._adopt, generation, run, handover))
            log.warning("%s goes on at another replica", generation.id)

    def _adopt(self, generation: Generation, run: _Run, handover: Handover) -> None:
        self._moved.pop(generation, None)  # if it was here before
        try:
            handover.adopt()
        except Exception as error:  # then no engine has any of it
            final = _taken(run)
            self._news.append(StepUpdate(generation, run.progress, error=error, final=final))
        else:
            self._running[generation] = run

    def _abandon(self, generation: Generation) -> None:
        if generation in self._moved:
            worker = self._moved.pop(generation)
            worker._post(generation, partial(worker._abandon, generation))
            return
        self._news.append(self._ended_by(generation))

    def _end_thinking(self, generation: Generation) -> None:
        if generation in self._moved:
            worker = self._moved[generation]
            worker._post(generation, partial(worker._end_thinking, generation))
        run = self._running.get(generation)
        for answer in () if run is None else run.answers:
            if not answer.is_over:
                answer.end_thinking()

    def _collect(self, began: float) -> None:
        """Collect what one step produced for each generation."""
        for generation, run in list(self._running.items()):
            first = run.answers[0]
            news = StepUpdate(generation, run.progress)
            if not run.started and not first.is_waiting:
                run.started, news.started = True, began
            if run.progress.done < run.progress.total or first.is_over:
                news.progress = run.progress = _progress(first)
            for choice, answer in enumerate(run.answers):
                while answer.chunks:
                    news.chunks.append((choice, answer.chunks.popleft()))
                news.error = news.error or answer.error
            is_over = all(answer.is_over for answer in run.answers)
            if news.error is None and is_over:
                del self._running[generation]
                news.final = _taken(run)
            if news.error is not None:
                log.error("a request failed", exc_info=news.error)
                news.final = self._ended_by(generation).final
            if news.chunks or news.started or news.error or not first.started:
                self._news.append(news)
        if self._running and not self._driver.engine.has_work:
            raise RuntimeError("answers wait, but the engine has nothing to do")

    def _fail_all(self, error: BaseException) -> None:
        for generation in list(self._running):
            self._fail(generation, error)

    def _fail(self, generation: Generation, error: BaseException) -> None:
        """End a generation with an error, whether it runs or not."""
        told = error if isinstance(error, Exception) else RuntimeError("a panic")
        self._news.append(self._ended_by(generation, told))

    def _ended_by(self, generation: Generation, error: Exception | None = None) -> StepUpdate:
        """End what runs of a generation; return the update that says so, with what it took."""
        run = self._running.pop(generation, None)
        if run is None:
            return StepUpdate(generation, generation.progress, error=error, final=Usage(0))
        update = StepUpdate(generation, run.progress, error=error, final=_taken(run))
        try:
            self._driver.abandon(run.answers)
        except Exception:
            log.exception("an answer could not be abandoned")
        return update

    def _tell(self) -> None:
        """Pass all updates to the event loop in one call."""
        if self._news:
            news, self._news = self._news, []
            try:
                self._loop.call_soon_threadsafe(self._deliver, time.perf_counter(), news)
            except RuntimeError:
                log.debug("the event loop has ended before the engine")

    def _deliver(self, now: float, all_news: list[StepUpdate]) -> None:
        """Deliver each update to its generation; runs on the event loop."""
        for news in all_news:
            times = news.generation.times
            if news.started:
                times.started = news.started
            if news.chunks and not times.first:
                times.first = now
        if self._on_news is not None:
            try:
                self._on_news(now, all_news)
            except Exception:  # a count that is wrong is better than an answer that never comes
                log.exception("a step could not be counted")
        for news in all_news:
            if news.chunks:
                news.generation.times.last = now
            try:
                news.generation.deliver(news.chunks, news.progress, news.error)
            except Exception as error:
                log.exception("an answer could not be handed on")
                news.generation.fail(error)
            if news.final is not None:
                news.generation.end(news.final)


def _taken(run: _Run) -> Usage:
    """Return what the run took, whether it is whole or not: a prompt's tokens as far as read."""
    progress = _progress(run.answers[0])
    usage = Usage.of_choices(answer.usage for answer in run.answers)
    read = max(progress.done, usage.prompt_tokens if run.answers[0].started else 0)
    return replace(usage, prompt_tokens=read, cached_tokens=progress.cached)


def _progress(answer: OutputProcessor | PoolingOutput) -> Progress:
    done, total = answer.prefilled
    return Progress(done, min(answer.cached_tokens, done), total)
