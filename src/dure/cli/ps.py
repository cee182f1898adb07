"""dure ps: the models that a server has in memory."""

# ruff: noqa: PLC0415 - the client is loaded when the verb runs, not for its --help

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Annotated

import typer

from dure.cli import console

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", show_default="$DURE_URL, else http://127.0.0.1:8000", help="The server."
    ),
]


def command(
    url: Url = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the models that a running server has in memory, and until when it keeps them."""
    from dure.hub import human_bytes
    from dure.hub.server_client import ServerClient

    models = ServerClient.from_environment(url).running()
    if json:
        console.print_json([asdict(model) for model in models])
        return
    if not models:
        console.note("No model is in memory.")
        return
    table: list[tuple[str, ...]] = [("NAME", "SIZE", "CONTEXT", "UNTIL")]
    for each in models:
        context = f"{each.context:,}" if each.context else ""
        table.append((each.name, human_bytes(each.size_bytes), context, _until(each.expires_at)))
    for line in console.aligned(table):
        console.write(line + "\n")


def _until(expires_at: str) -> str:
    """Write when a model is unloaded: the time left, or "for ever"."""
    try:
        left = datetime.fromisoformat(expires_at.replace("Z", "+00:00"))
        seconds = (left - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError):
        return ""
    if seconds > 86_400 * 365:
        return "for ever"
    minutes = max(0, round(seconds)) // 60
    return f"{minutes} min" if minutes else f"{max(0, round(seconds))} s"
