"""Writes GGUF and safetensors bytes, sound or broken on purpose, and remembers where lengths lie.

It shares nothing with the readers, and unlike the gguf and safetensors packages it writes
whatever it is told.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALAR_FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}
# name: (id, weights in a block, bytes of a block), from ggml.h
GGML_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
}


@dataclass
class Writer:
    """Bytes so far, and (offset, size) of every number that a reader must doubt."""

    data: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)

    def raw(self, raw: bytes) -> None:
        self.data += raw

    def u32(self, value: int) -> None:
        self.numbers.append((len(self.data), 4))
        self.data += struct.pack("<I", value)

    def u64(self, value: int) -> None:
        self.numbers.append((len(self.data), 8))
        self.data += struct.pack("<Q", value)

    def string(self, text: bytes | str, length: int | None = None) -> None:
        raw = text.encode() if isinstance(text, str) else text
        self.u64(len(raw) if length is None else length)
        self.raw(raw)


@dataclass
class Raw:
    """A value given as bytes, for what no proper value can say."""

    data: bytes


@dataclass
class Array:
    kind: int
    values: list[Any]
    length: int | None = None  # what is claimed, if not the truth


@dataclass
class Text:
    text: bytes | str
    length: int | None = None


@dataclass
class KeyValue:
    key: bytes | str
    kind: int
    value: Any
    key_length: int | None = None


@dataclass
class Tensor:
    name: bytes | str
    dims: tuple[int, ...]  # fastest first, as in the file
    type_id: int
    offset: int
    name_length: int | None = None
    num_dims: int | None = None


def _write_value(out: Writer, kind: int, value: Any) -> None:
    if isinstance(value, Raw):
        out.raw(value.data)
    elif kind == STRING:
        text = value if isinstance(value, Text) else Text(value)
        out.string(text.text, text.length)
    elif kind == ARRAY:
        out.u32(value.kind)
        out.u64(len(value.values) if value.length is None else value.length)
        for each in value.values:
            _write_value(out, value.kind, each)
    else:
        out.raw(struct.pack("<" + SCALAR_FORMATS[kind], value))


def gguf(
    keys: list[KeyValue] | None = None,
    tensors: list[Tensor] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
    alignment: int = 32,
) -> Writer:
    """The bytes of a GGUF file with these parts, in this order, true or not."""
    keys, tensors = keys or [], tensors or []
    out = Writer()
    out.raw(magic)
    out.u32(version)
    out.u64(len(tensors) if num_tensors is None else num_tensors)
    out.u64(len(keys) if num_keys is None else num_keys)
    for each in keys:
        out.string(each.key, each.key_length)
        out.u32(each.kind)
        _write_value(out, each.kind, each.value)
    for tensor in tensors:
        out.string(tensor.name, tensor.name_length)
        out.u32(len(tensor.dims) if tensor.num_dims is None else tensor.num_dims)
        for dim in tensor.dims:
            out.u64(dim)
        out.u32(tensor.type_id)
        out.u64(tensor.offset)
    if data:
        out.raw(bytes(-len(out.data) % alignment))
        out.raw(data)
    return out


def rich_gguf() -> Writer:
    """A small sound file with every kind of value and every tensor type that we run."""
    keys = [
        KeyValue("general.architecture", STRING, "llama"),
        KeyValue("general.alignment", U32, 32),
        KeyValue("a.u8", U8, 200),
        KeyValue("a.i8", I8, -100),
        KeyValue("a.u16", U16, 60_000),
        KeyValue("a.i16", I16, -30_000),
        KeyValue("a.i32", I32, -2_000_000_000),
        KeyValue("a.f32", F32, 1e-5),
        KeyValue("a.bool", BOOL, 1),
        KeyValue("a.u64", U64, 1 << 63),
        KeyValue("a.i64", I64, -(1 << 62)),
        KeyValue("a.f64", F64, 3.25),
        KeyValue("tokens", ARRAY, Array(STRING, [f"token{i} 가" for i in range(40)])),
        KeyValue("scores", ARRAY, Array(F32, [0.5 * i for i in range(40)])),
        KeyValue("types", ARRAY, Array(I32, list(range(40)))),
        KeyValue("flags", ARRAY, Array(BOOL, [0, 1, 1])),
        KeyValue("empty", ARRAY, Array(STRING, [])),
        KeyValue("template", STRING, "{{ messages }}" * 20),
    ]
    tensors, data = [], bytearray()
    for name, (type_id, block_size, block_bytes) in GGML_TYPES.items():
        cols = max(block_size, 8)
        tensors.append(Tensor(f"blk.0.{name}", (cols, 3), type_id, len(data)))
        size = 3 * cols // block_size * block_bytes
        data += bytes(i * 7 % 251 for i in range(size))
        data += bytes(-len(data) % 32)
    return gguf(keys, tensors, bytes(data))


def tensor_entry(dtype: Any, shape: Any, offsets: Any) -> dict[str, Any]:
    """One entry of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors(header: dict[str, Any] | bytes, data: bytes, size: int | None = None) -> bytes:
    """The bytes of a safetensors file with that header; `size` is what is claimed if not true."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def rich_safetensors() -> bytes:
    """A small sound file with several types, a scalar, an empty tensor and metadata."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, size in (
        ("model.embed", "BF16", [16, 8], 256),
        ("model.norm", "F32", [8], 32),
        ("model.down", "F16", [4, 3, 8], 192),
        ("model.ids", "I64", [3], 24),
        ("model.scale", "F32", [], 4),
        ("model.none", "F32", [0, 4], 0),
    ):
        header[name] = tensor_entry(dtype, shape, [end, end + size])
        end += size
    return safetensors(header, bytes(i * 11 % 253 for i in range(end)))
