"""Accounting: who asks, what that costs and may cost, and the row of each request in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.errors import DureError
from dure.metering.keys_file import NO_PRICES, KeyPolicy
from dure.metering.ledger import Closed, Opened
from dure.metering.limits import ASSUMED_ANSWER, Allowance, Held, LimitReached
from dure.server.errors import HTTPError
from dure.server.serving.generation import new_id

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest
    from dure.chat.usage import Usage
    from dure.metering.ledger import Ledger
    from dure.metering.prices import Prices
    from dure.pooling.request import PreparedPooling
    from dure.server.serving.generation import Generation
    from dure.server.serving.metrics import Metrics

ANYONE = "local"
"""The name of whoever asks a server without keys."""


@dataclass
class Entry:
    """A request that runs, as it is accounted for."""

    id: str  # the digits of the response's id, and the ledger's
    opened: float  # seconds of the epoch
    began: float  # time.perf_counter
    key: str  # its key's name
    model: str
    prices: Prices | None
    allowance: Allowance
    held: Held


class Accounting:
    """The accounts of one server's keys. All methods are called on the event loop."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        policies: Mapping[str, KeyPolicy] | None = None,
        default: KeyPolicy | None = None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """policies: by tenant; default: of a server without keys. clock: seconds of the epoch."""
        self._metrics = metrics
        self._policies = dict(policies or {})
        self._default = default or KeyPolicy(ANYONE, NO_PRICES)
        self._ledger = ledger
        self._clock = clock
        self._allowances = {}
        for policy in (*self._policies.values(), self._default):
            allowance = self._allowances[policy.name] = Allowance(policy.limits)
            if ledger is not None:
                allowance.begin_with(_used_by(ledger, policy.name), clock())

    def prices(self, tenant: str, model: str) -> Prices | None:
        """Return what a tenant pays for a model; None if nothing is charged."""
        return self._policy(tenant).prices.of(model)

    def is_admin(self, tenant: str) -> bool:
        """Whether a tenant sees what all keys use, and may change the server's models."""
        policy = self._policy(tenant)
        return policy.is_admin or policy is self._default

    def name(self, tenant: str) -> str:
        """Return the name of a tenant's key."""
        return self._policy(tenant).name

    def check(self, tenant: str) -> None:
        """Raise a 429 or a 402 if the tenant has used what it may, before any work is done."""
        allowance = self._allowances[self._policy(tenant).name]
        try:
            allowance.release(allowance.hold(0, 0.0, self._clock()), 0, 0.0)
        except LimitReached as reached:
            raise _refusal(reached) from None

    async def begin(
        self,
        tenant: str,
        model: str,
        prepared: PreparedRequest | PreparedPooling,
        *,
        context: int,
    ) -> Entry:
        """Set aside what the request may take, and open its row; return once that is written.

        context: of the model. Raises a 429, or a 402 for money, if it may take more than is left.
        """
        policy, prompt = self._policy(tenant), prepared.num_tokens
        prices, allowance = policy.prices.of(model), self._allowances[policy.name]
        longest = prepared.max_tokens
        if longest is None:
            longest = min(ASSUMED_ANSWER, max(0, context - prompt))
        output, now = prepared.num_choices * longest, self._clock()
        money = 0.0 if prices is None else prices.money(prompt=prompt, cached=0, output=output)
        try:
            held = allowance.hold(prompt + output, money, now)
        except LimitReached as reached:
            raise _refusal(reached) from None
        began = time.perf_counter()
        entry = Entry(new_id(), now, began, policy.name, model, prices, allowance, held)
        if self._ledger is not None:
            written = _Written()
            self._ledger.begin(Opened(entry.id, now, entry.key, model), written.tell)
            try:
                await written
            except BaseException:
                self.forget(entry)
                raise
        return entry

    def forget(self, entry: Entry) -> None:
        """Take back a request of which nothing was computed."""
        entry.allowance.release(entry.held, 0, 0.0)
        if self._ledger is not None:
            self._ledger.forget(entry.id)

    def end(self, entry: Entry, generation: Generation, usage: Usage) -> Awaitable[None] | None:
        """Count what a request took, and close its row; what is returned waits for that."""
        nothing = not usage.prompt_tokens and not usage.cost.cpu_s
        if nothing and isinstance(generation.error, DureError):  # the engine refused it
            self.forget(entry)
            return None
        money = 0.0 if entry.prices is None else usage.money(entry.prices)
        row = Closed(
            closed=self._clock(),
            end=_end(generation),
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            reasoning=usage.reasoning_tokens,
            output=usage.output_tokens,
            seconds=time.perf_counter() - entry.began,
            machine_s=usage.cost.machine_s,
            cpu_s=usage.cost.cpu_s,
            joules=usage.cost.joules,
            energy=usage.cost.energy_source,
            money=money,
            currency="" if entry.prices is None else entry.prices.currency,
        )
        entry.allowance.release(entry.held, row.prompt + row.output, money)
        self._metrics.on_end(generation, entry.key, row)
        if self._ledger is None:
            return None
        written = _Written()
        self._ledger.end(entry.id, row, written.tell)
        return written

    def pricing(self, tenant: str, model: str) -> dict[str, Any]:
        """Return a model's prices for /v1/models, by the names that proxies read.

        `pricing` is OpenRouter's (a token, as text), the three `…_per_token` are LiteLLM's, and
        `prices` is as the operator set them, a million tokens. All are in the operator's currency,
        which `prices` names.
        """
        prices = self.prices(tenant, model)
        if prices is None:
            return {}
        cached = prices.input if prices.cached_input is None else prices.cached_input
        each = [value / 1e6 for value in (prices.input, cached, prices.output)]
        texts = [f"{value:.12f}".rstrip("0").rstrip(".") for value in each]
        return {
            "pricing": {
                "prompt": texts[0],
                "input_cache_read": texts[1],
                "completion": texts[2],
            },
            "input_cost_per_token": each[0],
            "cache_read_input_token_cost": each[1],
            "output_cost_per_token": each[2],
            "prices": {
                "input": prices.input,
                "cached_input": cached,
                "output": prices.output,
                "kwh": prices.kwh,
                "hour": prices.hour,
                "currency": prices.currency,
            },
        }

    def _policy(self, tenant: str) -> KeyPolicy:
        return self._policies.get(tenant, self._default)


class _Written:
    """Awaitable on the event loop that made it; `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()

    def tell(self) -> None:
        """Note that it is written."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def __await__(self) -> Any:
        return self._done.__await__()


def _used_by(ledger: Ledger, key: str) -> Callable[[float], tuple[int, float]]:
    return lambda since: ledger.used(key, since)


def _end(generation: Generation) -> str:
    if generation.error is not None:
        return "error"
    first = generation.completions[0]
    return "abort" if first is None or None in generation.completions else first.finish_reason


def _refusal(reached: LimitReached) -> HTTPError:
    headers = {} if reached.retry_s is None else {"Retry-After": str(reached.retry_s)}
    if reached.limit == "money_per_month":
        code = "insufficient_quota"
        return HTTPError(402, str(reached), code, code=code, headers=headers)
    return HTTPError(
        429, str(reached), "rate_limit_error", code="rate_limit_exceeded", headers=headers
    )
