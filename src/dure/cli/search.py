"""dure search: models by words, in the catalogue and on Hugging Face."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

from typing import Annotated

import typer

from dure.cli import console


def command(
    words: Annotated[list[str], typer.Argument(help="All of these must be in a model's name.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="Repositories to list.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find models by words: short names of the catalogue, then repositories of GGUF files on
    Hugging Face, the most downloaded first.

    Where no hub answers, the catalogue's are listed alone, and it is said.
    """
    from dure import hub
    from dure.errors import DureError
    from dure.hub.search import search_huggingface

    asked = " ".join(words)
    entries = hub.load_catalogue().search(asked)
    found, problem = [], ""
    try:
        found = search_huggingface(asked, limit)
    except DureError as error:
        problem = error.message
    if json:
        console.print_json(
            {
                "catalogue": [{"name": e.name, "title": e.title} for e in entries],
                "huggingface": [{"name": f.repo, "downloads": f.downloads} for f in found],
                "problem": problem,
            }
        )
        return
    table: list[tuple[str, ...]] = [("NAME", "WHAT")]
    table += [(e.name, f"{e.title}, {e.publisher}") for e in entries]
    table += [(f.repo, f"Hugging Face, {f.downloads:,} downloads") for f in found]
    if len(table) == 1:
        console.note(f"Nothing found for {asked!r}.")
    else:
        for line in console.aligned(table):
            console.write(line + "\n")
    if problem:
        console.note(f"({problem})")
