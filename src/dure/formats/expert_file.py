"""Reads and writes experts.dure: a model's routed experts as the kernels take them.

A file is, in little-endian numbers: the magic, the version (4 bytes), the length of the header
(4 bytes), its BLAKE2b digest (32 bytes), the header as JSON, and from the next multiple of 4,096
bytes on the records, layer by layer and expert by expert, without a gap. `dure convert` writes it
beside a file of all other tensors. Each length, offset and count is checked against the file's size
in Python's integers before it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS
from dure.formats.jsonfile import SPARE_MEMORY, parse_object
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.source import SourceFile
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int32]

FILE_NAME = "experts.dure"
PAGE = 4096
"""What records begin at multiples of, so that they can be read past the page cache."""

MAX_HEADER_BYTES = 32 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = 65_536  # of a layer
MAX_WIDTH = 1 << 24  # hidden and intermediate
MAX_NAME_BYTES = 1024

PARTS = ("gate", "up", "down")
_MAGIC, _VERSION = b"DURE\r\n\x1a\n", 1
_PREFIX = struct.Struct("<8sII32s")
_DIGEST_BYTES = 32
_ENDS = 1 << 16  # bytes of a file's beginning and end that its digest is of
_DAMAGED = "the file is damaged: convert the model again."


@dataclass(frozen=True)
class FileFacts:
    """What tells a file from another: its name, its size, and a digest of its two ends."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of one mixture: their sizes and types, and where their records lie.

    `types` are those of gate, up and down in memory, `stored` the names of what they were converted
    from, for people. `columns` is the order of the columns of all gates and ups; None if they are
    in order.
    """

    name: str  # before ".gate_proj.weight", as the family asks for it
    count: int
    hidden: int
    intermediate: int
    types: tuple[str, str, str]
    stored: tuple[str, str, str]
    record_bytes: int
    offset: int = 0
    digest: str = "0" * (2 * _DIGEST_BYTES)
    columns: Ints | None = None

    @property
    def size_bytes(self) -> int:
        """The bytes of all its records."""
        return self.count * self.record_bytes


@dataclass(frozen=True)
class ExpertFile:
    """What an experts.dure says. `layout` is the number of the packed layout (kernels.LAYOUT)."""

    layout: int
    layers: Mapping[str, ExpertLayer]  # by name, in the order of their records
    weights: FileFacts  # the file of all other tensors, which lies beside it
    origin: Sequence[FileFacts] = ()  # the files that all of it was converted from
    quantize: str | None = None  # the scheme by which floats were quantised, here and at loading
    reader: str = ""  # how the other tensors are named, where they alone do not show it
    source: SourceFile | None = field(default=None, compare=False)

    def parameters(self) -> dict[str, PackedExperts]:
        """Return a stand-in for each matrix of each layer, by the name a family asks for."""
        return {
            part.name: part
            for layer in self.layers.values()
            for part in (PackedExperts(self, layer, index) for index in range(len(PARTS)))
        }

    @property
    def size_bytes(self) -> int:
        """The bytes of all records."""
        return sum(layer.size_bytes for layer in self.layers.values())


class PackedExperts(QuantizedMatrix):
    """One of the three matrices of all experts of a layer, (experts, rows, columns), as packed."""

    def __init__(self, file: ExpertFile, layer: ExpertLayer, index: int) -> None:
        """index: which one of PARTS."""
        rows, cols = layer.intermediate, layer.hidden
        if PARTS[index] == "down":
            rows, cols = cols, rows
        name = f"{layer.name}.{PARTS[index]}_proj.weight"
        super().__init__(name, (layer.count, rows, cols), layer.types[index])
        self.file, self.layer = file, layer
        self.stored = layer.stored[index]
        self.size_bytes = self.num_rows * self.row_bytes

    def read_rows(self, start: int, stop: int) -> NoReturn:  # noqa: ARG002 - as of all
        """Raise UnsupportedModelError: a record holds the rows in panels, for the kernels."""
        where = self.file.source.path if self.file.source else FILE_NAME
        raise UnsupportedModelError(
            f"{where} has {shown(self.name)} packed for dure's kernels.",
            hint="use the model that it was converted from.",
        )

    @cached_property
    def columns(self) -> Ints | None:
        """The order of the columns; None if they are in order."""
        return None if self.name.endswith(".down_proj.weight") else self.layer.columns


def file_facts(path: Path) -> FileFacts:
    """Return the facts of a file: name, size, and BLAKE2b of its first and last 64 KiB."""
    source = SourceFile(path)
    end = source.size_bytes
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    hasher.update(source.read(0, min(_ENDS, end)).data)
    hasher.update(source.read(max(0, end - _ENDS), min(_ENDS, end)).data)
    source.close()
    return FileFacts(path.name, end, hasher.hexdigest())


def placed(layers: Sequence[ExpertLayer], file: ExpertFile) -> ExpertFile:
    """Return `file` with `layers`, their records one after another behind the header."""
    whole = replace(file, layers={layer.name: layer for layer in layers})
    place = _data_start(len(_json(whole)))
    found = {}
    for layer in layers:
        found[layer.name] = replace(layer, offset=place)
        place += layer.size_bytes
    return replace(whole, layers=found)


def header_bytes(file: ExpertFile) -> bytes:
    """Return what stands before the records, padded to a page; its length is the same with
    any digests.
    """
    text = _json(file)
    digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
    head = _PREFIX.pack(_MAGIC, _VERSION, len(text), digest) + text
    return head + bytes(-len(head) % PAGE)


def read_expert_file(path: Path) -> ExpertFile:
    """Read what an experts.dure says, and no record.

    Raises ModelFileError for a damaged file, UnsupportedModelError for a version or a tensor type
    that is not known.
    """
    source = SourceFile(path)
    if source.size_bytes < _PREFIX.size:
        raise ModelFileError(f"{path} has {source.size_bytes:,} bytes: it is cut.", hint=_DAMAGED)
    magic, version, size, digest = _PREFIX.unpack(source.read(0, _PREFIX.size).tobytes())
    if magic != _MAGIC:
        raise ModelFileError(f"{path} is not a file of experts.", hint=_DAMAGED)
    if version != _VERSION:
        raise UnsupportedModelError(
            f"{path} is version {version:,} of its format, and this dure reads {_VERSION}.",
            hint="convert the model again with this version of dure.",
        )
    if size > MAX_HEADER_BYTES or _PREFIX.size + size > source.size_bytes:
        raise ModelFileError(
            f"{path} claims a header of {size:,} bytes; the limit is {MAX_HEADER_BYTES:,}, and the "
            f"file has {source.size_bytes:,}.",
            hint=_DAMAGED,
        )
    raw = source.read(_PREFIX.size, size).tobytes()
    if hashlib.blake2b(raw, digest_size=_DIGEST_BYTES).digest() != digest:
        raise ModelFileError(
            f"the header of {path} is not the one that was written.", hint=_DAMAGED
        )
    memory = 2 * source.size_bytes + SPARE_MEMORY
    return _Header(source, size, parse_object(raw, f"the header of {path}", memory=memory)).file()


def _data_start(header_size: int) -> int:
    return -(-(_PREFIX.size + header_size) // PAGE) * PAGE


def _json(file: ExpertFile) -> bytes:
    """Encode the header; offsets and digests take the same room whatever they are."""
    layers = [
        {
            "name": layer.name,
            "count": layer.count,
            "hidden": layer.hidden,
            "intermediate": layer.intermediate,
            "types": layer.types,
            "stored": layer.stored,
            "columns": None
            if layer.columns is None
            else base64.b64encode(layer.columns.astype("<i4").tobytes()).decode(),
            "offset": f"{layer.offset:016x}",
            "record_bytes": layer.record_bytes,
            "digest": layer.digest,
        }
        for layer in file.layers.values()
    ]
    value = {
        "layout": file.layout,
        "quantize": file.quantize,
        "reader": file.reader,
        "weights": vars(file.weights),
        "origin": [vars(each) for each in file.origin],
        "layers": layers,
    }
    return json.dumps(value).encode()


class _Header:
    """A parsed header: what it says is checked here, and becomes an ExpertFile."""

    def __init__(self, source: SourceFile, size: int, value: dict[str, Any]) -> None:
        self.source = source
        self._size = size
        self._value = value

    def wrong(self, what: str) -> ModelFileError:
        """Make the error for a header that says something impossible."""
        return ModelFileError(f"{self.source.path} {what}.", hint=_DAMAGED)

    def file(self) -> ExpertFile:
        """Return the header's contents."""
        value = self._value
        quantize, listed, origin = value.get("quantize"), value.get("layers"), value.get("origin")
        if quantize not in (None, "q4", "q6", "q8"):
            raise self.wrong(f"was quantised by {shown(str(quantize))}, which is no scheme")
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_LAYERS:
            raise self.wrong(f"does not list 1 to {MAX_LAYERS:,} layers")
        if not isinstance(origin, list):
            raise self.wrong("does not list the files that it was made from")
        layers: dict[str, ExpertLayer] = {}
        place = _data_start(self._size)
        for each in listed:
            layer = self._layer(each, place)
            if layer.name in layers:
                raise self.wrong(f"has the layer {shown(layer.name)} twice")
            layers[layer.name] = layer
            place += layer.size_bytes
        if place != self.source.size_bytes:
            raise self.wrong(
                f"is truncated or damaged: its records end at byte {place:,}, and it has "
                f"{self.source.size_bytes:,} bytes"
            )
        return ExpertFile(
            self._whole(value, "layout", 1 << 31),
            layers,
            self._facts(value.get("weights")),
            tuple(map(self._facts, origin)),
            quantize,
            self._text(value, "reader", empty=True),
            self.source,
        )

    def _layer(self, value: Any, place: int) -> ExpertLayer:
        """Read a layer whose records must begin at byte `place`."""
        if not isinstance(value, dict):
            raise self.wrong("has a layer that is not a table")
        count = self._whole(value, "count", MAX_EXPERTS)
        hidden = self._whole(value, "hidden", MAX_WIDTH)
        intermediate = self._whole(value, "intermediate", MAX_WIDTH)
        record_bytes = self._whole(value, "record_bytes", self.source.size_bytes)
        offset = value.get("offset")
        if offset != f"{place:016x}" or record_bytes % PAGE:
            raise self.wrong(f"has records that do not lie in whole pages from byte {place:,} on")
        if count * record_bytes > self.source.size_bytes - place:
            raise self.wrong(
                f"is truncated or damaged: {count:,} records of {record_bytes:,} bytes do not fit "
                f"behind byte {place:,} of its {self.source.size_bytes:,}"
            )
        types = self._three(value, "types")
        for dtype, cols in zip(types, (hidden, hidden, intermediate), strict=True):
            if dtype not in BLOCKS or not BLOCKS[dtype].supported:
                raise UnsupportedModelError(
                    f"{self.source.path} has experts of the unknown type {shown(dtype)}.",
                    hint="convert the model again with this version of dure.",
                )
            if cols % BLOCKS[dtype].block_size:
                raise self.wrong(f"has rows of {cols:,} weights, which {dtype} does not divide")
        digest = self._text(value, "digest")
        if len(digest) != 2 * _DIGEST_BYTES:
            raise self.wrong("has a digest of another length")
        return ExpertLayer(
            self._text(value, "name"),
            count,
            hidden,
            intermediate,
            types,
            self._three(value, "stored"),
            record_bytes,
            place,
            digest,
            self._columns(value.get("columns"), hidden),
        )

    def _columns(self, text: Any, hidden: int) -> Ints | None:
        """Read an order of columns, which must have each of them once."""
        if text is None:
            return None
        try:
            raw = base64.b64decode(text, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raw = b""
        order = np.frombuffer(raw[: len(raw) // 4 * 4], "<i4")
        if len(raw) != 4 * hidden or not np.array_equal(np.sort(order), np.arange(hidden)):
            raise self.wrong(f"has an order of columns that is not one of {hidden:,}")
        return order.astype(np.int32)

    def _facts(self, value: Any) -> FileFacts:
        if not isinstance(value, dict):
            raise self.wrong("names a file without its facts")
        size = self._whole(value, "size_bytes", 1 << 62, least=0)
        return FileFacts(self._text(value, "name"), size, self._text(value, "digest"))

    def _whole(self, value: Mapping[str, Any], key: str, most: int, *, least: int = 1) -> int:
        number = value.get(key)
        if type(number) is not int or not least <= number <= most:
            raise self.wrong(f"has {key} = {number!r:.60}; it must be {least} to {most:,}")
        return number

    def _text(self, value: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
        text = value.get(key)
        if not isinstance(text, str) or len(text) > MAX_NAME_BYTES or not (text or empty):
            raise self.wrong(f"has {key} that is not a short text")
        return text

    def _three(self, value: Mapping[str, Any], key: str) -> tuple[str, str, str]:
        listed = value.get(key)
        if (
            not isinstance(listed, list)
            or len(listed) != len(PARTS)
            or not all(isinstance(each, str) and len(each) <= MAX_NAME_BYTES for each in listed)
        ):
            raise self.wrong(f"has {key} that are not one text each for gate, up and down")
        return listed[0], listed[1], listed[2]
