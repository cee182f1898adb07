"""A file of weights, opened once and read in checked ranges."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dure.errors import ModelFileError, NotEnoughMemoryError

# Opening a named pipe would wait for ever for a writer; without blocking it fails the type check.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class SourceFile:
    """A file opened read-only. It is read with `pread`, never mapped: a mapped page of a file
    that someone truncates kills the process (SIGBUS), a short read is an error we can explain."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, _OPEN_FLAGS)
        except FileNotFoundError:
            raise ModelFileError(
                f"{self.path} does not exist.", hint="check the path for a typing error."
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ModelFileError(f"{self.path} cannot be opened: {reason}.") from None
        self._close = weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ModelFileError(
                f"{self.path} is not a regular file.", hint="give a .gguf or .safetensors file."
            )
        self.size_bytes = status.st_size
        self._identity = _identity(status)

    def __repr__(self) -> str:
        return f"SourceFile({str(self.path)!r}, {self.size_bytes:,} bytes)"

    def close(self) -> None:
        """Nothing; the descriptor is released now rather than with the last reference."""
        self._close()

    def read(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Fresh uint8 (size,) with the bytes from `offset`; ModelFileError if the range is not
        inside the file, or the file is not the one that was opened any more."""
        end = offset + size
        if offset < 0 or size < 0 or end > self.size_bytes:
            raise ModelFileError(
                f"{self.path} has {self.size_bytes:,} bytes, but bytes {offset:,} to {end:,} "
                "were asked for."
            )
        if not self._close.alive:
            raise ModelFileError(f"{self.path} has been closed.")
        try:
            buffer = np.empty(size, dtype=np.uint8)
        except MemoryError:
            raise NotEnoughMemoryError(
                f"there is no memory for {size:,} bytes of {self.path}."
            ) from None
        self._check_unchanged()
        view, done = buffer.data, 0
        while done < size:  # Linux reads at most 2 GiB - 4 KiB a call
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise ModelFileError(
                    f"{self.path} cannot be read at byte {offset + done:,}: {error.strerror}.",
                    hint="the disk or network drive it lies on may be failing.",
                ) from None
            if count == 0:
                raise self._changed()
            done += count
        self._check_unchanged()
        return buffer

    def _check_unchanged(self) -> None:
        if _identity(os.fstat(self._descriptor)) != self._identity:
            raise self._changed()

    def _changed(self) -> ModelFileError:
        now = os.fstat(self._descriptor).st_size
        return ModelFileError(
            f"{self.path} changed while it was in use: it had {self.size_bytes:,} bytes when it "
            f"was opened and has {now:,} now.",
            hint="let the download or conversion finish, then open the model again.",
        )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
