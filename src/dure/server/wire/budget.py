"""Budgets: bytes of memory that bodies share until they are admitted, or vectors until sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dure.server import limits
from dure.server.errors import HTTPError, unavailable


class Budget:
    """Bytes of memory that requests share; who finds too few left waits for its turn."""

    def __init__(self, most: int, refusal: Callable[[], HTTPError] | None = None) -> None:
        """refusal: makes the 503 for who has waited too long; None: that of bodies."""
        self.most = most
        self._refusal = refusal or no_room
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, cost: int) -> None:
        """Take `cost` bytes, or all there are; a 503 if too few came free in time."""
        if not self._waiting and self._fits(cost):
            self.used += cost
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, turn))
        try:
            await asyncio.wait_for(asyncio.shield(turn), limits.PREPARE_SECONDS)
        except BaseException as error:
            if turn.done():
                self.give(cost)
            turn.cancel()
            self._go_on()  # it may have been the first, and those behind it fit
            if isinstance(error, TimeoutError | asyncio.TimeoutError):
                raise self._refusal() from None
            raise

    def give(self, cost: int) -> None:
        """Give back `cost` bytes; those who wait longest go first."""
        self.used -= cost
        self._go_on()

    def _fits(self, cost: int) -> bool:
        return not self.used or self.used + cost <= self.most

    def _go_on(self) -> None:
        while self._waiting:
            cost, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(cost):
                    return
                self.used += cost
                turn.set_result(None)
            self._waiting.popleft()


class HeldBody:
    """What a body counts for in its budget, from its parsing until its request is admitted."""

    def __init__(self, budget: Budget, *, is_large: bool) -> None:
        self.is_large = is_large
        self._budget = budget
        self._cost = 0

    async def reserve(self, cost: int) -> None:
        """Wait until there are `cost` bytes for the parsed body."""
        await self._budget.take(cost)
        self._cost = cost

    def release(self) -> None:
        """Give the bytes back: the request is admitted, or over."""
        cost, self._cost = self._cost, 0
        if cost:
            self._budget.give(cost)


def no_room() -> HTTPError:
    """Return the 503 for a body that finds no room."""
    error = unavailable(
        "The bodies of all requests that are being received or wait take "
        f"{limits.MAX_UNPARSED_BYTES:,} bytes, which is the limit. Try again later.",
        "bodies_too_large",
    )
    error.headers = {**error.headers, "Connection": "close"}
    return error


def no_room_for_vectors() -> HTTPError:
    """Return the 503 for vectors that find no room."""
    return unavailable(
        "The vectors of all requests that are computed or sent take "
        f"{limits.MAX_VECTOR_BYTES:,} bytes, which is the limit. Try again later.",
        "vectors_too_large",
    )
