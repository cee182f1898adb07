"""Limits of a key: tokens a minute and a day, money a month, streams at once; and what is left."""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from typing import Any

from dure.errors import InvalidRequestError

ASSUMED_ANSWER = 1024
"""Tokens that are set aside for an answer whose request names no max_tokens."""

MAX_LIMIT = 10**15


@dataclass(frozen=True)
class Limits:
    """What one key may use; None: as much as it likes.

    Minutes, days and months are those of UTC, and count by when a request began.
    """

    tokens_per_minute: int | None = None  # of prompts (cached or not) and answers
    tokens_per_day: int | None = None
    money_per_month: float | None = None  # in the currency of the key's prices
    streams: int | None = None  # answers that run or wait at once

    def __post_init__(self) -> None:
        for each in fields(self):
            value, low = getattr(self, each.name), 1 if each.name == "streams" else 0
            whole = each.name != "money_per_month"
            kind = int if whole else (int, float)
            if value is None:
                continue
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not is_number or not low <= value <= MAX_LIMIT:
                what = "a whole number" if whole else "a number"
                raise InvalidRequestError(
                    f"The limit {each.name} must be {what} from {low} to {MAX_LIMIT}, "
                    f"but is {value!r:.40}."
                )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Limits:
        """Make limits of a mapping, such as JSON's. Raises InvalidRequestError."""
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise InvalidRequestError(
                    f"{name!r:.60} is no limit.", hint=f"there are {', '.join(known)}"
                )
        return cls(**given)


class LimitReached(Exception):  # noqa: N818 - it is no error of anyone's
    """A key has used what it may. `retry_s`: seconds until that changes; None: it never does."""

    def __init__(self, limit: str, message: str, retry_s: int | None) -> None:
        super().__init__(message)
        self.limit, self.retry_s = limit, retry_s


@dataclass
class Held:
    """What is set aside for a request that runs, and when it began."""

    tokens: int
    money: float
    began: float


@dataclass
class _Window:
    """What was used in the minute, day or month that began at `start`."""

    period: str  # "minute", "day" or "month"
    start: float = -math.inf
    used: float = 0.0

    def at(self, now: float) -> float:
        """Return what is used at `now`; a clock that goes back begins nothing anew."""
        start = began(self.period, now)
        if start > self.start:
            self.start, self.used = start, 0.0
        return self.used

    def add(self, amount: float, at: float) -> None:
        """Count what a request of that time used, if its time is the current one."""
        if at >= self.start:
            self.used += amount


@dataclass
class Allowance:
    """What one key has used of its limits, requests that still run included.

    For each of these what it may take at most is set aside (`hold`), and counted as it was in the
    end (`release`); so many at once together keep to the limits, too.
    """

    limits: Limits
    held: int = 0  # requests that run
    _windows: dict[str, _Window] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._windows = {
            "tokens_per_minute": _Window("minute"),
            "tokens_per_day": _Window("day"),
            "money_per_month": _Window("month"),
        }

    def begin_with(self, read: Callable[[float], tuple[int, float]], now: float) -> None:
        """Take over what was used before this process.

        read: returns the tokens and the money of requests that began at or after a time.
        """
        for name, window in self._windows.items():
            if getattr(self.limits, name) is not None:
                window.at(now)
                tokens, money = read(window.start)
                window.used = money if name == "money_per_month" else tokens

    def hold(self, tokens: int, money: float, now: float) -> Held:
        """Set aside what a request may take. Raises LimitReached if that is more than is left."""
        streams = self.limits.streams
        if streams is not None and self.held >= streams:
            said = f"This key has {self.held} requests running, and the limit is {streams}."
            raise LimitReached("streams", said, 1)
        for name, window in self._windows.items():
            self._check(name, window, money if name == "money_per_month" else tokens, now)
        for name, window in self._windows.items():
            window.add(money if name == "money_per_month" else tokens, now)
        self.held += 1
        return Held(tokens, money, now)

    def release(self, held: Held, tokens: int, money: float) -> None:
        """Count what the request took in the end."""
        self.held -= 1
        for name, window in self._windows.items():
            more = money - held.money if name == "money_per_month" else tokens - held.tokens
            window.add(more, held.began)

    def _check(self, name: str, window: _Window, amount: float, now: float) -> None:
        limit = getattr(self.limits, name)
        used = window.at(now)
        if limit is None or (used + amount <= limit and used < limit):
            return
        words = name.replace("_per_", " a ")
        if amount > limit:
            raise LimitReached(
                name,
                f"This request may take {_shown(amount)} {words}, and this key's limit is "
                f"{_shown(limit)} (hint: a lower max_tokens, or a shorter prompt).",
                None,
            )
        ends = _ends(window.period, window.start)
        raise LimitReached(
            name,
            f"This key has used or set aside {_shown(used)} of its {_shown(limit)} {words}, and "
            f"this request may take {_shown(amount)}. The {window.period} ends at {_said(ends)}.",
            max(1, math.ceil(ends - now)),
        )


def began(period: str, now: float) -> float:
    """Return when the minute, day or month (UTC) of `now` began, in seconds of the epoch."""
    at = datetime.fromtimestamp(now, timezone.utc).replace(second=0, microsecond=0)
    if period != "minute":
        at = at.replace(hour=0, minute=0)
    return (at.replace(day=1) if period == "month" else at).timestamp()


def _ends(period: str, start: float) -> float:
    at = datetime.fromtimestamp(start, timezone.utc)
    days = calendar.monthrange(at.year, at.month)[1] if period == "month" else 1
    step = timedelta(minutes=1) if period == "minute" else timedelta(days=days)
    return (at + step).timestamp()


def _said(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return at.strftime("%Y-%m-%d %H:%M UTC")


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
