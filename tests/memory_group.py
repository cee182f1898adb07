"""A control group that limits memory, in which a test runs a process: Linux, version 1, as root."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class MemoryGroup:
    """A group of processes whose memory, page cache included, has a limit."""

    folder: Path

    @property
    def refusals(self) -> int:
        """How often the limit was met, be it that pages of files were dropped to keep it."""
        return self._read("memory.failcnt")

    @property
    def peak(self) -> int:
        """The most bytes that the group has had at once."""
        return self._read("memory.max_usage_in_bytes")

    def run(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """The process, once it has ended, with all of its output."""
        # The shell enters the group before it becomes the program, so that all of it counts.
        enter = 'echo $$ > "$0" && exec "$@"'
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            ["sh", "-c", enter, str(self.folder / "cgroup.procs"), *command],
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def _read(self, name: str) -> int:
        return int((self.folder / name).read_text())


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup | None]:
    """A group with a limit of so many bytes; None where none can be made."""
    folder = ROOT / f"dure-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        yield None
        return
    try:
        yield MemoryGroup(folder)
    finally:
        folder.rmdir()
