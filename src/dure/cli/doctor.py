"""dure doctor: what of this machine makes a model slow."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dure.cli import console


def command(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Look at the processor, its limits, memory and disk, and say what makes a model slow here.

    Nothing is measured or changed; `dure bench MODEL` measures.
    """
    from dure.loading.doctor import examine

    findings = examine()
    if json:
        console.print_json([asdict(each) for each in findings])
        return
    for each in findings:
        console.write(f"{'!' if each.advice else ' '} {each.what:<12}{each.found}\n")
        if each.advice:
            console.write(f"{'':14}{each.advice}\n")
    slow = sum(1 for each in findings if each.advice)
    if not slow:
        console.note("Nothing was found that makes a model slow here.")
