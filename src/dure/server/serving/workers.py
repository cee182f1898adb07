"""The workers of one model: one for each replica, and each request to the one that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dure.server.serving.worker import StepUpdate, Worker

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest
    from dure.driver import Driver
    from dure.llm import LLM
    from dure.pooling.request import PreparedPooling
    from dure.server.serving.generation import Generation


class Workers:
    """A thread for each replica of a model; one for a model without. Use it on the event loop."""

    def __init__(
        self, llm: LLM, *, on_news: Callable[[float, list[StepUpdate]], None] | None = None
    ) -> None:
        self.llm = llm
        self.each: dict[Driver, Worker] = {}
        for driver in llm.driver.drivers:
            self.each[driver] = Worker(llm, driver, self.each.__getitem__, on_news=on_news)

    async def submit(
        self, prepared: PreparedRequest | PreparedPooling, **options: Any
    ) -> Generation:
        """Submit a request to the replica that is to compute it; see `Worker.submit`."""
        return await self.each[self.llm.driver.place(prepared)].submit(prepared, **options)

    def close(self) -> None:
        """Stop all threads, each within one step; requests that still run get an error."""
        for worker in self.each.values():
            worker.end()
        for worker in self.each.values():
            worker.close()
