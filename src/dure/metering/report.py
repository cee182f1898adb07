"""What a ledger says: requests, tokens, joules and money by key, model and day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path

from dure.errors import InvalidRequestError
from dure.metering.ledger import LOST, reading

GROUPS = {"key": "key", "model": "model", "day": "date(opened, 'unixepoch')"}


@dataclass(frozen=True)
class Line:
    """The sums of one group."""

    group: tuple[str, ...]  # its key, model, day: as asked for
    requests: int
    unfinished: int  # of them, cut off by the client, failed, or lost
    lost: int  # of them, that ran when the server was killed
    prompt: int  # tokens
    cached: int
    output: int
    reasoning: int
    seconds: float  # of steps, shared
    cpu_s: float
    joules: float  # where they are known
    unknown: int  # requests whose joules are not
    energy: str  # how they were found: all ways, with commas
    money: float
    currency: str


def report(
    path: Path, by: Sequence[str], *, since: date | None = None, until: date | None = None
) -> list[Line]:
    """Sum up a ledger.

    by: of GROUPS; money is never added across currencies. since, until: days (UTC), both included.
    Requests that still run are left out. Raises InvalidRequestError.
    """
    for each in by:
        if each not in GROUPS:
            raise InvalidRequestError(
                f"A ledger is not summed by {each!r:.40}.", hint=f"by {', '.join(GROUPS)}"
            )
    columns = [GROUPS[each] for each in dict.fromkeys(by)]
    groups = ", ".join([*columns, "currency"])
    sql = f"""
        SELECT {"".join(f"{each}, " for each in columns)} COUNT(*),
            COALESCE(SUM(end NOT IN ('stop', 'length')), 0), COALESCE(SUM(end = ?), 0),
            COALESCE(SUM(prompt), 0), COALESCE(SUM(cached), 0), COALESCE(SUM(output), 0),
            COALESCE(SUM(reasoning), 0), TOTAL(machine_s), TOTAL(cpu_s), TOTAL(joules),
            COALESCE(SUM(joules IS NULL AND output > 0), 0),
            COALESCE(GROUP_CONCAT(DISTINCT NULLIF(energy, '')), ''), TOTAL(money), currency
        FROM requests WHERE end IS NOT NULL AND opened >= ? AND opened < ?
        GROUP BY {groups} ORDER BY {groups}
    """
    span = (_start(since), _start(until) + 86_400 if until else float("inf"))
    with reading(path) as file:
        rows = file.execute(sql, (LOST, *span)).fetchall()
    width = len(columns)
    return [Line(tuple(map(str, row[:width])), *row[width:]) for row in rows]


def _start(day: date | None) -> float:
    if day is None:
        return 0.0
    return datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()
