"""Copies tensors to another file byte by byte, and checks what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.formats.gguf import encoded_metadata, read_gguf
from dure.formats.gguf_writer import Encoded, TensorPlan, gguf_size, write_gguf
from dure.formats.mindspore import SLICE
from dure.formats.safetensors import header_notes, read_safetensors
from dure.formats.safetensors_writer import header_size, write_safetensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

Progress = Callable[[int, int], None]

PIECE_BYTES = 4 << 20
"""What is read, written or checked at once."""

# Of a GGUF's metadata, what only says how the file lies on disk.
_OF_THE_FILE = ("general.alignment", "split.no", "split.count", "split.tensors.count")
# Small files of a folder that say what the weights mean, and whose they are.
_COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".md")
_NAMED = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_MAX_SMALL_BYTES = 64 << 20


@dataclass
class TensorCopy:
    """A tensor whose bytes are copied; its digest is known once they have been read."""

    name: str
    parts: list[TensorInfo]  # whose bytes, one after another, are the tensor's
    hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=32))

    def pieces(self) -> Iterator[Bytes]:
        """Read the bytes, a few MiB at a time."""
        for part in self.parts:
            for start in range(0, part.size_bytes, PIECE_BYTES):
                size = min(PIECE_BYTES, part.size_bytes - start)
                piece = part.source.read(part.offset + start, size)
                self.hasher.update(piece.data)
                yield piece

    @property
    def plan(self) -> TensorPlan:
        """What a writer takes."""
        return TensorPlan(self.name, self.parts[0].dtype, self.parts[0].shape, self.pieces)


def copies_of(checkpoint: Checkpoint, without: Collection[str]) -> list[TensorCopy]:
    """List the checkpoint's tensors but those `without`; slices become one tensor.

    Raises UnsupportedModelError for a tensor whose bytes are not those of its shape.
    """
    found: dict[str, TensorCopy] = {}
    for name, tensor in checkpoint.tensors.items():
        if name in without:
            continue
        whole = name.partition(SLICE)[0]
        found.setdefault(whole, TensorCopy(whole, [])).parts.append(tensor)
    for copy in found.values():
        if sum(part.size_bytes for part in copy.parts) != copy.plan.size_bytes:
            raise UnsupportedModelError(
                f"{checkpoint.path} has {copy.name} in a form that cannot be copied."
            )
    return list(found.values())


def write_copies(
    path: Path, checkpoint: Checkpoint, copies: Sequence[TensorCopy], progress: Progress
) -> int:
    """Write the tensors to a new file at `path`, of the checkpoint's kind, with its metadata.

    Returns its size. A file that is half-written is the caller's.
    """
    plans = [copy.plan for copy in copies]
    if checkpoint.kind == "gguf":
        return write_gguf(path, gguf_metadata(checkpoint), plans, progress=progress)
    return write_safetensors(path, plans, notes=folder_notes(checkpoint), progress=progress)


def copied_size(checkpoint: Checkpoint, copies: Sequence[TensorCopy]) -> int:
    """Return the bytes of the file that `write_copies` writes."""
    plans = [copy.plan for copy in copies]
    if checkpoint.kind == "gguf":
        return gguf_size(gguf_metadata(checkpoint), plans)
    head = header_size(plans, folder_notes(checkpoint))
    return head + sum(plan.size_bytes for plan in plans)


class Written(Protocol):
    """A tensor that was written, and hashed meanwhile."""

    @property
    def name(self) -> str:
        """Its name in the file."""
        ...

    @property
    def plan(self) -> TensorPlan:
        """What the writer took."""
        ...

    @property
    def hasher(self) -> Any:
        """BLAKE2b of 32 bytes over all that was written of it."""
        ...


def check_copies(path: Path, copies: Sequence[Written], advance: Callable[[int], None]) -> None:
    """Read the tensors of a written file again. Raises ModelFileError for one that differs.

    advance: called with the bytes of each piece.
    """
    drop_cached(path)
    tensors = read_gguf(path).tensors if path.suffix == ".gguf" else read_safetensors(path)
    for copy in copies:
        found = tensors.get(copy.name)
        plan = copy.plan
        if found is None or (found.dtype, found.shape) != (plan.dtype, plan.shape):
            raise ModelFileError(f"{path} has {copy.name} otherwise than it was written.")
        again = TensorCopy(copy.name, [found])
        for piece in again.pieces():
            advance(piece.size)
        if again.hasher.digest() != copy.hasher.digest():
            raise unlike(path, copy.name)


def unlike(path: Path, what: str) -> ModelFileError:
    """Make the error for bytes that are not those that were written."""
    return ModelFileError(
        f"{what}, read again from {path}, is not what was written.",
        hint="the disk may be failing: convert again, to another disk.",
    )


def drop_cached(path: Path) -> None:
    """Ask the system to forget its copy of a written file, so that the disk is what is read."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def gguf_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a GGUF's metadata, byte by byte, without what says how its file lies on disk."""
    encoded = encoded_metadata(checkpoint.path)
    return {key: Encoded(raw) for key, raw in encoded.items() if key not in _OF_THE_FILE}


def folder_notes(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the texts of __metadata__ of a folder's files, the first file's before others."""
    notes: dict[str, str] = {}
    for source in {tensor.source: None for tensor in checkpoint.tensors.values()}:
        if source.path.suffix == ".safetensors":
            notes = {**header_notes(source), **notes}
    return notes


def small_files(checkpoint: Checkpoint) -> Mapping[str, Path]:
    """List the files beside a folder's weights that say what they mean; none of a GGUF."""
    if checkpoint.kind == "gguf":
        return {}
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if _is_small(path) and not path.name.startswith(".")
    }


def _is_small(path: Path) -> bool:
    named = path.name.endswith(_COPIED) or path.name.upper().startswith(_NAMED)
    index = path.name.endswith(".safetensors.index.json")
    return named and not index and path.is_file() and path.stat().st_size <= _MAX_SMALL_BYTES
