"""A file of weights, opened once and read in checked ranges."""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dure.errors import ModelFileError, NotEnoughMemoryError

# Opening a named pipe would wait for ever for a writer; without blocking it fails the type check.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_OPEN_FLAGS |= getattr(os, "O_BINARY", 0)  # Windows' text would lose its carriage returns
_MOST_AT_ONCE = 1 << 30


class SourceFile:
    """A file opened read-only.

    It is read with `pread` and never mapped: a mapped page of a file that someone truncates kills
    the process (SIGBUS), while a short read is an error that can be explained.
    """

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
        self._seeking = threading.Lock()
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
        """Release the descriptor now rather than with the last reference."""
        self._close()

    def read(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Read `size` bytes from `offset` on into a fresh uint8 (size,).

        Raises ModelFileError if the range is not inside the file, or the file has changed since it
        was opened; NotEnoughMemoryError if there is no memory for the bytes.
        """
        self._check_range(offset, size)
        try:
            buffer = np.empty(size, dtype=np.uint8)
        except MemoryError:
            raise NotEnoughMemoryError(
                f"there is no memory for {size:,} bytes of {self.path}."
            ) from None
        self.read_into(offset, buffer)
        return buffer

    def read_into(self, offset: int, buffer: npt.NDArray[np.uint8]) -> None:
        """Read as many bytes as `buffer` (n,) has, from `offset` on; errors as of `read`."""
        size = buffer.size
        self._check_range(offset, size)
        view, done = buffer.data, 0
        with self.reading() as descriptor:
            while done < size:  # Linux reads at most 2 GiB - 4 KiB a call
                count = self._read_at(descriptor, view[done:], offset + done)
                if count == 0:
                    raise EOFError
                done += count

    def _read_at(self, descriptor: int, view: memoryview, offset: int) -> int:
        """Read into `view` from `offset` on; return how many bytes came."""
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [view], offset)
        with self._seeking:  # Windows: the descriptor has one place, and may be read by threads
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, min(len(view), _MOST_AT_ONCE))
        view[: len(data)] = data
        return len(data)

    def _check_range(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise ModelFileError(
                f"{self.path} has {self.size_bytes:,} bytes, but bytes {offset:,} to "
                f"{offset + size:,} were asked for."
            )

    @contextmanager
    def reading(self) -> Iterator[int]:
        """Lend the descriptor to code that reads ranges inside the file by itself.

        Raises ModelFileError for an OSError or EOFError of the reads, and if the file has changed
        since it was opened, before or after; what was read must not be used then.
        """
        if not self._close.alive:
            raise ModelFileError(f"{self.path} has been closed.")
        self._check_unchanged()
        try:
            yield self._descriptor
        except OSError as error:
            raise ModelFileError(
                f"{self.path} cannot be read: {error.strerror}.",
                hint="the disk or network drive it lies on may be failing.",
            ) from None
        except EOFError:
            raise self._changed() from None
        self._check_unchanged()

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
