"""dure version: the version, and what it runs on."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from typing import Annotated

import typer

from dure.cli import console


def command(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the version; with --json also Python's, the system's and the kernels in use."""
    import platform

    from dure import __version__

    if not json:
        console.write(f"dure {__version__}\n")
        return
    from dure import kernels

    console.print_json(
        {
            "version": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "isa": kernels.isa(),
        }
    )
