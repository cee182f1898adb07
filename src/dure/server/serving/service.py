"""The service behind every wire format: generation, tokenizing, token counts and model metadata."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dure.chat.request import ChatRequest
from dure.errors import ContextLengthError, InvalidRequestError, PromptLengthError
from dure.server import errors, limits
from dure.server.logs import FIELDS
from dure.server.serving.accounting import Accounting
from dure.server.serving.generation import Generation
from dure.server.serving.metrics import Metrics
from dure.server.serving.model_info import ModelInfo
from dure.server.serving.response_store import Store

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest
    from dure.chat.usage import Usage
    from dure.engine.params import SamplingParams
    from dure.llm import LLM
    from dure.pooling.request import PreparedPooling
    from dure.server.serving.accounting import Entry
    from dure.server.serving.model_pool import ModelPool, PooledModel

log = logging.getLogger("dure.server")
T = TypeVar("T")
Prompt = str | Sequence[int] | ChatRequest


class Service:
    """Everything that the routes call. Use it on one event loop.

    Its methods raise the exceptions of dure.errors and server.errors.
    """

    def __init__(
        self,
        registry: ModelPool,
        *,
        metrics: Metrics | None = None,
        accounting: Accounting | None = None,
        parallel: int = 32,
        queue: int = limits.MAX_QUEUE,
        closed: str = "",
    ) -> None:
        """parallel: choices that are computed at once; queue: how many more may wait; closed: why
        clients change no models.
        """
        self.registry = registry
        self.metrics = metrics or Metrics()
        self.accounting = accounting or Accounting(self.metrics)
        self.facts = ModelInfo(registry)
        self.kept = Store()
        self.draining = False
        self.loading = False  # the preloaded model is still being loaded
        self.started = int(time.time())
        self.parallel = parallel
        self.closed = closed
        self._room = parallel + queue
        self._admitted = 0  # choices that run or wait
        self._typical_seconds = 5.0  # of a request, a moving average
        self._running: dict[str, Generation] = {}
        self._pool = _started(ThreadPoolExecutor(limits.PREPARE_THREADS, "dure prepare"))

    async def chat(
        self,
        model_name: str | None,
        request: ChatRequest,
        params: SamplingParams,
        *,
        key: str = "",
        priority: int = 0,
        keep_alive: float | None = None,
    ) -> Generation:
        """Start to generate the response to a chat, of max_tokens or what the context has left.

        key: the tenant; prefixes are shared within one. The lowest `priority` runs first.
        keep_alive: seconds for which the model stays in memory afterwards, if not the server's own
        setting.
        """
        prepare = partial(
            _prepared, prompt=request, params=params, cache_salt=key, priority=priority
        )
        return await self._generate(
            model_name, prepare, key=key, keep_alive=keep_alive, answers=params.n
        )

    async def complete(
        self,
        model_name: str | None,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        key: str = "",
        priority: int = 0,
        keep_alive: float | None = None,
        format: Any = None,  # noqa: A002 - the word that requests use
    ) -> Generation:
        """Start to generate the continuations of a text or of token ids; otherwise as `chat`."""
        prepare = partial(
            _prepared,
            prompt=prompt,
            params=params,
            format=format,
            cache_salt=key,
            priority=priority,
        )
        return await self._generate(
            model_name, prepare, key=key, keep_alive=keep_alive, answers=params.n
        )

    async def pool(
        self,
        model_name: str | None,
        prepare: Callable[[LLM], PreparedPooling],
        *,
        key: str = "",
        keep_alive: float | None = None,
    ) -> Generation:
        """Start to compute the vectors of texts; its only chunk has all of them.

        prepare: makes the request of the loaded model, off the event loop; otherwise as `chat`.
        """
        return await self._generate(model_name, prepare, key=key, keep_alive=keep_alive)

    async def with_model(self, model_name: str | None, use: Callable[[LLM], T]) -> T:
        """Return `use(llm)` of the loaded model, computed off the event loop."""
        self._check_draining()
        entry = await self.registry.acquire(model_name)
        try:
            return await self._prepare(partial(use, _llm(entry)))
        finally:
            self.registry.release(entry)

    async def count(self, model_name: str | None, request: ChatRequest) -> int:
        """Count the tokens of the chat's prompt."""
        return len(await self.with_model(model_name, lambda llm: llm.prepare(request).token_ids))

    async def models(self, *, key: str = "") -> list[dict[str, Any]]:
        """Describe every model served, as /v1/models lists them, with what the tenant pays."""
        found: list[dict[str, Any]] = await self.off_loop(self.facts.all)
        return [{**each, **self.accounting.pricing(key, each["id"])} for each in found]

    async def model(self, name: str, *, key: str = "") -> dict[str, Any]:
        """Describe one model. Raises ModelNotFoundError if it is not served."""
        found: dict[str, Any] = await self.off_loop(
            partial(self.facts.of, self.registry.find(name))
        )
        return {**found, **self.accounting.pricing(key, found["id"])}

    def end_thinking(self, generation_id: str, *, key: str = "") -> None:
        """End the reasoning of a running request: the model answers now.

        generation_id: the response's id in any API; its last digits identify the generation. Raises
        InvalidRequestError unless it runs for this key.
        """
        generation = self._running.get(generation_id.replace("_", "-").rpartition("-")[2])
        if generation is None or generation.tenant != key:
            raise InvalidRequestError(f"No answer with the id {generation_id[:80]!r} is running.")
        generation.end_thinking()

    @property
    def num_active(self) -> int:
        """The number of choices that run or wait."""
        return self._admitted

    @property
    def room(self) -> int:
        """The number of choices that may run or wait."""
        return self._room

    @property
    def running(self) -> list[Generation]:
        """The requests that a model has begun with, or that wait for their turn in one."""
        return list(self._running.values())

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Run `work` on a thread of the pool and return its result."""
        return await self._prepare(work)

    async def changed(self, name: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, which changes the files or settings of a model: it is read
        again when it is next asked for. Raises a 409 while requests use it.
        """
        await self.registry.forget(name)
        try:
            return await self.off_loop(work)
        finally:
            self.facts.forget(name)

    async def built(self, tokens: int, work: Callable[[], T]) -> T:
        """Return what `work` makes of so many tokens: on a thread if they are many."""
        return work() if tokens <= limits.INLINE_TOKENS else await self.off_loop(work)

    def health(self) -> str:
        """Return "ok", or why requests must wait: "loading model" or "shutting down"."""
        if self.draining:
            return "shutting down"
        return "loading model" if self.loading else "ok"

    async def drain(self, seconds: float) -> None:
        """Refuse new requests; return when all running ones have finished, or after `seconds`."""
        self.draining = True
        end = time.monotonic() + seconds
        while self._admitted and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def fail_all(self) -> None:
        """Abort every running request now, with an error for its client."""
        for generation in list(self._running.values()):
            generation.fail(errors.unavailable("The server was shut down.", "shutting_down"))

    async def close(self) -> None:
        """Unload the models and end the threads."""
        self.draining = True
        self.fail_all()
        await self.registry.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _generate(
        self,
        model_name: str | None,
        prepare: Callable[[LLM], PreparedRequest | PreparedPooling],
        *,
        key: str,
        keep_alive: float | None,
        answers: int = 1,
    ) -> Generation:
        self.accounting.check(key)
        leave = self._admit(answers)
        try:
            entry = await self.registry.acquire(model_name, keep_alive=keep_alive)
        except BaseException:
            leave()
            raise
        generation: Generation | None = None

        def over() -> None:
            leave()
            self.registry.release(entry)
            if generation is not None:
                self._over(generation)

        try:
            prepared = await self._prepare(partial(prepare, _llm(entry)))
            context = _llm(entry).context
            account = await self.accounting.begin(key, entry.name, prepared, context=context)
        except BaseException:
            over()
            raise
        worker = entry.worker
        assert worker is not None  # we hold it in memory
        generation = await worker.submit(
            prepared,
            model=entry.name,
            tenant=key,
            prices=account.prices,
            id=account.id,
            on_over=over,
            on_end=partial(self._ended, account),
        )
        if generation.is_over:  # before we could know its name
            self._over(generation)
        else:
            self._running[generation.id] = generation
        return generation

    def _admit(self, answers: int) -> Callable[[], None]:
        """Admit so many choices; return what to call at their end. A 429 if the queue is full."""
        self._check_draining()
        if self._admitted + answers > self._room:
            rounds = self._room / max(1, self.parallel)
            wait = min(limits.MAX_RETRY_SECONDS, max(1, round(self._typical_seconds * rounds / 2)))
            raise errors.busy(
                f"{self._admitted:,} answers run or wait, and the limit is {self._room:,}.",
                wait,
            )
        self._admitted += answers

        def leave() -> None:
            self._admitted -= answers

        return leave

    def _check_draining(self) -> None:
        if self.draining:
            raise errors.unavailable("The server is shutting down.", "shutting_down")

    async def _prepare(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._pool, partial(_contained, work))
        try:
            return await asyncio.wait_for(running, limits.PREPARE_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            raise errors.unavailable(
                f"Preparing the request took more than {limits.PREPARE_SECONDS:g} s.", "too_slow"
            ) from None

    def _ended(
        self, account: Entry, generation: Generation, usage: Usage
    ) -> Awaitable[None] | None:
        """Account for all that a generation took; an error in that never reaches its client."""
        try:
            return self.accounting.end(account, generation, usage)
        except Exception:
            log.exception("%s could not be accounted for", generation.id)
            return None

    def _over(self, generation: Generation) -> None:
        """Count a finished generation; an error in counting never reaches its client."""
        self._running.pop(generation.id, None)
        try:
            self._count(generation)
        except Exception:
            log.exception("%s could not be counted", generation.id)

    def _count(self, generation: Generation) -> None:
        """Count a finished generation, and log it without its text."""
        self.metrics.on_over(generation)
        times, progress = generation.times, generation.progress
        seconds = time.perf_counter() - times.asked
        self._typical_seconds += 0.05 * (seconds - self._typical_seconds)
        done = [completion for completion in generation.completions if completion is not None]
        told = {
            "answer": generation.id,
            "model": generation.model,
            "prompt_tokens": progress.total,
            "cached_tokens": progress.cached,
            "output_tokens": sum(len(completion.token_ids) for completion in done),
            "finish": ", ".join(completion.finish_reason for completion in done) or "cut off",
            "first_s": round(max(0.0, times.first - times.asked), 6),
            "seconds": round(seconds, 6),
        }
        log.info(
            "%s %s: prompt %d tokens (%d cached), answer %d, %s, first in %.2f s, all in %.2f s",
            *told.values(),
            extra={FIELDS: told},
        )


def _prepared(llm: LLM, *, prompt: Prompt, params: SamplingParams, **more: Any) -> PreparedRequest:
    """Prepare a request with max_tokens as a ceiling: less, if the context has not enough room.

    A prompt that does not fit by itself still raises a ContextLengthError. Thinking asked of a
    model that cannot is a TemplateError; a limit alone asks for none.
    """
    if isinstance(prompt, ChatRequest) and prompt.thinking.is_demanded:
        llm.request_builder.check_thinking(prompt.thinking)
    try:
        return llm.prepare(prompt, params, **more)
    except PromptLengthError:
        raise
    except ContextLengthError as error:
        if params.max_tokens is None:
            raise
        room = error.room
    return llm.prepare(prompt, replace(params, max_tokens=room), **more)


def _llm(entry: PooledModel) -> LLM:
    if entry.worker is None:
        raise RuntimeError("a model was unloaded while it was used")
    return entry.worker.llm


def _started(pool: ThreadPoolExecutor) -> ThreadPoolExecutor:
    """Start all threads of the pool.

    If a thread finds no memory to start with, Python waits for it for ever; later, that would block
    the event loop.
    """
    all_are_here = threading.Barrier(limits.PREPARE_THREADS + 1)
    for _ in range(limits.PREPARE_THREADS):
        pool.submit(all_are_here.wait)
    all_are_here.wait()
    return pool


def _contained(work: Callable[[], T]) -> T:
    """Run `work`, and convert a panic of a Rust library to a RuntimeError.

    Such a panic is no Exception, and would pass every handler of errors.
    """
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError("a library panicked") from error
