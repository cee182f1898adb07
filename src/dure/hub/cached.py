"""Find repositories that Hugging Face's own tools downloaded. They are never changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dure.errors import DureError
from dure.hub.names import ModelName
from dure.hub.repository import RemoteFile, choose_files, quant_of
from dure.hub.types import Check


def find_in_huggingface_cache(wanted: ModelName) -> Path | None:
    """Return the path to open for `wanted` in Hugging Face's cache; None if it is not complete."""
    snapshot = _snapshot_of(wanted)
    if snapshot is None:
        return None
    files = _files_in(snapshot)
    try:
        chosen = choose_files(files, wanted.quant, wanted.repo)
    except DureError:
        return None
    if chosen[0].path.casefold().endswith(".gguf"):
        return snapshot / chosen[0].path
    return snapshot if _has_every_shard(snapshot) else None


def quantisations_in_huggingface_cache(wanted: ModelName) -> list[str]:
    """List the names `org/repo:QUANT` of the GGUF files of `wanted`'s repository in the cache."""
    snapshot = _snapshot_of(wanted)
    if snapshot is None:
        return []
    ggufs = [f.path for f in _files_in(snapshot) if f.path.casefold().endswith(".gguf")]
    at = f"@{wanted.revision}" if wanted.revision else ""
    return [f"{wanted.repo}{at}:{quant}" for quant in sorted({*map(quant_of, ggufs)} - {""})]


def _snapshot_of(wanted: ModelName) -> Path | None:
    cache = huggingface_cache()
    repository = _repository_folder(cache, wanted.repo) if cache else None
    return _snapshot(repository, wanted.revision) if repository else None


def _files_in(snapshot: Path) -> list[RemoteFile]:
    return [
        RemoteFile(f.relative_to(snapshot).as_posix(), Check(f.stat().st_size))
        for f in sorted(snapshot.rglob("*"))
        if f.is_file()  # not so for a link to a blob that is gone or not yet there
    ]


def huggingface_cache() -> Path | None:
    """Return the cache folder of Hugging Face's own tools, whether it exists or not."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = huggingface_home()
    return home / "hub" if home else None


def huggingface_home() -> Path | None:
    """Return the folder of Hugging Face's own tools: cache and token."""
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "huggingface"
    except RuntimeError:
        return None


def _repository_folder(cache: Path, repo: str) -> Path | None:
    wanted = "models--" + repo.replace("/", "--")
    if (cache / wanted).is_dir():
        return cache / wanted
    try:
        folders = list(cache.iterdir())
    except OSError:
        return None
    return next((f for f in folders if f.name.casefold() == wanted.casefold()), None)


def _snapshot(repository: Path, revision: str) -> Path | None:
    named = revision or "main"
    if ".." in named:
        return None
    try:
        commit = (repository / "refs" / named).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = named
    snapshot = repository / "snapshots" / commit
    return snapshot if "/" not in commit and ".." not in commit and snapshot.is_dir() else None


def _has_every_shard(snapshot: Path) -> bool:
    index = snapshot / "model.safetensors.index.json"
    if not index.is_file():
        return True
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((snapshot / str(shard)).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
