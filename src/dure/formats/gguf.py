"""Reads GGUF files, versions 2 and 3, whole or split. Every length is checked before it is used.

Python integers do not overflow, so a size is computed first and compared with the file after.
The layout is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BY_ID
from dure.formats.sniff import describe
from dure.formats.source import SourceFile
from dure.formats.string_array import StringArray, decoded, places
from dure.formats.tensors import TensorInfo, shown

MAX_STRING_BYTES = 64 << 20
MAX_NAME_BYTES = 65_535  # of a key or a tensor; the format's own limit for keys
MAX_ARRAY_LENGTH = 1 << 24
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
MAX_PARTS = 1_024

_WINDOW_BYTES = 1 << 18
# What is kept of a header may take twice the file and this; the rest of 64 MiB is for scratch.
_SPARE_MEMORY = 48 << 20
_LARGE_FILE = 128 << 20
_TENSOR_MEMORY = 512  # of one TensorInfo with its shape and its place in the dict: 430 measured

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<B"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_TYPE_NAMES = "uint8 int8 uint16 int16 uint32 int32 float32 bool string array uint64 int64 float64"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_DAMAGED = "the file is damaged or made by a faulty tool: download or convert it again."


class _TruncatedError(ModelFileError):
    """The file ends before its header does. `end`: the bytes that it would have to have, about."""

    end = 0


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed GGUF file: its key-values, its tensors by name, and its format version.

    An array of strings is a list, or in a large file a StringArray.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    version: int


def read_gguf(path: str | Path) -> GGUFFile:
    """Read the metadata and tensors of a GGUF file.

    The first file of a split set (…-00001-of-0000N) brings all its parts. Raises ModelFileError for
    a bad file, UnsupportedModelError for a version or type that is not supported.
    """
    first = Path(path)
    whole = _read_part(first)
    count = _whole_number(first, whole.metadata, "split.count", default=0)
    if count <= 1:
        return whole
    paths = _part_paths(first, _whole_number(first, whole.metadata, "split.no", default=0), count)
    tensors = dict(whole.tensors)
    for number, part_path in enumerate(paths[1:], start=1):
        part = _read_part(part_path)
        _check_part(part_path, part.metadata, number, count)
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise ModelFileError(
                    f"tensor {shown(name)} is in {tensors[name].source.path} and again in "
                    f"{part_path}.",
                    hint=_DAMAGED,
                )
            tensors[name] = tensor
    total = _whole_number(first, whole.metadata, "split.tensors.count", default=len(tensors))
    if total != len(tensors):
        raise ModelFileError(
            f"the {count} parts of {first} hold {len(tensors):,} tensors, but {total:,} were "
            "promised.",
            hint="a part belongs to another model: download all parts again.",
        )
    return GGUFFile(whole.metadata, tensors, whole.version)


def header_end(path: str | Path) -> tuple[int, bool]:
    """Return where the header ends in a file of which only the beginning may be there.

    Returns the bytes and True, or, where it goes on behind the file's end, about how many bytes the
    file needs before it is worth to ask again, and False. Raises as `read_gguf` does.
    """
    header = _Header(SourceFile(path))
    try:
        _read_header(header)
    except _TruncatedError as error:
        return error.end, False
    return header.position, True


def encoded_metadata(path: str | Path) -> dict[str, bytes]:
    """Read each value of a GGUF file's metadata as the file has it: its type, then its bytes.

    Raises as `read_gguf` does.
    """
    header = _Header(SourceFile(path))
    _read_version(header)
    header.count("tensors", MAX_TENSORS, least_bytes_each=24)
    found: dict[str, bytes] = {}
    for _ in range(header.count("keys", MAX_KEYS, least_bytes_each=13)):
        key = header.name("a metadata key")
        start = header.position
        _read_value(header, key)
        found[key] = header.source.read(start, header.position - start).tobytes()
    return found


def part_names(name: str) -> list[str] | None:
    """Return the names of all parts of the split set that `name` is a part of, in order.

    None if it is not named like a part.
    """
    match = _PART_NAME.fullmatch(name)
    if not match or not 1 <= int(match["number"]) <= int(match["count"]) <= MAX_PARTS:
        return None
    count = int(match["count"])
    return [f"{match['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]


def _part_paths(first: Path, number: int, count: int) -> list[Path]:
    names = part_names(first.name) or []
    if len(names) != count or not 0 <= number < count or names[number] != first.name:
        raise ModelFileError(
            f"{first} says that it is part {number + 1:,} of {count:,} (limit {MAX_PARTS:,}), "
            "which its name does not.",
            hint="parts must keep their names: …-00001-of-0000N.gguf.",
        )
    paths = [first.with_name(name) for name in names]
    if number != 0:
        raise ModelFileError(
            f"{first} is part {number + 1} of {count}, not the first.", hint=f"open {paths[0]}."
        )
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelFileError(
            f"{first} is part 1 of {count}, but {len(missing)} of its parts are missing, the "
            f"first of them {missing[0]}.",
            hint="download all parts into one folder.",
        )
    return paths


def _check_part(path: Path, metadata: dict[str, Any], number: int, count: int) -> None:
    found_number = _whole_number(path, metadata, "split.no", default=-1)
    found_count = _whole_number(path, metadata, "split.count", default=-1)
    if (found_number, found_count) != (number, count):
        raise ModelFileError(
            f"{path} should be part {number + 1} of {count}, but says it is part "
            f"{found_number + 1} of {found_count}.",
            hint="a part was renamed or belongs to another model: download all parts again.",
        )


def _whole_number(path: Path, metadata: dict[str, Any], key: str, *, default: int) -> int:
    value = metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelFileError(f"{path} has {key} that is not a whole number.", hint=_DAMAGED)
    return value


def _read_part(path: Path) -> GGUFFile:
    source = SourceFile(path)
    header = _Header(source)
    version, metadata, listed = _read_header(header)
    alignment = _whole_number(path, metadata, "general.alignment", default=32)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise header.wrong(
            f"has general.alignment {alignment:,}, which is not a power of two up to "
            f"{MAX_ALIGNMENT:,}"
        )
    data_start = -(-header.position // alignment) * alignment
    return GGUFFile(metadata, _place(source, listed, data_start, alignment), version)


def _read_header(
    header: _Header,
) -> tuple[int, dict[str, Any], list[tuple[str, str, tuple[int, ...], int, int]]]:
    """Read the version, the metadata and the list of tensors."""
    version = _read_version(header)
    num_tensors = header.count("tensors", MAX_TENSORS, least_bytes_each=24)
    num_keys = header.count("keys", MAX_KEYS, least_bytes_each=13)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = header.name("a metadata key")
        if key in metadata:
            raise header.wrong(f"has the metadata key {shown(key)} twice")
        metadata[key] = _read_value(header, key)
    return version, metadata, [_read_tensor(header) for _ in range(num_tensors)]


def _read_version(header: _Header) -> int:
    magic = header.source.read(0, min(4, header.source.size_bytes)).tobytes()
    if magic != b"GGUF":
        raise ModelFileError(
            f"{header.source.path} is not a GGUF file: {describe(header.source)}.",
            hint="give a file that starts with the four letters GGUF.",
        )
    header.position = 4
    version: int = header.number(_U32, "the version")
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModelError(
            f"{header.source.path} is a big-endian GGUF file, and dure reads only little-endian.",
            hint="convert it with gguf-convert-endian of the gguf package.",
        )
    raise UnsupportedModelError(
        f"{header.source.path} is GGUF version {version:,}, and dure reads versions 2 and 3.",
        hint="convert the original model again with a current converter.",
    )


class _Header:
    """A position in the header of one file.

    A size is compared with what is left of the file before anything is read or allocated.
    """

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.position = 0
        self._window = b""
        self._window_start = 0
        self._memory_left = 2 * source.size_bytes + _SPARE_MEMORY

    def wrong(self, what: str) -> ModelFileError:
        """Make the error for a file that says something impossible."""
        return ModelFileError(f"{self.source.path} {what}.", hint=_DAMAGED)

    def require(self, size: int, what: str) -> None:
        """Raise ModelFileError if fewer than `size` bytes are left of the file."""
        if size > self.source.size_bytes - self.position:
            error = _TruncatedError(
                f"{self.source.path} is truncated or damaged: {what} needs {size:,} bytes at byte "
                f"{self.position:,}, but the file has {self.source.size_bytes:,} bytes in all.",
                hint="download it again.",
            )
            error.end = self.position + size
            raise error

    def charge(self, size: int) -> None:
        """Count memory; raise ModelFileError once it is over twice the file and 48 MiB."""
        self._memory_left -= size
        if self._memory_left < 0:
            raise self.wrong(
                "has metadata that would take more memory than twice the file and "
                f"{_SPARE_MEMORY >> 20} MiB"
            )

    def number(self, layout: struct.Struct, what: str) -> Any:
        """Read the next number of that layout."""
        at = self._fill(layout.size, what)
        self.position += layout.size
        return layout.unpack_from(self._window, at)[0]

    def count(self, what: str, limit: int, *, least_bytes_each: int) -> int:
        """Read the next count, which must be at most `limit` and fit what is left of the file."""
        count: int = self.number(_U64, f"the number of {what}")
        if count > limit:
            raise self.wrong(f"claims {count:,} {what}, and the limit is {limit:,}")
        self.require(count * least_bytes_each, f"a list of {count:,} {what}")
        return count

    def name(self, what: str) -> str:
        """Read the next string, which must not be empty or longer than MAX_NAME_BYTES."""
        name = self.text(what, MAX_NAME_BYTES)
        if not name:
            raise self.wrong(f"has {what} with an empty name")
        return name

    def text(self, what: str, limit: int = MAX_STRING_BYTES) -> str:
        """Read the next string; bytes that are not UTF-8 become lone surrogates."""
        size = self.number(_U64, f"the length of {what}")
        if size > limit:
            raise self.wrong(f"has {what} of {size:,} bytes, and the limit is {limit:,}")
        self.require(size, what)
        if size > _WINDOW_BYTES:
            return self._long_text(size)
        at = self._fill(size, what)
        self.position += size
        text = str(self._window[at : at + size], "utf-8", "surrogateescape")
        self.charge(sys.getsizeof(text))
        return text

    def _long_text(self, size: int) -> str:
        raw = self.array(size, "a string")
        # One character beyond U+FFFF makes Python keep all of them as 4 bytes, and the decoder
        # holds the narrower copy beside that while it widens.
        peak = size * (1 if raw.max() < 0x80 else 5)
        self.charge(peak)
        text = str(raw.data, "utf-8", "surrogateescape")
        self.charge(sys.getsizeof(text) - peak - size)  # `raw` was charged, and goes now
        return text

    def array(self, size: int, what: str) -> npt.NDArray[np.uint8]:
        """Read the next `size` bytes as a fresh uint8 array."""
        self.require(size, what)
        self.charge(size + 128)
        raw = self.source.read(self.position, size)
        self.position += size
        return raw

    def texts(self, count: int, what: str) -> list[str] | StringArray:
        """Read the next `count` strings, a window at a time.

        A vocabulary has 150,000 tokens and as many merges. Those of a large file are decoded when
        they are first wanted: it has memory to spare, so they are charged the most that they can
        take, 76 bytes and a pointer each, and 4 for every byte.
        """
        later = self.source.size_bytes >= _LARGE_FILE
        texts: list[str] | StringArray = StringArray() if later else []
        first = self.position
        while (done := len(texts)) < count:
            at = self._fill(0, what)
            starts, stop = places(self._window, at, count - done)
            piece = self._window[at:stop]
            self.position += stop - at
            if isinstance(texts, StringArray):
                self.charge(84 * len(starts) + 4 * len(piece))
                texts.add(piece, starts - at)
            else:
                batch = decoded(piece, starts - at)
                self.charge(sum(map(sys.getsizeof, batch)) + 8 * len(batch))
                texts += batch
            if len(texts) < count:  # the next one crosses the window's end, or the file's
                try:
                    texts.append(self.text(what))
                except _TruncatedError as error:
                    each = (self.position - first) // max(1, len(texts))
                    error.end = max(error.end, first + count * each)
                    raise
        return texts

    def _fill(self, size: int, what: str) -> int:
        """Make sure that `size` bytes follow the position; return its place in the window."""
        at = self.position - self._window_start
        if at < 0 or at + size > len(self._window):
            self.require(size, what)
            left = self.source.size_bytes - self.position
            self._window = self.source.read(self.position, min(_WINDOW_BYTES, left)).tobytes()
            self._window_start, at = self.position, 0
        return at


def _read_value(header: _Header, key: str) -> Any:
    what = f"the value of {shown(key)}"
    kind = header.number(_U32, what)
    if kind == _STRING:
        return header.text(what)
    if kind == _ARRAY:
        return _read_array(header, what)
    if kind not in _SCALARS:
        raise header.wrong(f"has {what} of type {kind:,}, which is none of {_TYPE_NAMES}")
    value = header.number(_SCALARS[kind], what)
    header.charge(128)
    if kind != _BOOL:
        return value
    if value > 1:
        raise header.wrong(f"has {what} as a bool of {value}, neither 0 nor 1")
    return bool(value)


def _read_array(header: _Header, what: str) -> Any:
    kind = header.number(_U32, what)
    length = header.number(_U64, what)
    if kind == _ARRAY:
        raise header.wrong(f"has {what} as an array of arrays, which no model needs")
    if kind != _STRING and kind not in _SCALARS:
        raise header.wrong(
            f"has {what} as an array of type {kind:,}, which is none of {_TYPE_NAMES}"
        )
    if length > MAX_ARRAY_LENGTH:
        raise header.wrong(
            f"has {what} as an array of {length:,} elements, and the limit is {MAX_ARRAY_LENGTH:,}"
        )
    if kind == _STRING:
        header.require(8 * length, what)
        return header.texts(length, what)
    layout = _SCALARS[kind]
    values = header.array(length * layout.size, what)
    if kind == _BOOL and (values > 1).any():
        raise header.wrong(f"has {what} with bools that are neither 0 nor 1")
    values.flags.writeable = False
    return values.view(np.bool_ if kind == _BOOL else np.dtype(layout.format))


def _read_tensor(header: _Header) -> tuple[str, str, tuple[int, ...], int, int]:
    """Read the next entry of the tensor list: name, type, numpy shape, offset in the data, size."""
    name = header.name("a tensor")
    what = f"tensor {shown(name)}"
    num_dimensions = header.number(_U32, what)
    if num_dimensions > MAX_DIMENSIONS:
        raise header.wrong(
            f"has {what} with {num_dimensions:,} dimensions, and the limit is {MAX_DIMENSIONS}"
        )
    dimensions = [header.number(_U64, what) for _ in range(num_dimensions)]  # fastest first
    type_id = header.number(_U32, what)
    offset = header.number(_U64, what)
    header.charge(_TENSOR_MEMORY)
    if 0 in dimensions:
        raise header.wrong(f"has {what} with a dimension of 0")
    block = BY_ID.get(type_id)
    if block is None:
        raise UnsupportedModelError(
            f"{header.source.path} has {what} of the unknown type {type_id:,}.",
            hint="the file may be damaged, or newer than this version of dure.",
        )
    cols = dimensions[0] if dimensions else 1
    if cols % block.block_size:
        raise header.wrong(
            f"has {what} with rows of {cols:,} weights, which are no multiple of the "
            f"{block.block_size} in a block of {block.name}"
        )
    size = math.prod(dimensions) // block.block_size * block.block_bytes
    return name, block.name, tuple(reversed(dimensions)), offset, size


def _place(
    source: SourceFile,
    listed: list[tuple[str, str, tuple[int, ...], int, int]],
    data_start: int,
    alignment: int,
) -> dict[str, TensorInfo]:
    """Check that each tensor lies inside the file and apart from the others; return all by name."""
    tensors: dict[str, TensorInfo] = {}
    for name, dtype, shape, offset, size in listed:
        if name in tensors:
            raise ModelFileError(f"{source.path} has tensor {shown(name)} twice.", hint=_DAMAGED)
        if offset % alignment:
            raise ModelFileError(
                f"{source.path} has tensor {shown(name)} at byte {offset:,} of its data, which is "
                f"no multiple of the alignment {alignment:,}.",
                hint=_DAMAGED,
            )
        tensors[name] = TensorInfo(name, dtype, shape, source, data_start + offset, size)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.size_bytes > after.offset:
            raise ModelFileError(
                f"{source.path} has tensors {shown(before.name)} and {shown(after.name)} in the "
                "same bytes.",
                hint=_DAMAGED,
            )
    if ordered and (end := ordered[-1].offset + ordered[-1].size_bytes) > source.size_bytes:
        raise ModelFileError(
            f"{source.path} is truncated or damaged: its tensors need {end:,} bytes, but the file "
            f"has {source.size_bytes:,}.",
            hint="download it again.",
        )
    return tensors
