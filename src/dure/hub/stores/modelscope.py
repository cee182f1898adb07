"""ModelScope's cache: repositories that its own tools downloaded, in the layouts of all years.

$MODELSCOPE_CACHE (else ~/.cache/modelscope)
  models/ORG--NAME/snapshots/REVISION/FILE      since modelscope 1.38 (modelscope_hub)
  models/ORG/NAME/FILE, hub/models/ORG/NAME/…   before; a dot of NAME is written ___
  ORG/NAME/FILE, hub/ORG/NAME/FILE              still earlier
A file under way is called FILE.incomplete, or lies in a folder ._____temp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dure.hub.names import ModelName
from dure.hub.store import LocalModel
from dure.hub.stores.base import local, models_in, named, open_in, subfolders

_OWNER = "ModelScope"
_DEFAULT_REVISIONS = ("master", "main")
_NO_ORGANISATIONS = {"models", "hub", "datasets", "snapshots", "temp"}


@dataclass(frozen=True)
class ModelScopeCache:
    """The cache of ModelScope's own tools."""

    folder: Path
    owner: str = _OWNER

    def find(self, wanted: ModelName) -> LocalModel | None:
        """Return the model of a name that begins with `modelscope:`."""
        if wanted.kind != "modelscope":
            return None
        for folder in self._folders_of(wanted):
            opened = open_in(folder, wanted.quant, wanted.repo)
            if opened is not None:
                return local(wanted.text, *opened, _OWNER, revision=wanted.revision)
        return None

    def models(self) -> list[LocalModel]:
        """List the models of all layouts; of one that lies in two, the newer."""
        found: dict[str, LocalModel] = {}
        for name, folder in self._repositories():
            for model in models_in(f"modelscope:{name}", folder, _OWNER):
                found.setdefault(model.name.casefold(), model)
        return list(found.values())

    def removal(self, model: LocalModel) -> str:
        """Say how a model is removed."""
        return f"delete {model.path if model.path.is_dir() else model.path.parent} to remove it"

    def _folders_of(self, wanted: ModelName) -> Iterator[Path]:
        org, name = wanted.repo.split("/")
        newest = named(self.folder / "models", f"{org}--{name}")
        if newest is not None:
            revisions = (wanted.revision,) if wanted.revision else _DEFAULT_REVISIONS
            for revision in revisions:
                if (newest / "snapshots" / revision).is_dir():
                    yield newest / "snapshots" / revision
        if wanted.revision in ("", *_DEFAULT_REVISIONS):  # the others do not say which they have
            for root in self._older_roots():
                organisation = named(root, org)
                for written in (name.replace(".", "___"), name) if organisation else ():
                    folder = named(organisation, written) if organisation else None
                    if folder is not None:
                        yield folder

    def _older_roots(self) -> tuple[Path, ...]:
        base = self.folder
        return (base / "models", base / "hub" / "models", base, base / "hub")

    def _repositories(self) -> Iterator[tuple[str, Path]]:
        for repository in subfolders(self.folder / "models"):
            org, dashes, name = repository.name.partition("--")
            for snapshot in subfolders(repository / "snapshots") if dashes else ():
                at = "" if snapshot.name in _DEFAULT_REVISIONS else f"@{snapshot.name}"
                yield f"{org}/{name}{at}", snapshot
        for root in self._older_roots():
            for org_folder in subfolders(root):
                if org_folder.name in _NO_ORGANISATIONS or "--" in org_folder.name:
                    continue
                for folder in subfolders(org_folder):
                    yield f"{org_folder.name}/{folder.name.replace('___', '.')}", folder


def modelscope_cache() -> Path | None:
    """Return the cache folder of ModelScope's own tools, whether it exists or not."""
    try:
        given = os.environ.get("MODELSCOPE_CACHE")
        return Path(given).expanduser() if given else Path.home() / ".cache" / "modelscope"
    except RuntimeError:
        return None
