"""What tells a model's files from others: their size, when they were written, and a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dure.hub.facts import ModelFacts

_ENDS = 1 << 16  # bytes of a file's beginning and end that are read
_BESIDE = ("config.json", "tokenizer.json", "quant_model_description.json")


@dataclass(frozen=True)
class FilesIdentity:
    """The files of a model, as clients are told of them."""

    size_bytes: int  # on disk
    modified: float  # when the newest was written, in seconds since 1970
    digest: str  # SHA-256 in hexadecimal


def files_identity(facts: ModelFacts) -> FilesIdentity:
    """Return the identity of a model's files.

    The digest is that of the names, the sizes, and the first and last 64 KiB of each file, which
    hold names, shapes and some weights of all tensors: to read 100 GB for it would take minutes.
    It is the same for the same files, wherever they lie. Raises OSError.
    """
    files = sorted(_files(facts), key=lambda path: path.name)
    hasher = hashlib.sha256()
    size, modified = 0, 0.0
    for path in files:
        found = path.stat()
        size += found.st_size
        modified = max(modified, found.st_mtime)
        hasher.update(f"{path.name}\0{found.st_size}\0".encode())
        with path.open("rb") as file:
            hasher.update(file.read(_ENDS))
            file.seek(max(0, found.st_size - _ENDS))
            hasher.update(file.read(_ENDS))
    return FilesIdentity(size, modified, hasher.hexdigest())


def _files(facts: ModelFacts) -> Iterable[Path]:
    """Return the files of weights, and in a folder those that say what they mean."""
    found = {Path(tensor.source.path) for tensor in facts.tensors}
    if facts.experts_file is not None and facts.experts_file.source is not None:
        found.add(facts.experts_file.source.path)
    if facts.path.is_dir():
        found |= {path for name in _BESIDE if (path := facts.path / name).is_file()}
    else:
        found.add(facts.path)
    return found
