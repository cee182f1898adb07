"""Data types of the hub: progress, timeouts, checks. Light to import."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Progress:
    """The progress of a pull, in bytes. `source` is the sender: "PyPI" or a hub's address."""

    name: str
    stage: Literal["waiting", "asking", "downloading", "checking", "done"]
    done_bytes: int = 0
    total_bytes: int = 0
    source: str = ""


@dataclass(frozen=True)
class Timeouts:
    """Timeouts in seconds, and retries. `attempts` counts tries without a new byte."""

    answer_s: float = 15.0
    read_s: float = 60.0
    attempts: int = 5
    backoff_s: float = 1.0


@dataclass(frozen=True)
class Check:
    """The expected size of a file, and its SHA-256 or git blob SHA-1 if known."""

    size_bytes: int
    sha256: str = ""
    git_sha1: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether a hash is known, so that a resumed download can be verified."""
        return bool(self.sha256 or self.git_sha1)

    def hasher(self) -> Any:
        """Return a new hash object, to be fed all bytes in order."""
        if self.sha256 or not self.git_sha1:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)

    def accepts(self, hasher: Any) -> bool:
        """Check that the bytes fed to `hasher` have the expected hash."""
        wanted = self.sha256 or self.git_sha1
        return not wanted or bool(hasher.hexdigest() == wanted.casefold())


def human_bytes(count: int) -> str:
    """Format a byte count in decimal units: 98362432 -> "98 MB"."""
    size = float(min(count, 10**18))  # a number from a listing may have any size
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
