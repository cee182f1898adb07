"""Hugging Face's cache: repositories that huggingface_hub and what builds on it downloaded.

$HF_HUB_CACHE (else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub)
  models--ORG--NAME/
    refs/main                 the commit that a revision's name means
    snapshots/COMMIT/FILE     a link to the blob; it is made when the blob is whole
    blobs/SHA-256             and SHA-256.incomplete, while it is downloaded
    trees/COMMIT.json         all files of that commit, where huggingface_hub 2 listed them
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dure.hub.names import ModelName
from dure.hub.repository import COMPANIONS
from dure.hub.store import LocalModel, read_json_file
from dure.hub.stores.base import local, models_in, named, open_in, subfolders

_OWNER = "Hugging Face"


@dataclass(frozen=True)
class HuggingFaceCache:
    """The cache of Hugging Face's own tools."""

    folder: Path
    owner: str = _OWNER

    def find(self, wanted: ModelName) -> LocalModel | None:
        """Return the model of a hub's name, from the revision asked for."""
        if wanted.kind != "huggingface":
            return None
        repository = named(self.folder, "models--" + wanted.repo.replace("/", "--"))
        snapshot = _snapshot(repository, wanted.revision) if repository else None
        if repository is None or snapshot is None:
            return None
        opened = open_in(snapshot, wanted.quant, wanted.repo)
        if opened is None or (opened[0] == snapshot and not _is_complete(repository, snapshot)):
            return None
        return local(wanted.text, *opened, _OWNER, revision=snapshot.name)

    def models(self) -> list[LocalModel]:
        """List the models of every revision that is here."""
        found = []
        for repository in subfolders(self.folder):
            org, _, name = repository.name.removeprefix("models--").partition("--")
            if not repository.name.startswith("models--") or not name:
                continue
            revisions = _revisions(repository)
            for snapshot in subfolders(repository / "snapshots"):
                at = "".join(f"@{ref}" for ref in [revisions.get(snapshot.name, snapshot.name)])
                repo = f"{org}/{name}" + at.removesuffix("@main")
                listed = models_in(repo, snapshot, _OWNER, revision=snapshot.name)
                whole = _is_complete(repository, snapshot)
                found += [each for each in listed if each.path != snapshot or whole]
        return found

    def removal(self, model: LocalModel) -> str:
        """Say how a model is removed."""
        repo = model.name.partition(":")[0].partition("@")[0]
        return f"`hf cache rm model/{repo}` removes it"


def huggingface_cache() -> Path | None:
    """Return the cache folder of Hugging Face's own tools, whether it exists or not."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _expanded(os.environ[variable])
    home = huggingface_home()
    return home / "hub" if home else None


def huggingface_home() -> Path | None:
    """Return the folder of Hugging Face's own tools: cache and token."""
    if os.environ.get("HF_HOME"):
        return _expanded(os.environ["HF_HOME"])
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (_expanded(cache) if cache else Path.home() / ".cache") / "huggingface"
    except RuntimeError:
        return None


def _expanded(text: str) -> Path:
    """Expand `$NAME` and `~`, as huggingface_hub does in its folders."""
    return Path(os.path.expandvars(os.path.expanduser(text)))  # noqa: PTH111 - never raises


def _revisions(repository: Path) -> dict[str, str]:
    """Map commits to the name of a revision; of several names "main" wins."""
    refs = repository / "refs"
    found: dict[str, str] = {}
    for file in sorted(refs.rglob("*")):
        commit = _commit(refs, file.relative_to(refs).as_posix())
        if commit and found.get(commit) != "main":
            found[commit] = file.relative_to(refs).as_posix()
    return found


def _commit(refs: Path, name: str) -> str:
    try:
        return (refs / name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _snapshot(repository: Path, revision: str) -> Path | None:
    asked = revision or "main"
    if ".." in asked:
        return None
    commit = _commit(repository / "refs", asked) or asked
    snapshot = repository / "snapshots" / commit
    return snapshot if "/" not in commit and ".." not in commit and snapshot.is_dir() else None


def _is_complete(repository: Path, snapshot: Path) -> bool:
    """Check a folder of safetensors by the list of the commit's files, where that was kept.

    Files that a model does without may be missing: who downloads names the patterns he wants.
    """
    files = read_json_file(repository / "trees" / f"{snapshot.name}.json").get("files")
    if not isinstance(files, dict):
        return True
    return all((snapshot / name).is_file() for name in COMPANIONS & files.keys())
