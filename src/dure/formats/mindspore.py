"""MindSpore's .ckpt: a protobuf of named tensors, which holds data alone (no pickle).

The message is mindspore/ccsrc/utils/checkpoint.proto's Checkpoint: values of a tag and a tensor
with dims, tensor_type and tensor_content. Tensors above 512 MB are cut into values of one tag.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS
from dure.formats.source import SourceFile
from dure.formats.tensors import TensorInfo, shown

MAX_TENSORS = 1_000_000
MAX_NAME_BYTES = 1024
MAX_DIMENSIONS = 8
MAX_HEAD_BYTES = 1 << 12
"""What stands before the content of a tensor: its tag, dims and type."""

SLICE = "\0slice"
"""Ends the names of the later slices of a tensor, before their number."""

_TYPES = {
    "Float32": "F32",
    "Float16": "F16",
    "BFloat16": "BF16",
    "Int8": "I8",
    "Int32": "I32",
    "Int64": "I64",
    "UInt8": "U8",
    "Bool": "BOOL",
}
_CRC = b"crc_num"  # 17 bytes behind the values, where they were asked for
_VALUE, _TAG, _TENSOR = 1, 1, 2
_DIMS, _TYPE, _CONTENT = 1, 2, 3
_VARINT, _BYTES = 0, 2
_DAMAGED = "the file is damaged or encrypted: download it again."


def is_mindspore(path: Path) -> bool:
    """Check whether a file begins as MindSpore's checkpoints do; pickles and archives do not."""
    source = SourceFile(path)
    first = source.read(0, min(1, source.size_bytes)).tobytes()
    source.close()
    return first == bytes([_VALUE << 3 | _BYTES])


def read_mindspore(path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of a .ckpt by name, and no content; later slices have names of their own.

    Raises ModelFileError for a damaged file, UnsupportedModelError for a type that is not known.
    """
    source = SourceFile(path)
    found: dict[str, TensorInfo] = {}
    place = 0
    while place < source.size_bytes:
        if source.read(place, min(7, source.size_bytes - place)).tobytes() == _CRC:
            break
        place = _read_value(source, place, found)
    _check_slices(path, found)
    return found


def _read_value(source: SourceFile, place: int, found: dict[str, TensorInfo]) -> int:
    """Add the tensor whose value begins at that byte; return where the next one does."""
    head = _Head(source, place)
    if head.number() != (_VALUE << 3 | _BYTES):
        raise _damaged(source, place)
    size = head.number()
    end = head.place + size
    if end > source.size_bytes or len(found) >= MAX_TENSORS:
        raise _damaged(source, place)
    name, kind, content = "", "", (0, -1)
    dims: list[int] = []
    for field, start, stop in _fields(head, end):
        if field == (_TAG, _BYTES):
            name = head.text(start, stop)
        elif field == (_TENSOR, _BYTES):
            for inner, first, last in _fields(head, stop):
                if inner == (_TYPE, _BYTES):
                    kind = head.text(first, last)
                elif inner == (_CONTENT, _BYTES):
                    content = first, last - first
                elif inner == (_DIMS, _VARINT):
                    dims.append(first)
                elif inner == (_DIMS, _BYTES):
                    dims += _packed(source, first, last)
    if not name or content[1] < 0 or len(dims) > MAX_DIMENSIONS or min(dims, default=1) < 0:
        raise _damaged(source, place)
    if kind not in _TYPES:
        raise UnsupportedModelError(
            f"{source.path} has {shown(name)} of MindSpore's type {shown(kind)}, which dure does "
            "not read.",
            hint=f"it reads {', '.join(_TYPES)}.",
        )
    slices = sum(1 for each in (name, f"{name}{SLICE}1") if each in found)
    while f"{name}{SLICE}{slices}" in found:
        slices += 1
    whole = name if slices == 0 else f"{name}{SLICE}{slices}"
    found[whole] = TensorInfo(whole, _TYPES[kind], tuple(dims), source, *content)
    return end


class _Head:
    """Reads numbers of a file one after another."""

    def __init__(self, source: SourceFile, place: int) -> None:
        self.source, self.place = source, place

    def number(self) -> int:
        """Read a varint; ModelFileError if it is longer than ten bytes, or the file ends."""
        size = min(10, self.source.size_bytes - self.place)
        raw = self.source.read(self.place, size).tobytes()
        value = 0
        for index, byte in enumerate(raw):
            value |= (byte & 127) << 7 * index
            if byte < 128:
                self.place += index + 1
                return value
        raise _damaged(self.source, self.place)

    def text(self, start: int, stop: int) -> str:
        """Read a name."""
        if stop - start > MAX_NAME_BYTES:
            raise _damaged(self.source, start)
        try:
            return self.source.read(start, stop - start).tobytes().decode()
        except UnicodeDecodeError:
            raise _damaged(self.source, start) from None


def _fields(head: _Head, end: int) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yield the fields up to `end`: number and kind, then where its bytes lie, or its value."""
    begin = head.place
    seen = 0
    while head.place < end:
        key = head.number()
        field = key >> 3, key & 7
        if field[1] == _VARINT:
            yield field, head.number(), 0
        elif field[1] == _BYTES:
            size = head.number()
            start, stop = head.place, head.place + size
            if stop > end:
                raise _damaged(head.source, start)
            yield field, start, stop
            head.place = stop
        else:
            raise _damaged(head.source, begin)
        seen += 1
        if seen > MAX_HEAD_BYTES:
            raise _damaged(head.source, begin)
    if head.place != end:
        raise _damaged(head.source, begin)


def _packed(source: SourceFile, start: int, stop: int) -> list[int]:
    """Read dims that are stored as one run of bytes."""
    head = _Head(source, start)
    dims: list[int] = []
    while head.place < stop and len(dims) <= MAX_DIMENSIONS:
        dims.append(head.number())
    return dims


def _check_slices(path: Path, found: dict[str, TensorInfo]) -> None:
    """Raise ModelFileError unless the slices of each tensor make its shape."""
    sizes: dict[str, int] = {}
    for name, tensor in found.items():
        whole = name.partition(SLICE)[0]
        sizes[whole] = sizes.get(whole, 0) + tensor.size_bytes
    for name, size in sizes.items():
        tensor = found[name]
        wanted = math.prod(tensor.shape) * BLOCKS[tensor.dtype].block_bytes
        if size != wanted:
            raise ModelFileError(
                f"{path} has {size:,} bytes of {shown(name)}, and its shape {tensor.shape} makes "
                f"{wanted:,}.",
                hint=_DAMAGED,
            )


def _damaged(source: SourceFile, place: int) -> ModelFileError:
    """Make the error for bytes that are no MindSpore checkpoint."""
    return ModelFileError(
        f"{source.path} is no MindSpore checkpoint that dure can follow at byte {place:,}.",
        hint=_DAMAGED,
    )
