"""dure rm: delete a pulled model."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

import sys
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="A name that `dure list` shows.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled model, the partial files of an interrupted pull, or a preset."""
    from dure import hub
    from dure.cli import console
    from dure.errors import InvalidRequestError

    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequestError(
                f"{name} is not deleted without asking, and there is no terminal to ask on.",
                hint=f"dure rm {name} --yes",
            )
        typer.confirm(f"Delete {name}?", abort=True, err=True)
    preset = hub.preset_of(name)
    freed = hub.remove(name)
    if preset is not None:
        console.note(f"{preset.name} is deleted; {preset.base}, which it was made of, is kept.")
        return
    console.note(f"{name} is deleted; {hub.human_bytes(freed)} freed.")
