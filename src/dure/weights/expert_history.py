"""Which experts of a model were used most when it last ran: so that the next start is warm."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

MOST_BYTES = 64 << 20
"""Of a file of scores: 8 million experts."""


class ExpertHistory:
    """The scores of a model's experts, in a small file in dure's own folder.

    It is a hint and no more: a file that is missing, damaged or of another model counts as none,
    and a folder that cannot be written to means that nothing is remembered.
    """

    def __init__(self, folder: Path, files: Iterable[tuple[Path, int]]) -> None:
        """folder: of all histories; files: the model's, with their sizes, which identify it."""
        digest = hashlib.blake2b(digest_size=16)
        for path, size in sorted(files):
            digest.update(
                f"{os.fspath(path.absolute())}\0{size}\0".encode(errors="surrogateescape")
            )
        self._path = folder / f"{digest.hexdigest()}.npy"

    def load(self, experts: int) -> NDArray[np.float64] | None:
        """Return the scores, (experts,); None if there are none."""
        try:
            if self._path.stat().st_size > MOST_BYTES:
                return None
            with self._path.open("rb") as file:
                scores = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if scores.shape != (experts,) or scores.dtype != np.float32:
            return None
        if not (np.isfinite(scores).all() and (scores >= 0).all()):
            return None
        found: NDArray[np.float64] = scores.astype(np.float64)
        return found

    def save(self, scores: NDArray[np.float64]) -> None:
        """Write the scores, by one rename; a failure is no error."""
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    np.save(file, scores.astype(np.float32), allow_pickle=False)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
