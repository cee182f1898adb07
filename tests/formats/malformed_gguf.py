"""Broken GGUF files by kind: each is sound but for the one thing its kind names."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from model_bytes import (
    ARRAY,
    BOOL,
    F32,
    GGML_TYPES,
    I32,
    SCALAR_FORMATS,
    STRING,
    U32,
    Array,
    KeyValue,
    Raw,
    Tensor,
    Text,
    gguf,
    rich_gguf,
)

# A variant's name, the file's bytes, and words that the error must have.
Variant = tuple[str, bytes, str]

HUGE = (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
WORD = KeyValue("general.name", STRING, "a model")


def first_bytes() -> Iterator[Variant]:
    yield from (
        ("empty", b"", "is empty"),
        ("one letter", b"G", "text file"),
        ("three letters", b"GGU", "text file"),
        ("lower case", b"gguf" + bytes(20), "begins with the bytes"),
        ("reversed", b"FUGG" + bytes(20), "begins with the bytes"),
        ("zip", b"PK\x03\x04" + bytes(40), "PyTorch"),
        ("pickle", b"\x80\x02}q\x00." + bytes(40), "pickle"),
        ("pickle 4", b"\x80\x04\x95" + bytes(40), "pickle"),
        ("html", b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        ("html after space", b"\n\n <HTML><head></head></html>", "HTML"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("ggml", b"lmgg" + bytes(40), "GGML"),
        ("ggmf", b"fmgg\x01" + bytes(40), "GGMF"),
        ("ggjt", b"tjgg\x03" + bytes(40), "GGJT"),
        ("ggla", b"algg\x01" + bytes(40), "GGLA"),
        ("gzip", b"\x1f\x8b\x08" + bytes(40), "gzip"),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        ("program", b"\x7fELF" + bytes(40), "program"),
        ("json", b'{"error": "not found"}', "JSON"),
        ("zeros", bytes(4096), "zeros"),
        ("text", b"see the other branch\n", "text file"),
        ("bytes", bytes(range(128, 192)), "begins with the bytes"),
    )


def version() -> Iterator[Variant]:
    for number in (0, 1, 4, 5, 100, 65_535, 1 << 31):
        says = "big-endian" if number == 1 << 31 else f"version {number:,}"
        yield str(number), bytes(gguf([WORD], version=number).data), says
    for number in (2, 3):
        data = b"GGUF" + struct.pack(">IQQ", number, 0, 0)
        yield f"big-endian {number}", data, "big-endian"


def tensor_count() -> Iterator[Variant]:
    for count in (65_537, *HUGE):
        yield str(count), bytes(gguf([WORD], num_tensors=count).data), "limit is 65,536"
    for count in (3, 100, 65_536):
        yield str(count), bytes(gguf([WORD], num_tensors=count).data), "truncated"


def key_count() -> Iterator[Variant]:
    for count in (65_537, *HUGE):
        yield str(count), bytes(gguf([WORD], num_keys=count).data), "limit is 65,536"
    for count in (4, 100, 65_536):
        yield str(count), bytes(gguf([WORD], num_keys=count).data), "truncated"


def string_length() -> Iterator[Variant]:
    for length in (1_000, 65_535, 1 << 20, 64 << 20, (64 << 20) + 1, *HUGE):
        far = "limit is 67,108,864" if length > 64 << 20 else "truncated"
        keys = [WORD, KeyValue("tokens", STRING, Text("short", length))]
        yield f"value {length}", bytes(gguf(keys).data), far
        for place in range(3):
            words = [Text("short"), Text("short"), Text("short")]
            words[place] = Text("short", length)
            keys = [WORD, KeyValue("tokens", ARRAY, Array(STRING, words))]
            yield f"element {place} {length}", bytes(gguf(keys).data), far
        far = "limit is 65,535" if length > 65_535 else "truncated"
        keys = [WORD, KeyValue("name", U32, 1, key_length=length)]
        yield f"key {length}", bytes(gguf(keys).data), far
        tensor = Tensor("w", (8,), 0, 0, name_length=length)
        yield f"tensor {length}", bytes(gguf([WORD], [tensor], bytes(32)).data), far


def array_length() -> Iterator[Variant]:
    for kind in (*SCALAR_FORMATS, STRING):
        value = "x" if kind == STRING else 1
        for length in ((1 << 24) + 1, *HUGE):
            keys = [KeyValue("list", ARRAY, Array(kind, [value] * 3, length))]
            yield f"type {kind} {length}", bytes(gguf(keys).data), "limit is 16,777,216"
        for length in (40, 1 << 24):
            keys = [KeyValue("list", ARRAY, Array(kind, [value] * 3, length))]
            yield f"type {kind} {length}", bytes(gguf(keys).data), "truncated"


def value_type() -> Iterator[Variant]:
    for kind in (13, 14, 32, 255, 256, 1 << 31, (1 << 32) - 1):
        keys = [KeyValue("odd", kind, Raw(bytes(64)))]
        yield f"scalar {kind}", bytes(gguf(keys).data), f"type {kind:,}"
        keys = [KeyValue("odd", ARRAY, Raw(struct.pack("<IQ", kind, 2) + bytes(64)))]
        yield f"array {kind}", bytes(gguf(keys).data), f"type {kind:,}"


def nested_array() -> Iterator[Variant]:
    for depth in (2, 3, 10, 1_000):
        value = struct.pack("<IQ", ARRAY, 1) * (depth - 1) + struct.pack("<IQI", U32, 1, 5)
        keys = [KeyValue("nested", ARRAY, Raw(value))]
        yield str(depth), bytes(gguf(keys).data), "array of arrays"


def bool_value() -> Iterator[Variant]:
    for value in (2, 3, 127, 128, 255):
        yield f"{value}", bytes(gguf([KeyValue("flag", BOOL, value)]).data), "bool"
        keys = [KeyValue("flags", ARRAY, Array(BOOL, [0, 1, value]))]
        yield f"array {value}", bytes(gguf(keys).data), "bool"


def names() -> Iterator[Variant]:
    other = KeyValue("general.name", U32, 3)
    yield "key twice", bytes(gguf([WORD, WORD]).data), "twice"
    yield "key twice of two types", bytes(gguf([WORD, other]).data), "twice"
    apart = [WORD, *(KeyValue(f"k{i}", U32, i) for i in range(50)), other]
    yield "key twice far apart", bytes(gguf(apart).data), "twice"
    broken = KeyValue(b"\xff\xfe", U32, 1)
    yield "broken key twice", bytes(gguf([broken, broken]).data), "twice"
    yield "empty key", bytes(gguf([KeyValue("", U32, 1)]).data), "empty"
    yield "long key", bytes(gguf([KeyValue("k" * 65_536, U32, 1)]).data), "limit is 65,535"
    first, second = Tensor("w", (8,), 0, 0), Tensor("w", (8,), 0, 32)
    yield "tensor twice", bytes(gguf([], [first, second], bytes(64)).data), "twice"
    yield "tensor twice in one place", bytes(gguf([], [first, first], bytes(64)).data), "twice"
    yield "empty tensor name", bytes(gguf([], [Tensor("", (8,), 0, 0)], bytes(32)).data), "empty"
    long = Tensor("w" * 65_536, (8,), 0, 0)
    yield "long tensor name", bytes(gguf([], [long], bytes(32)).data), "limit is 65,535"


def alignment() -> Iterator[Variant]:
    tensor = Tensor("w", (8,), 0, 0)
    for value in (0, 3, 5, 24, 31, 33, 48, 65_535, 1 << 17, 1 << 31, (1 << 32) - 1):
        keys = [KeyValue("general.alignment", U32, value)]
        yield str(value), bytes(gguf(keys, [tensor], bytes(32)).data), "power of two"
    for value in (-1, -32):
        keys = [KeyValue("general.alignment", I32, value)]
        yield str(value), bytes(gguf(keys, [tensor], bytes(32)).data), "power of two"
    for name, kind, odd in (
        ("float", F32, 32.0),
        ("bool", BOOL, 1),
        ("string", STRING, "32"),
        ("array", ARRAY, Array(U32, [32])),
    ):
        keys = [KeyValue("general.alignment", kind, odd)]
        yield name, bytes(gguf(keys, [tensor], bytes(32)).data), "whole number"


def dimension_count() -> Iterator[Variant]:
    for count in (5, 6, 8, 255, *HUGE[:2]):
        dims = (1,) * min(count, 8)
        tensor = Tensor("w", dims, 0, 0, num_dims=count)
        yield str(count), bytes(gguf([], [tensor], bytes(32)).data), "limit is 4"


def zero_dimension() -> Iterator[Variant]:
    for count in range(1, 5):
        for place in range(count):
            dims = [32] * count
            dims[place] = 0
            tensor = Tensor("w", tuple(dims), 0, 0)
            yield f"{place} of {count}", bytes(gguf([], [tensor], bytes(32)).data), "of 0"


def size_overflow() -> Iterator[Variant]:
    """Products that wrap around in 32 or 64 bits, often to 0 or to the file's true size."""
    for dims in (
        (1 << 32, 1 << 32),
        (1 << 31, 1 << 31, 4),
        (1 << 16, 1 << 16, 1 << 16, 1 << 16),
        (1 << 62, 4),
        ((1 << 64) - 256,),
        (256, (1 << 56) + 1),
        (1 << 63, 2),
        (1 << 30, 1),
    ):
        for name in ("F32", "F16", "Q4_0", "Q8_0", "Q4_K", "MXFP4"):
            tensor = Tensor("w", dims, GGML_TYPES[name][0], 0)
            label = f"{name} {'x'.join(map(str, dims))}"
            yield label, bytes(gguf([WORD], [tensor], bytes(1024)).data), "truncated"


def tensor_type() -> Iterator[Variant]:
    for type_id in (4, 5, 31, 32, 33, 36, 37, 38, 43, 99, 255, 1 << 31, (1 << 32) - 1):
        tensor = Tensor("w", (256,), type_id, 0)
        data = gguf([WORD], [tensor], bytes(2048)).data
        yield str(type_id), bytes(data), f"unknown type {type_id:,}"


def row_length() -> Iterator[Variant]:
    for name, (type_id, block_size, block_bytes) in GGML_TYPES.items():
        if block_size == 1:
            continue
        for cols in (1, block_size - 1, block_size + 1, block_size // 2):
            tensor = Tensor("w", (cols, block_size), type_id, 0)
            data = gguf([WORD], [tensor], bytes(block_bytes * (cols + 1))).data
            yield f"{name} {cols}", bytes(data), "no multiple"


def offset() -> Iterator[Variant]:
    for value in (1, 4, 8, 16, 31, 33, (1 << 64) - 1, (1 << 32) + 1):
        tensor = Tensor("w", (8,), 0, value)
        yield str(value), bytes(gguf([], [tensor], bytes(128)).data), "no multiple"
    for value in (128, 1 << 20, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 32):
        tensor = Tensor("w", (8,), 0, value)
        yield str(value), bytes(gguf([], [tensor], bytes(128)).data), "truncated"
    keys = [KeyValue("general.alignment", U32, 256)]
    for value in (32, 64, 128, 288):
        tensor = Tensor("w", (8,), 0, value)
        data = gguf(keys, [tensor], bytes(1024), alignment=256).data
        yield f"{value} of 256", bytes(data), "no multiple"


def overlap() -> Iterator[Variant]:
    for first, second in ((0, 0), (0, 32), (32, 0), (64, 32), (0, 96), (96, 0)):
        tensors = [Tensor("a", (32,), 0, first), Tensor("b", (32,), 0, second)]
        data = gguf([], tensors, bytes(512)).data
        yield f"{first} and {second}", bytes(data), "same bytes"
    inside = [Tensor("a", (64,), 0, 0), Tensor("b", (8,), 0, 64), Tensor("c", (8,), 0, 256)]
    yield "one inside another", bytes(gguf([], inside, bytes(512)).data), "same bytes"


def missing_data() -> Iterator[Variant]:
    for name, (type_id, block_size, block_bytes) in GGML_TYPES.items():
        whole = 4 * block_bytes
        tensor = Tensor("w", (2 * block_size, 2), type_id, 0)
        for label, size in (("a byte", whole - 1), ("half", whole // 2), ("all but one", 1)):
            data = gguf([WORD], [tensor], bytes(size)).data
            yield f"{name} {label}", bytes(data), "truncated"


def truncated_header() -> Iterator[Variant]:
    whole = rich_gguf()
    for place, _ in whole.numbers:
        if place >= 8:
            yield f"before byte {place}", bytes(whole.data[:place]), "truncated"
            yield f"in byte {place}", bytes(whole.data[: place + 3]), "truncated"


KINDS = (
    first_bytes,
    version,
    tensor_count,
    key_count,
    string_length,
    array_length,
    value_type,
    nested_array,
    bool_value,
    names,
    alignment,
    dimension_count,
    zero_dimension,
    size_overflow,
    tensor_type,
    row_length,
    offset,
    overlap,
    missing_data,
    truncated_header,
)
