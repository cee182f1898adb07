"""dure costs: what a ledger says, by key, model and day."""

# ruff: noqa: PLC0415 - the ledger is opened when the verb runs, not for its --help

from __future__ import annotations

import csv
import sys
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import console

if TYPE_CHECKING:
    from dure.metering.report import Line


class By(str, Enum):
    """What --by may be."""

    key = "key"
    model = "model"
    day = "day"


class Form(str, Enum):
    """How the sums are printed."""

    table = "table"
    csv = "csv"
    json = "json"


def command(
    ledger: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file of `dure serve --ledger FILE`.")
    ],
    by: Annotated[
        list[By] | None,
        typer.Option(
            help="Sum by key, model or day (UTC); may be repeated.", show_default="key and model"
        ),
    ] = None,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The first day that counts.", metavar="DATE"),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day that counts.", metavar="DATE"),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How to print the sums.")] = Form.table,
) -> None:
    """Show what requests took and cost, from a server's ledger.

    The server may be running; its requests that are not over are left out.
    """
    from dure.metering.report import report

    groups = [each.value for each in by or (By.key, By.model)]
    groups = list(dict.fromkeys(groups))
    lines = report(ledger, groups, since=_day(since), until=_day(until))
    rows = [_row(groups, line) for line in lines]
    if form is Form.json:
        console.print_json(rows)
    elif form is Form.csv:
        names = [*groups, *_NAMES]
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif not rows:
        console.note("No request of that time has ended.")
    else:
        _print_table(groups, rows)


_NAMES = (
    *("requests", "unfinished", "lost", "prompt_tokens", "cached_tokens", "output_tokens"),
    *("reasoning_tokens", "machine_seconds", "processor_seconds", "joules"),
    *("requests_without_joules", "energy", "money", "currency"),
)


def _row(groups: list[str], line: Line) -> dict[str, Any]:
    values = (
        *(line.requests, line.unfinished, line.lost, line.prompt, line.cached, line.output),
        *(line.reasoning, round(line.seconds, 6), round(line.cpu_s, 6), round(line.joules, 6)),
        *(line.unknown, line.energy, round(line.money, 9), line.currency),
    )
    return {
        **dict(zip(groups, line.group, strict=True)),
        **dict(zip(_NAMES, values, strict=True)),
    }


def _print_table(groups: list[str], rows: list[dict[str, Any]]) -> None:
    """Print the columns that a person looks for; CSV and JSON have all of them."""
    head = (*(each.upper() for each in groups), "REQUESTS", "UNFINISHED", "PROMPT", "CACHED")
    head = (*head, "OUTPUT", "PROCESSOR", "ENERGY", "MONEY")
    table: list[tuple[str, ...]] = [head]
    for row in rows:
        counts = ("requests", "unfinished", "prompt_tokens", "cached_tokens", "output_tokens")
        money = f"{row['money']:,.6f} {row['currency']}" if row["currency"] else "-"
        cells = (
            *(row[each] for each in groups),
            *(f"{row[each]:,}" for each in counts),
            f"{row['processor_seconds']:,.1f} s",
            _energy(row),
            money,
        )
        table.append(tuple(map(str, cells)))
    for text in console.aligned(table):
        console.write(text + "\n")
    if any("estimated" in row["energy"] for row in rows):
        console.note("(~: joules are estimated, not measured)")
    lost = sum(row["lost"] for row in rows)
    if lost:
        console.note(f"({lost} of the unfinished ran when a server was killed)")


def _energy(row: dict[str, Any]) -> str:
    if row["requests_without_joules"]:
        return "unknown" if not row["joules"] else f"> {console.joules(row['joules'])}"
    mark = "~" if "estimated" in row["energy"] else ""
    return mark + console.joules(row["joules"])


def _day(at: datetime | None) -> date | None:
    return None if at is None else at.date()
