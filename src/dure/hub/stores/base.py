"""What the stores of other programs have in common: they are read, and never changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from dure.errors import DureError
from dure.hub.names import ModelName
from dure.hub.repository import RemoteFile, choose_files, has_tokenizer, later_part, quant_of
from dure.hub.store import LocalModel, read_json_file
from dure.hub.types import Check

MAX_ENTRIES = 20_000
"""Files and folders that are looked at in one store: a home folder given by mistake has more."""

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")


class Store(Protocol):
    """A folder of models that another program keeps."""

    @property
    def owner(self) -> str:
        """The program's name, as its users write it."""

    @property
    def folder(self) -> Path:
        """The folder of all its models."""

    def find(self, wanted: ModelName) -> LocalModel | None:
        """Return the model of that name; None if it is not here, or not whole."""

    def models(self) -> list[LocalModel]:
        """List the whole models."""

    def removal(self, model: LocalModel) -> str:
        """Say how a model is removed: by whom, as dure does not."""


def files_in(folder: Path) -> list[RemoteFile]:
    """List the files below `folder`, as a hub would list them.

    A link to a blob that is not there is no file; a name that begins with a dot is left out.
    """
    found: list[RemoteFile] = []
    pending = [folder]
    while pending and len(found) < MAX_ENTRIES:
        try:
            entries = sorted(pending.pop().iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    pending += [] if entry.is_symlink() else [entry]
                elif entry.is_file():
                    size = entry.stat().st_size
                    found.append(RemoteFile(entry.relative_to(folder).as_posix(), Check(size)))
            except OSError:
                continue
    return found


def open_in(folder: Path, quant: str, repo: str) -> tuple[Path, int] | None:
    """Return what to open of a repository's `folder`, and its bytes; None if it is not whole."""
    try:
        files = files_in(folder)
        chosen = choose_files(files, quant, repo)
    except DureError:
        return None
    size = sum(file.check.size_bytes for file in chosen)
    if chosen[0].name.casefold().endswith(".gguf"):
        return folder / chosen[0].path, size
    is_whole = has_tokenizer(files) and _has_every_shard(folder, chosen)
    return (folder, size) if is_whole else None


def quantisations_in(folder: Path) -> list[str]:
    """List the quantisations of the GGUF files in a repository's `folder`, and names of others.

    Of several models in one quantisation the names are listed, too.
    """
    ggufs = [
        file
        for file in files_in(folder)
        if file.name.casefold().endswith(".gguf") and "mmproj" not in file.name.casefold()
    ]
    quants = Counter(quant_of(f.path) for f in ggufs if not later_part(f.name))
    several = {f.name for f in ggufs if quants[quant_of(f.path)] > 1 and not later_part(f.name)}
    return sorted({quant_of(f.path) or f.name for f in ggufs} | several)


def models_in(name: str, folder: Path, owner: str, *, revision: str = "") -> list[LocalModel]:
    """List the models of one repository's `folder`: its safetensors, and each quantisation."""
    repo = name.rpartition(":")[2].partition("@")[0]
    found = []
    for quant in ["", *quantisations_in(folder)]:
        opened = open_in(folder, quant, repo)
        if opened is None or (not quant and opened[0] != folder):
            continue
        found.append(local(f"{name}:{quant}" if quant else name, *opened, owner, revision=revision))
    return found


def local(name: str, path: Path, size_bytes: int, owner: str, *, revision: str = "") -> LocalModel:
    """Build the entry of a model that another program keeps."""
    try:
        seconds = path.stat().st_mtime
    except OSError:
        seconds = 0.0
    at = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    return LocalModel(name, path, size_bytes, owner, revision, "", at, owner=owner)


def subfolders(folder: Path) -> list[Path]:
    """List the folders in `folder`, by name; empty if it cannot be read."""
    try:
        return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.is_dir())
    except OSError:
        return []


def named(folder: Path, name: str) -> Path | None:
    """Return the folder called `name` in `folder`, in any case; None if there is none."""
    exact = folder / name
    try:
        if exact.is_dir():
            return exact
    except (OSError, ValueError):
        return None
    wanted = name.casefold()
    return next((f for f in subfolders(folder) if f.name.casefold() == wanted), None)


def _has_every_shard(folder: Path, chosen: Sequence[RemoteFile]) -> bool:
    """Check that all files of a set are here: by its index, else by the numbers in their names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json_file(index).get("weight_map")
        return isinstance(names, dict) and all(
            isinstance(shard, str) and ".." not in shard and (folder / shard).is_file()
            for shard in set(map(str, names.values()))
        )
    shards = [match for file in chosen if (match := _SHARD.search(file.name))]
    return not shards or len(shards) == int(shards[0][1])
