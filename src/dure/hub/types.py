"""What the parts of the hub speak of: progress, patience, checks. Light, unlike the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Progress:
    """How far a pull is. `source` is who sends: "PyPI" or a hub's address."""

    name: str
    stage: Literal["waiting", "asking", "downloading", "checking", "done"]
    done_bytes: int = 0
    total_bytes: int = 0
    source: str = ""


@dataclass(frozen=True)
class Timeouts:
    """How long to wait and how often to try again. `attempts` counts those that brought nothing."""

    answer_s: float = 15.0
    read_s: float = 60.0
    attempts: int = 5
    backoff_s: float = 1.0


@dataclass(frozen=True)
class Check:
    """What a file's bytes must be: a SHA-256, or the SHA-1 git gives a blob; or only a size."""

    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether it pins the bytes, so that a download can be resumed without fear."""
        return bool(self.sha256 or self.git_sha1)

    def hasher(self) -> Any:
        """A fresh hash to feed all the bytes to, in order."""
        if self.sha256 or not self.git_sha1:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)

    def accepts(self, hasher: Any) -> bool:
        """Whether the bytes that `hasher` was fed are the right ones."""
        wanted = self.sha256 or self.git_sha1
        return not wanted or bool(hasher.hexdigest() == wanted.casefold())


def human_bytes(count: int) -> str:
    """`count` as people and disk makers write it: 98362432 -> "98 MB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
