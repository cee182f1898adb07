"""Download one file: resume it, check it, and move it into place when complete."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from dure.errors import DownloadError
from dure.hub.http import RefusedError, UnreachableError, open_url, unreachable
from dure.hub.types import Check, Timeouts, human_bytes

CHUNK_BYTES = 2**20
SPARE_BYTES = 32 * 2**20  # left free beyond the files: journals, logs, and other people's
MAX_WAIT_S = 60.0


class DiskFullError(DownloadError):
    """The disk has no room for the download."""


class WrongBytesError(DownloadError):
    """All bytes arrived, but their hash or size is wrong."""


class _StalledError(Exception):
    """The connection broke before the file's end; the bytes so far are kept."""


@dataclass(frozen=True)
class Transfer:
    """One file to fetch. `on_bytes` is called with the bytes that have arrived."""

    url: str
    target: Path
    check: Check
    patience: Timeouts
    on_bytes: Callable[[int], None]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def part(self) -> Path:
        """The path of the partial file, beside the target."""
        return self.target.with_name(self.target.name + ".part")

    @property
    def arrived(self) -> int:
        """The bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0


def download(transfer: Transfer) -> None:
    """Download the file to its target. Raises DownloadError and leaves a `.part`.

    A `.part` is continued only if the check can tell afterwards whether its bytes are right.
    """
    check, part = transfer.check, transfer.part
    if part.exists() and not (check.is_exact and transfer.arrived <= check.size_bytes):
        part.unlink()
    resumed = transfer.arrived > 0
    _fetch_all(transfer)
    hasher = check.hasher()
    feed(hasher, part)
    if check.accepts(hasher):
        part.replace(transfer.target)
        return
    part.unlink()
    if not resumed:
        raise WrongBytesError(
            f"{transfer.target.name}: the hash of the downloaded file is wrong.",
            hint="nothing was kept; try again, or from another source",
        )
    transfer.on_bytes(0)  # the bytes from last time may be what was wrong: once more from the start
    download(transfer)


def feed(hasher: Any, path: Path) -> None:
    """Feed all bytes of the file at `path` to `hasher`."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check that `folder`'s disk has `needed_bytes` free. Raises DiskFullError with figures."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise disk_full(folder, what, needed_bytes + SPARE_BYTES, free)


def disk_full(folder: Path, what: str, needed_bytes: int, free_bytes: int) -> DiskFullError:
    """Build the error for a disk that has no room for `what`."""
    return DiskFullError(
        f"{what} needs {human_bytes(needed_bytes)} of disk in {folder}, "
        f"where {human_bytes(free_bytes)} is free.",
        hint="free some space, or set DURE_HOME to a folder on a larger disk; "
        "partial files are kept and will be continued",
    )


@contextmanager
def explain_disk_full(folder: Path, what: str, needed_bytes: int) -> Iterator[None]:
    """Turn "no space left on device" (or a quota) inside the block into a DiskFullError."""
    try:
        yield
    except OSError as failure:
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise disk_full(folder, what, needed_bytes, free) from None


def _fetch_all(transfer: Transfer) -> None:
    """Append to the partial file until it is complete; retry as long as bytes arrive."""
    failures = 0
    while not (transfer.part.exists() and transfer.arrived == transfer.check.size_bytes):
        before = transfer.arrived
        try:
            _fetch_some(transfer)
        except (_StalledError, UnreachableError, RefusedError) as failure:
            if isinstance(failure, RefusedError) and not failure.worth_retrying:
                raise
            failures = 0 if transfer.arrived > before else failures + 1
            if failures >= transfer.patience.attempts:
                raise _gave_up(transfer.url, failure) from None
            wait = getattr(failure, "retry_after_s", 0.0)
            time.sleep(min(wait or transfer.patience.backoff_s * 2**failures, MAX_WAIT_S))
    transfer.on_bytes(transfer.arrived)


def _gave_up(url: str, failure: Exception) -> DownloadError:
    error = failure if isinstance(failure, DownloadError) else unreachable(url, failure)
    error.hint = "partial files are kept: the same command continues the download"
    return error


def _fetch_some(transfer: Transfer) -> None:
    """Request the rest of the file once. Raises _StalledError if the connection breaks."""
    offset = transfer.arrived
    asked = {**transfer.headers, "Range": f"bytes={offset}-"} if offset else transfer.headers
    try:
        response = open_url(transfer.url, headers=asked, timeout_s=transfer.patience.read_s)
    except RefusedError as refusal:
        if refusal.status == 416 and offset:  # the file is shorter than what we have of it
            transfer.part.unlink()
            raise _StalledError(str(refusal)) from None
        raise
    with response, transfer.part.open("ab") as file:
        offset = _agree_on_offset(response, file, offset)
        while chunk := _read(response):
            offset += len(chunk)
            if offset > transfer.check.size_bytes:
                file.truncate(0)
                raise WrongBytesError(
                    f"{transfer.target.name}: more came than the {transfer.check.size_bytes} "
                    "bytes promised.",
                    hint="try again, or from another source",
                )
            file.write(chunk)
            transfer.on_bytes(offset)
        file.flush()
        os.fsync(file.fileno())
    if offset < transfer.check.size_bytes:
        raise _StalledError("the connection closed early")


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(CHUNK_BYTES)
        return chunk
    except (OSError, HTTPException) as failure:
        raise _StalledError(str(failure)) from failure


def _agree_on_offset(response: Any, file: BinaryIO, offset: int) -> int:
    """Return the offset at which the body starts: 0 if the server ignored our Range."""
    if offset and response.status == 206:
        sent = response.headers.get("Content-Range", "")
        if sent.startswith(f"bytes {offset}-"):
            return offset
        file.truncate(0)
        raise _StalledError(f"asked from byte {offset}, got {sent!r}")
    if offset:
        file.truncate(0)
    return 0
