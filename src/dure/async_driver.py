"""AsyncDriver: a thread that steps an engine for coroutines, and brings them what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from dure.chat.prompt import PreparedRequest
from dure.driver import closed_error, joined_all
from dure.errors import DureError

if TYPE_CHECKING:
    from dure.chat.output import Chunk, Completion, OutputProcessor
    from dure.driver import Driver, Handover
    from dure.pooling.output import Pooled, PoolingOutput
    from dure.pooling.request import PreparedPooling
    from dure.replicas import Drivers

    Prepared = PreparedRequest | PreparedPooling
    Answer = OutputProcessor | PoolingOutput

log = logging.getLogger(__name__)


class Job:
    """Requests that one coroutine waits for: begun together, and read or abandoned together."""

    def __init__(self, requests: Sequence[Prepared], *, streams: bool) -> None:
        """streams: whether the chunks are wanted, and not the answers alone."""
        self.requests, self.streams = requests, streams
        self.groups: list[Sequence[Answer]] = []  # the choices of each request, once it has begun
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[list[Chunk] | Exception | None] = asyncio.Queue()

    @property
    def has_begun(self) -> bool:
        """Whether all of its requests have."""
        return len(self.groups) == len(self.requests)

    @property
    def answers(self) -> list[Answer]:
        """All answers of all requests that have begun."""
        return [answer for group in self.groups for answer in group]

    def tell(self, news: list[Chunk] | Exception | None) -> None:
        """Give the coroutine chunks, an error, or the end (None). Any thread may call it."""
        with contextlib.suppress(RuntimeError):  # its loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def news(self) -> list[Chunk] | None:
        """Wait for the next chunks; None: all is over. Raises what went wrong."""
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        return news


class AsyncDriver:
    """Steps one engine on a thread of its own, for coroutines of any event loops.

    The thread begins with the first request. Only it touches the engine on their behalf, so all of
    their requests are in the same steps.
    """

    def __init__(self, driver: Driver, stepper_of: Callable[[Driver], AsyncDriver]) -> None:
        """stepper_of: who steps which replica."""
        self._driver, self._stepper_of = driver, stepper_of
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Job, Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._running: list[Job] = []  # this and the next are the thread's own
        self._moved: WeakKeyDictionary[Job, AsyncDriver] = WeakKeyDictionary()

    async def answer(self, requests: Sequence[PreparedRequest]) -> list[Completion]:
        """Answer all requests at once; return one Completion each, in order.

        Cancelling it ends them within one step. Raises what one of them fails with.
        """
        return joined_all(cast("list[Sequence[OutputProcessor]]", await self._finish(requests)))

    async def pool(self, prepared: PreparedPooling) -> Pooled:
        """Compute the vectors of all texts of one request, as `answer` does."""
        [[output]] = await self._finish([prepared])
        return cast("PoolingOutput", output).result()

    async def _finish(self, requests: Sequence[Prepared]) -> list[Sequence[Answer]]:
        """Compute the requests; return the finished choices of each, in order."""
        job = Job(requests, streams=False)
        async with contextlib.aclosing(self._read(job)) as news:
            async for _ in news:
                pass
        return job.groups

    async def stream(self, request: Prepared) -> AsyncGenerator[Chunk, None]:
        """Compute one request; yield its chunks. Closing the generator ends it within one step."""
        async with contextlib.aclosing(self._read(Job([request], streams=True))) as news:
            async for chunks in news:
                for chunk in chunks:
                    yield chunk

    async def _read(self, job: Job) -> AsyncGenerator[list[Chunk], None]:
        self._post(job, partial(self._begin, job))
        is_over = False
        try:
            while (chunks := await job.news()) is not None:
                yield chunks
            is_over = True
        finally:
            if not is_over:
                self._post(job, partial(self._abandon, job), last=True)
            for prepared in job.requests:  # that never began
                self._driver.forget(prepared)

    def close(self) -> None:
        """End the thread within one step; who still waits gets an InvalidRequestError."""
        with self._wake:
            self._is_closed = True
            thread = self._thread
            self._wake.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _post(self, job: Job, action: Callable[[], None], *, last: bool = False) -> None:
        """Have the thread do something for a job between two steps.

        last: it only ends what had begun.
        """
        with self._wake:
            if self._is_closed:
                if last:
                    return  # all has ended
                raise closed_error()
            self._inbox.append((job, action))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dure engine", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._running or self._is_closed):
                    self._wake.wait()
                actions, self._inbox = self._inbox, deque()
                ends = self._is_closed
            with self._driver.lock:
                for job, action in actions:
                    self._do(job, action)
                try:
                    if self._running and not ends:
                        self._driver.step()
                    self._tell()
                except BaseException as error:  # the panic of a library in Rust is no Exception
                    log.exception("the engine failed")
                    if not ends:
                        self._hand_over()
                    self._fail_all(error)
            if ends:
                self._fail_all(closed_error())
                return

    def _do(self, job: Job, action: Callable[[], None]) -> None:
        """Run an action for a job; what it raises ends that job, and no other.

        The next action is still run: somebody waits for it.
        """
        try:
            action()
        except DureError as error:
            self._fail(job, error)
        except BaseException as error:  # the panic of a library in Rust is no Exception
            log.exception("a request failed")
            self._fail(job, error)

    def _begin(self, job: Job) -> None:
        self._running.append(job)
        for prepared in job.requests:
            job.groups.append(self._begun(prepared))

    def _begun(self, prepared: Prepared) -> Sequence[Answer]:
        if isinstance(prepared, PreparedRequest):
            return self._driver.begin(prepared)
        return [self._driver.begin_pooling(prepared)]

    def _hand_over(self) -> None:
        """Have those of other replicas go on with what runs here, as far as they may."""
        self._tell()  # what they tell comes after it
        for job in [each for each in self._running if each.has_begun]:
            try:
                handover = self._driver.hand_over(job.answers)
            except Exception:
                log.exception("answers could not be handed over")
                continue
            if handover is None:
                continue
            self._running.remove(job)
            other = self._moved[job] = self._stepper_of(handover.to)
            try:
                other._post(job, partial(other._adopt, job, handover))
            except Exception as error:  # it is closed
                handover.to.forget(handover)
                job.tell(error)

    def _adopt(self, job: Job, handover: Handover) -> None:
        self._moved.pop(job, None)  # if it was here before
        handover.adopt()  # if it raises, no engine has any of it
        self._running.append(job)

    def _abandon(self, job: Job) -> None:
        if job in self._moved:
            other = self._moved.pop(job)
            other._post(job, partial(other._abandon, job), last=True)
            return
        if job in self._running:  # else it ended meanwhile
            self._running.remove(job)
            self._driver.abandon(job.answers)

    def _tell(self) -> None:
        """Bring each job what came of it, by this thread's step or another's. It holds the lock."""
        for job in list(self._running):
            chunks: list[Chunk] = []
            for answer in job.answers:
                while answer.chunks:
                    chunks.append(answer.chunks.popleft())
            if chunks and job.streams:
                job.tell(chunks)
            error = next((each.error for each in job.answers if each.error is not None), None)
            if error is not None:
                self._fail(job, error)
            elif all(answer.is_over for answer in job.answers):
                self._running.remove(job)
                job.tell(None)

    def _fail_all(self, error: BaseException) -> None:
        """End all that runs with an error."""
        for job in list(self._running):
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        """End a job with an error, wherever it was."""
        try:
            if job in self._running:
                self._running.remove(job)
                self._driver.abandon(job.answers)
        except Exception:
            log.exception("an answer could not be abandoned")
        job.tell(error if isinstance(error, Exception) else RuntimeError("a panic"))


class AsyncReplicas:
    """AsyncDrivers of a model's replicas. A request goes to the one that `place` says."""

    def __init__(self, replicas: Drivers) -> None:
        self._place = replicas.place
        self._each: dict[Driver, AsyncDriver] = {
            driver: AsyncDriver(driver, self._stepper_of) for driver in replicas.drivers
        }

    def _stepper_of(self, driver: Driver) -> AsyncDriver:
        return self._each[driver]

    async def answer(self, requests: Sequence[PreparedRequest]) -> list[Completion]:
        """Answer all requests at once, each where it is placed; see `AsyncDriver.answer`."""
        placed = [self._place(each) for each in requests]
        parts = {driver: [i for i, p in enumerate(placed) if p is driver] for driver in placed}
        tasks = [
            asyncio.ensure_future(self._each[driver].answer([requests[i] for i in part]))
            for driver, part in parts.items()
        ]
        try:
            answers = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        found = {
            i: a
            for p, done in zip(parts.values(), answers, strict=True)
            for i, a in zip(p, done, strict=True)
        }
        return [found[index] for index in range(len(requests))]

    async def pool(self, prepared: PreparedPooling) -> Pooled:
        """Compute the vectors of all texts of one request."""
        return await self._each[self._place(prepared)].pool(prepared)

    async def stream(self, request: Prepared) -> AsyncGenerator[Chunk, None]:
        """Compute one request; yield its chunks. Closing the generator ends it within one step."""
        driver = self._each[self._place(request)]
        async with contextlib.aclosing(driver.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    def close(self) -> None:
        """End all threads within one step; who still waits gets an InvalidRequestError."""
        for driver in self._each.values():
            driver.close()
