"""dure stop: unload a model from a server's memory."""

# ruff: noqa: PLC0415 - the client is loaded when the verb runs, not for its --help

from __future__ import annotations

from typing import Annotated

import typer

from dure.cli import console
from dure.cli.ps import Url


def command(
    model: Annotated[str, typer.Argument(help="A name that `dure ps` shows.")], url: Url = None
) -> None:
    """Unload a model from the memory of a running server, after the requests that use it.

    The server goes on, and loads the model again when it is asked for.
    """
    from dure.hub.server_client import ServerClient

    name = ServerClient.from_environment(url).unload(model)
    console.note(f"{name} is unloaded as soon as no request uses it.")
