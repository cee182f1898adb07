"""One request on the event loop: its chunks, its progress, and how to cancel it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dure.server import errors, limits

if TYPE_CHECKING:
    from dure.chat.output import Chunk, Completion
    from dure.chat.prompt import PreparedRequest
    from dure.chat.usage import Usage
    from dure.metering.prices import Prices
    from dure.pooling.request import PreparedPooling
    from dure.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Progress:
    """Prefill progress: `done` tokens of `total`, `cached` of them from the prefix cache."""

    done: int
    cached: int
    total: int


@dataclass
class Times:
    """Timestamps of a generation, by time.perf_counter; 0 if it has not happened yet."""

    asked: float = field(default_factory=time.perf_counter)  # the request was submitted
    started: float = 0.0  # its prefill began
    first: float = 0.0  # its first token was generated
    last: float = 0.0  # its newest token was generated


def new_id() -> str:
    """Return the digits of a response's id: no two are alike."""
    return secrets.token_hex(12)


class Generation:
    """The output of one request while it is generated: an async iterator of (choice, Chunk).

    Use it with `async with`, or call `close`: that stops what still runs within one step. Use it
    only on the event loop that made it.
    """

    def __init__(
        self,
        prepared: PreparedRequest | PreparedPooling,
        *,
        model: str,
        tenant: str,
        tokenizer: Tokenizer,
        prices: Prices | None = None,
        id: str | None = None,  # noqa: A002 - its name in every API
        on_over: Callable[[Generation], None],
        on_end_thinking: Callable[[Generation], None],
        on_end: Callable[[Generation, Usage], Awaitable[None] | None] | None = None,
    ) -> None:
        """prices: what is charged for it. id: new_id() of before it began.

        on_end: is called once, when all that it took is known; the last chunk is held back until
        what it returns is done.
        """
        self.id = id or new_id()
        self.created = int(time.time())
        self.prepared = prepared
        self.model = model
        self.tenant = tenant
        self.tokenizer = tokenizer
        self.prices = prices
        self.usage: Usage | None = None  # all that it took, once that is known
        self.counted = 0  # of its tokens, by the metrics
        self.times = Times()
        self.progress = Progress(0, 0, prepared.num_tokens)
        self.completions: list[Completion | None] = [None] * prepared.num_choices
        self.error: Exception | None = None
        self.closed = False
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready: deque[tuple[int, Chunk]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_over: Callable[[Generation], None] | None = on_over
        self._on_end_thinking = on_end_thinking
        self._on_end = on_end
        self._written: Awaitable[None] | None = None

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt; none where there are several texts."""
        return getattr(self.prepared, "token_ids", ())

    @property
    def is_over(self) -> bool:
        """Whether no chunk will come any more besides those that are buffered."""
        return self.closed or self.error is not None or None not in self.completions

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        while not self._ready:
            self._raise_if_over()
            await self._news()
        await self._before_last()
        if not self._ready:  # closed meanwhile
            raise StopAsyncIteration
        return self._ready.popleft()

    async def updates(self) -> AsyncIterator[Progress | tuple[int, Chunk]]:
        """Iterate over (choice, Chunk), with a Progress whenever more of the prompt is computed."""
        seen: Progress | None = None
        answered = False
        while True:
            if self._ready:
                if not answered and seen != self.progress:
                    yield self.progress  # the last one: the whole prompt is computed
                answered = True
                await self._before_last()
                if not self._ready:  # closed meanwhile
                    return
                yield self._ready.popleft()
            elif seen != self.progress and not self.times.first and not self.is_over:
                seen = self.progress
                yield seen
            elif self.error is None and self.is_over:
                return
            else:
                self._raise_if_over()
                await self._news()

    def abort(self) -> None:
        """Stop generating within one step; nothing more can be read."""
        self.closed = True
        self._ready.clear()
        self._over()

    close = abort

    def fail(self, error: Exception) -> None:
        """Stop generating within one step, with an error for whoever reads the chunks."""
        if not self.is_over:
            self.error = error
            self._over()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def end_thinking(self) -> None:
        """Make the model close its reasoning at the next token."""
        if not self.is_over:
            self._on_end_thinking(self)

    def deliver(
        self, chunks: list[tuple[int, Chunk]], progress: Progress, error: Exception | None
    ) -> None:
        """Take the output of one step. The worker calls this on the event loop."""
        if self.closed or self.error is not None:
            return
        if not self.begun.done():
            if error is None:
                self.begun.set_result(None)
            else:
                self.begun.set_exception(error)
        self.progress = progress
        for choice, chunk in chunks:
            if chunk.completion is not None:
                self.completions[choice] = chunk.completion
        self._ready.extend(chunks)
        self.error = error
        if len(self._ready) > limits.MAX_BUFFERED_CHUNKS * len(self.completions):
            self.error = errors.HTTPError(
                408,
                f"The stream was not read: {len(self._ready):,} tokens wait for the client.",
                code="slow_reader",
            )
            self._ready.clear()
        if self.is_over:
            self._over()
        self._wake()

    def end(self, usage: Usage) -> None:
        """Take all that it took, also of what nobody reads any more. The worker calls this."""
        if self.usage is None:
            self.usage = usage
            if self._on_end is not None:
                self._written = self._on_end(self, usage)

    async def _before_last(self) -> None:
        """Wait until the end is written down, before whoever reads learns of it."""
        written = self._written
        if written is not None and len(self._ready) == 1:
            self._written = None
            await written

    def _over(self) -> None:
        """Call `on_over`, once."""
        on_over, self._on_over = self._on_over, None
        try:
            if on_over is not None:
                on_over(self)
        finally:
            self._wake()

    def _raise_if_over(self) -> None:
        if self.error is not None:
            raise self.error
        if self.is_over:
            raise StopAsyncIteration

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
