"""dure list: the models on this machine and in the catalogue."""

# ruff: noqa: PLC0415 - the hub is loaded when the verb runs, not for its --help

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import console

if TYPE_CHECKING:
    from dure.hub import CatalogueEntry, LocalModel, Preset


def command(
    everything: Annotated[
        bool,
        typer.Option("--all", "-a", help="Also list the catalogue's models that are not here."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    models_dir: console.ModelsDir = None,
) -> None:
    """List the models on this machine: those that dure pulled, and those that other programs keep,
    with the folder in which they lie; then the presets of `dure create`.
    """
    del models_dir  # set in the environment
    from dure import hub
    from dure.machine import memory_available

    catalogue = hub.load_catalogue()
    rows = [_local(model) for model in hub.local_models()]
    here = {row["name"] for row in rows}
    free = memory_available()
    rows += [
        _without_base(preset, catalogue.find(preset.base), free)
        for preset in hub.all_presets()
        if preset.name not in here
    ]
    if everything:
        absent = [entry for entry in catalogue.entries if entry.name not in here]
        rows += [_absent(entry, free) for entry in absent]
    if json:
        console.print_json([{**row, "default": row["name"] == catalogue.default} for row in rows])
        return
    if not rows:
        console.note(f"No models here yet. `dure pull {catalogue.default}` downloads the default.")
        return
    size = hub.human_bytes
    table: list[tuple[str, ...]] = [("NAME", "SIZE", "HERE", "FITS", "FROM", "LICENCE", "FOLDER")]
    for row in rows:
        name = row["name"] + (" (default)" if row["name"] == catalogue.default else "")
        since = row["pulled_at"][:10] if row["here"] else "no"
        about = "" if row["size_is_known"] else "about "
        table.append(
            (
                name,
                about + size(row["size_bytes"]) if row["size_bytes"] else "",
                since,
                row["fits"],
                row["source"],
                row["license"],
                row["folder"],
            )
        )
    for line in console.aligned(table):
        console.write(line + "\n")


def _local(model: LocalModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "here": True,
        "path": str(model.path),
        "folder": _folder(model),
        "owner": model.owner,
        "size_bytes": model.size_bytes,
        "size_is_known": True,
        "fits": "",
        "source": model.source,
        "license": model.license,
        "pulled_at": model.pulled_at,
    }


def _absent(entry: CatalogueEntry, free_bytes: int) -> dict[str, Any]:
    return {
        "name": entry.name,
        "here": False,
        "path": None,
        "folder": "",
        "owner": None,
        "size_bytes": entry.likely_bytes,
        "size_is_known": entry.is_known,
        "fits": fits(entry, free_bytes),
        "source": ", ".join(dict.fromkeys(source.kind for source in entry.sources)),
        "license": entry.license,
        "pulled_at": None,
    }


def _without_base(preset: Preset, base: CatalogueEntry | None, free_bytes: int) -> dict[str, Any]:
    """Return the row of a preset whose model is not here; its size is the `base`'s, if known."""
    return {
        "name": preset.name,
        "here": False,
        "path": None,
        "folder": "",
        "owner": None,
        "size_bytes": 0 if base is None else base.likely_bytes,
        "size_is_known": base is not None and base.is_known,
        "fits": "" if base is None else fits(base, free_bytes),
        "source": f"a preset of {preset.base}",
        "license": preset.license.strip().partition("\n")[0][:60],
        "pulled_at": preset.created_at,
    }


def fits(entry: CatalogueEntry, free_bytes: int) -> str:
    """Say whether a model that is not here fits in memory whole, by its size alone.

    "no, disk": a mixture whose experts are then read from disk. `dure plan NAME` knows more.
    """
    if entry.likely_bytes * 11 // 10 <= free_bytes:
        return "yes"
    return "no, disk" if entry.active_parameters else "no"


def _folder(model: LocalModel) -> str:
    """Return the folder of the store that the model lies in, with ~ for the home folder."""
    from dure.hub.store import models_folder
    from dure.hub.stores import store_of

    store = store_of(model)
    kept = models_folder() if store is None else store.folder
    folder = str(kept if kept in model.path.parents else model.path.parent)  # of a preset's file
    home = str(Path.home())
    return "~" + folder[len(home) :] if folder.startswith(home + os.sep) else folder
