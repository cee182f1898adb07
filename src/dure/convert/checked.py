"""Writes a GGUF file under another name, reads it again, and only then gives it its own."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dure.convert.copies import check_copies
from dure.formats.gguf_writer import (
    TensorPlan,
    check_space,
    check_target,
    gguf_size,
    place,
    write_gguf,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Converted:
    """What was written: the file, its size, and its tensors by type."""

    path: Path
    size_bytes: int
    architecture: str
    types: Mapping[str, int]  # tensor type -> how many tensors


def converted(path: Path, size: int, architecture: str, tensors: Sequence[TensorPlan]) -> Converted:
    """Say what was written."""
    counts = Counter(each.dtype for each in tensors)
    return Converted(path, size, architecture, dict(sorted(counts.items())))


@dataclass
class _Hashed:
    """A tensor whose digest is known once it has been written."""

    inner: TensorPlan
    hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=32))

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def plan(self) -> TensorPlan:
        """The same tensor, hashed while it is made."""
        return replace(self.inner, pieces=self._pieces)

    def _pieces(self) -> Iterator[NDArray[np.uint8]]:
        for piece in self.inner.pieces():
            self.hasher.update(piece.data)
            yield piece


def write_checked(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorPlan],
    *,
    force: bool = False,
    tell_size: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> int:
    """Write the GGUF file `path` and compare every tensor with what was computed.

    tell_size: called with the bytes of the file before any is written. progress and checking:
    called with (bytes done, bytes in all) while writing, and while reading again. Returns the
    file's bytes. Raises as `write_gguf` does, and ModelFileError for what the disk has otherwise
    than it was written. Then nothing of it stays.
    """
    check_target(path, force=force)
    size = gguf_size(metadata, tensors)
    if tell_size is not None:
        tell_size(size)
    check_space(path, size)  # here, so that the sentence names this file
    written = [_Hashed(each) for each in tensors]
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part.gguf")
    total, done = sum(each.size_bytes for each in tensors), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if checking is not None:
            checking(done, total)

    try:
        size = write_gguf(partial, metadata, [each.plan for each in written], progress=progress)
        check_copies(partial, written, advance)
        place(partial, path, force=force)
    finally:
        with suppress(OSError):
            partial.unlink()
    return size
