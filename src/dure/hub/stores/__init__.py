"""Models that are here already: in the stores of other programs, and in folders of the user's.

They are found by name, used where they lie, listed, and never changed or removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dure.hub.names import ModelName
from dure.hub.store import LocalModel
from dure.hub.stores.base import Store
from dure.hub.stores.folders import FolderStore, given_folders, lm_studio_folders
from dure.hub.stores.huggingface import HuggingFaceCache, huggingface_cache
from dure.hub.stores.modelscope import ModelScopeCache, modelscope_cache
from dure.hub.stores.ollama import OllamaStore, ollama_folders

__all__ = ["Store", "find", "find_file", "models_of", "store_of", "stores"]


def stores() -> list[Store]:
    """List the stores of this machine, in the order in which a name is looked for."""
    found: list[Store] = [FolderStore(folder, "you") for folder in given_folders()]
    huggingface, modelscope = huggingface_cache(), modelscope_cache()
    found += [HuggingFaceCache(huggingface)] if huggingface else []
    found += [ModelScopeCache(modelscope)] if modelscope else []
    found += [FolderStore(folder, "LM Studio") for folder in lm_studio_folders()]
    found += [OllamaStore(folder) for folder in ollama_folders()]
    return [store for store in found if _is_there(store.folder)]


def find(wanted: ModelName) -> LocalModel | None:
    """Return the model called `wanted` from the first store that has all of it."""
    for store in stores():
        try:
            found = store.find(wanted)
        except OSError:  # a folder that this user may not look into
            continue
        if found is not None:
            return found
    return None


def models_of(store: Store) -> list[LocalModel]:
    """List the whole models of a store; none of one that this user may not look into."""
    try:
        return store.models()
    except OSError:
        return []


def find_file(wanted: ModelName, sha256: Sequence[str], size_bytes: int) -> LocalModel | None:
    """Return `wanted` if its files are those of a SHA-256 and their sizes add up.

    A blob's name is its SHA-256, so nothing is read for it; where a store says none, size decides.
    """
    model = find(wanted)
    if model is None or model.size_bytes != size_bytes:
        return None
    blob = model.path.resolve().name.removeprefix("sha256-")
    named = len(blob) == 64 and all(c in "0123456789abcdef" for c in blob)
    return model if not named or blob in sha256 else None


def store_of(model: LocalModel) -> Store | None:
    """Return the store that `model` lies in; None for one of dure's own."""
    return next(
        (s for s in stores() if s.owner == model.owner and s.folder in model.path.parents), None
    )


def _is_there(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except (OSError, ValueError):
        return False
