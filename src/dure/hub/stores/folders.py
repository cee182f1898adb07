"""Folders of model files: LM Studio's, and those that a user names.

A model is a `.gguf` file, or a folder with config.json and .safetensors. LM Studio keeps
PUBLISHER/MODEL/FILE.gguf, the names of Hugging Face; a user's folder may have any order.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dure.hub.names import ModelName
from dure.hub.repository import RemoteFile, later_part, quant_of
from dure.hub.store import LocalModel, read_json_file
from dure.hub.stores.base import files_in, local, open_in

MAX_DEPTH = 6
"""Folders below a folder of models in which models are looked for."""


@dataclass(frozen=True)
class FolderStore:
    """A folder of models, called by where they lie in it or by what their files are called."""

    folder: Path
    owner: str

    def find(self, wanted: ModelName) -> LocalModel | None:
        """Return the model of that path below the folder, file name, or `org/repo:QUANT`."""
        if wanted.kind in ("huggingface", "path"):
            repository = self._repository(wanted)
            if repository is not None:
                return repository
        if wanted.kind == "modelscope" or wanted.revision:
            return None
        asked = wanted.text.casefold().removesuffix(".gguf")
        models = self.models()
        exact = [m for m in models if self._shown(m).casefold() == asked]
        exact = exact or [m for m in models if m.name.casefold() == asked]
        alike = [m for m in models if m.path.name.casefold().removesuffix(".gguf") == asked]
        found = (exact or alike)[:1] if len(exact or alike) == 1 else []
        return found[0] if found else None

    def models(self) -> list[LocalModel]:
        """List the models, each by the shortest name that means it."""
        files = [f for f in files_in(self.folder) if f.path.count("/") <= MAX_DEPTH]
        found = []
        for path, relative in self._places(files):
            opened = (
                open_in(path, "", relative)
                if path.is_dir()
                else open_in(path.parent, path.name, relative)
            )
            if opened is not None:
                found.append(local(self._name(path, relative), path, opened[1], self.owner))
        names = Counter(model.name for model in found if ":" in model.name)
        found = [  # of several models in one quantisation each has its file's name
            replace(each, name=f"{self._shown(each)}.gguf") if names[each.name] > 1 else each
            for each in found
        ]
        return sorted(found, key=lambda model: model.name.casefold())

    def removal(self, model: LocalModel) -> str:
        """Say how a model is removed."""
        return f"delete {model.path} to remove it"

    def _repository(self, wanted: ModelName) -> LocalModel | None:
        """Find `org/repo` and `org/repo:QUANT`, where the folder is in that order."""
        folder = self.folder / wanted.repo if wanted.repo else None
        if folder is None or wanted.revision or not folder.is_dir():
            return None
        opened = open_in(folder, wanted.quant, wanted.repo)
        return None if opened is None else local(wanted.text, *opened, self.owner)

    def _places(self, files: list[RemoteFile]) -> Iterator[tuple[Path, str]]:
        """Yield the path of each model, and its place below the folder without `.gguf`."""
        folders = {f.path.rpartition("/")[0] for f in files if f.name == "config.json"}
        for place in sorted(folders):
            if any(
                f.path.rpartition("/")[0] == place and f.name.endswith(".safetensors")
                for f in files
            ):
                yield self.folder / place, place or self.folder.name
        for file in files:
            folded = file.name.casefold()
            if folded.endswith(".gguf") and "mmproj" not in folded and not later_part(file.name):
                yield self.folder / file.path, file.path[: -len(".gguf")]

    def _name(self, path: Path, relative: str) -> str:
        """Return `org/repo:QUANT` for a file in that order, else its place below the folder."""
        parts = relative.split("/")
        quant = quant_of(path.name) if path.suffix.casefold() == ".gguf" else ""
        if len(parts) == 3 and quant:
            return f"{parts[0]}/{parts[1]}:{quant}"
        return relative if len(parts) < 3 else parts[-1]

    def _shown(self, model: LocalModel) -> str:
        place = model.path.relative_to(self.folder).as_posix()
        return place[: -len(".gguf")] if place.casefold().endswith(".gguf") else place


def lm_studio_folders() -> list[Path]:
    """List the folders in which LM Studio of this user keeps models, whether they exist or not."""
    try:
        home = Path.home()
    except RuntimeError:
        return []
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    try:
        pointed = (home / ".lmstudio-home-pointer").read_text(encoding="utf-8").strip()
        homes.insert(0, Path(pointed))
    except (OSError, ValueError):
        pass
    folders = []
    for each in homes:
        chosen = read_json_file(each / "settings.json").get("downloadsFolder")
        folders += [Path(chosen)] if isinstance(chosen, str) and chosen else []
        folders.append(each / "models")
    return list(dict.fromkeys(folders))


def given_folders() -> list[Path]:
    """List the folders of $DURE_MODELS_DIR, which --models-dir sets."""
    given = os.environ.get("DURE_MODELS_DIR", "")
    return [Path(os.path.expanduser(each)) for each in given.split(os.pathsep) if each]  # noqa: PTH111
