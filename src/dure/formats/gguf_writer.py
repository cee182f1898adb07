"""Writes a GGUF file, version 3, tensor by tensor. The file gets its name when it is whole."""

from __future__ import annotations

import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.blocks import BLOCKS

ALIGNMENT = 32  # what readers assume of a file that does not say

_MAGIC, _VERSION = b"GGUF", 3
_BOOL, _STRING, _ARRAY, _UINT32, _INT32, _FLOAT32, _UINT64 = 7, 8, 9, 4, 5, 6, 10
_ARRAY_TYPES = {"b1": _BOOL, "i4": _INT32, "f4": _FLOAT32, "u4": _UINT32}
_SPARE_BYTES = 64 << 20  # of the disk, left to whoever else writes to it

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Encoded:
    """A metadata value as another GGUF file has it: its type, then its bytes."""

    raw: bytes


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written.

    `shape` is row-major as in numpy. `pieces` makes its bytes, in order, when its turn comes.
    """

    name: str
    dtype: str  # a key of BLOCKS that GGUF has
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[npt.NDArray[np.uint8]]]

    @property
    def size_bytes(self) -> int:
        """The bytes of its blocks, without padding."""
        block = BLOCKS[self.dtype]
        return math.prod(self.shape) // block.block_size * block.block_bytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorPlan],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the file at `path`; return its size.

    metadata: values are bool, int, float, str, lists of str, arrays of bool, int32, uint32 or
    float32, and `Encoded`. progress: called with the bytes of weights done, and all. Raises
    InvalidRequestError if `path` exists and is not to be replaced, or its disk is too full.
    """
    header = _header(metadata, tensors)
    total = sum(_padded(tensor.size_bytes) for tensor in tensors)
    check_target(path, force=force)
    check_space(path, len(header) + total)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            file.write(header)
            done = 0
            for tensor in tensors:
                done = _write_tensor(file, tensor, done, total, progress)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        place(partial, path, force=force)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    return size


def gguf_size(metadata: Mapping[str, Any], tensors: Sequence[TensorPlan]) -> int:
    """Return the bytes of the file that `write_gguf` writes."""
    return len(_header(metadata, tensors)) + sum(_padded(each.size_bytes) for each in tensors)


def check_target(path: Path, *, force: bool) -> None:
    """Raise InvalidRequestError unless a file can be written at `path`."""
    if path.suffix != ".gguf":
        raise InvalidRequestError(f"{path} must end in .gguf, which is what is written.")
    if not path.parent.is_dir():
        raise InvalidRequestError(f"{path.parent} is not a folder.", hint="make it first.")
    if path.exists() and (not force or not path.is_file()):
        raise InvalidRequestError(f"{path} exists.", hint="--force replaces it.")


def place(partial: Path, path: Path, *, force: bool) -> None:
    """Give the finished file its name; without `force`, never that of a file that exists.

    Raises InvalidRequestError for one that exists.
    """
    if force:
        partial.replace(path)
        return
    try:
        os.link(partial, path)
    except FileExistsError:
        raise InvalidRequestError(f"{path} exists.", hint="--force replaces it.") from None
    except OSError:  # a file system without hard links
        partial.replace(path)
        return
    partial.unlink()


def check_space(path: Path, needed: int) -> None:
    """Raise InvalidRequestError unless the disk of `path` has `needed` bytes and some to spare."""
    free = shutil.disk_usage(path.parent).free
    if needed + _SPARE_BYTES > free:
        raise InvalidRequestError(
            f"{path} would take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB of that disk is "
            "free.",
            hint="free some space, write to another disk, or quantise to fewer bits.",
        )


def _write_tensor(
    file: BinaryIO, tensor: TensorPlan, done: int, total: int, progress: Progress | None
) -> int:
    """Write one tensor and its padding; return the bytes of weights now in the file."""
    wrote = 0
    for piece in tensor.pieces():
        file.write(np.ascontiguousarray(piece).data)
        wrote += piece.size
        if progress is not None:
            progress(done + wrote, total)
    if wrote != tensor.size_bytes:
        raise ModelFileError(
            f"{tensor.name} came out as {wrote:,} bytes, not {tensor.size_bytes:,}."
        )
    file.write(bytes(_padded(wrote) - wrote))
    return done + _padded(wrote)


def _header(metadata: Mapping[str, Any], tensors: Sequence[TensorPlan]) -> bytes:
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]  # ggml counts the fastest first
        kind = BLOCKS[tensor.dtype].ggml_id
        assert kind is not None, tensor.dtype
        parts += [_text(tensor.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", kind, offset))
        offset += _padded(tensor.size_bytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _value(value: Any) -> bytes:
    """Encode a value behind its type."""
    if isinstance(value, Encoded):
        return value.raw
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return struct.pack("<II", _UINT32, value)
        return struct.pack("<IQ", _UINT64, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray):
        head = struct.pack("<IIQ", _ARRAY, _ARRAY_TYPES[value.dtype.str[1:]], len(value))
        return head + value.tobytes()
    head = struct.pack("<IIQ", _ARRAY, _STRING, len(value))
    return head + b"".join(map(_text, value))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
