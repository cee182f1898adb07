"""Broken safetensors files by kind: each is sound but for the one thing its kind names."""

from __future__ import annotations

import json
from collections.abc import Iterator

from model_bytes import rich_safetensors, safetensors, tensor_entry

# A variant's name, the file's bytes, and words that the error must have.
Variant = tuple[str, bytes, str]

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


def one(entry: object, size: int = 32) -> bytes:
    """A file with one tensor, described by `entry`."""
    return safetensors({"w": entry}, bytes(size))


def first_bytes() -> Iterator[Variant]:
    whole = rich_safetensors()
    yield "empty", b"", "is empty"
    for size in range(1, 9):
        yield f"{size} bytes", whole[:size], "not a safetensors file"
    yield from (
        ("zip", b"PK\x03\x04" + bytes(40), "PyTorch"),
        ("pickle", b"\x80\x02}q\x00." + bytes(40), "pickle"),
        ("html", b"<!doctype html><title>404</title>", "HTML"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("gguf", b"GGUF\x03" + bytes(40), "GGUF"),
        ("zeros", bytes(64), "zeros"),
        ("list header", safetensors(b"[1, 2]", b""), "not a safetensors file"),
        ("text header", safetensors(b'"words"', b""), "not a safetensors file"),
        ("space before the header", safetensors(b" {}", b""), "not a safetensors file"),
        ("mark before the header", safetensors(b"\xef\xbb\xbf{}", b""), "not a safetensors file"),
    )


def header_length() -> Iterator[Variant]:
    for size in (100_000_001, 1 << 31, 1 << 32, 1 << 53, 1 << 63, (1 << 64) - 1):
        yield f"{size}", safetensors({}, bytes(64), size), "limit is 100,000,000"
    for size in (67, 1_000, 1 << 20, 100_000_000):
        yield f"{size}", safetensors({}, bytes(64), size), "truncated"
    for size in (0, 1):
        yield f"{size}", safetensors(b"{}", b"", size), "not valid JSON"


def truncated_file() -> Iterator[Variant]:
    whole = rich_safetensors()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for size in (9, 10, 20, 100, header_end - 1, header_end, header_end + 1, len(whole) - 1):
        yield f"{size} of {len(whole)} bytes", whole[:size], "truncated"


def broken_json() -> Iterator[Variant]:
    for text in (
        b"{",
        b"{]",
        b"{}}",
        b"{} {}",
        b'{"w"',
        b'{"w":',
        b'{"w":}',
        b'{"w":{},}',
        b"{w:{}}",
        b"{'w':{}}",
        b'{"w":{}',
        b'{"w":tru}',
        b'{"w":01}',
        b'{"w":0x10}',
        b'{"w":"\\x"}',
        b'{"w":"\\u12"}',
        b'{"a\nb":1}',
        b'{"w":1//2}',
        b"{/* */}",
        b"{}\x00\x00",
        b'{"\xff":1}',
        b'{"\xc0\xaf":1}',
        b'{"\xed\xa0\x80":1}',
        b'{"w":' + b"9" * 5_000 + b"}",
    ):
        yield repr(text[:16]), safetensors(text, b""), "not valid JSON"


def twice() -> Iterator[Variant]:
    entry = json.dumps(tensor_entry("F32", [8], [0, 32]))
    for name, text in (
        ("tensor", f'{{"w": {entry}, "w": {entry}}}'),
        ("metadata", f'{{"__metadata__": {{}}, "w": {entry}, "__metadata__": {{}}}}'),
        ("escaped", f'{{"w": {entry}, "\\u0077": {entry}}}'),
        ("dtype", '{"w": {"dtype":"F32","dtype":"F16","shape":[8],"data_offsets":[0,32]}}'),
        ("shape", '{"w": {"dtype":"F32","shape":[4],"shape":[8],"data_offsets":[0,32]}}'),
        ("offsets", '{"w":{"dtype":"F32","shape":[8],"data_offsets":[],"data_offsets":[0,32]}}'),
    ):
        yield name, safetensors(text.encode(), bytes(32)), "twice"


def nesting() -> Iterator[Variant]:
    for depth in (65, 100, 500, 3_000, 100_000):
        yield f"objects {depth}", safetensors(b'{"a":' * depth + b"1" + b"}" * depth, b""), ""
        yield f"lists {depth}", safetensors(b'{"a":' + b"[" * depth + b"]" * depth + b"}", b""), ""


def entry_kind() -> Iterator[Variant]:
    for value in (None, 1, 1.5, "F32", True, [], ["F32", [8], [0, 32]]):
        yield repr(value), one(value), "without a description"


def dtype() -> Iterator[Variant]:
    for value in (None, 0, True, [], {}, "", "f32", "FLOAT", "Q4_0", "F128", "BF16 ", "x" * 500):
        yield repr(value)[:20], one(tensor_entry(value, [8], [0, 32])), "unknown type"


def shape() -> Iterator[Variant]:
    for value in (
        None,
        8,
        "8",
        {},
        ["8"],
        [8.0],
        [True],
        [None],
        [[8]],
        [-8],
        [-1, -8],
        [1 << 63],
        [10**400],
        [1] * 8 + [8],
        [1e400],
    ):
        yield repr(value)[:20], one(tensor_entry("F32", value, [0, 32])), "shape"


def empty_but_huge() -> Iterator[Variant]:
    for value in ([0, 1 << 62], [1 << 62, 0], [0, 1 << 40, 1 << 40], [(1 << 63) - 1, 0, 1]):
        yield repr(value), one(tensor_entry("F32", value, [0, 0]), 0), "huge shape"


def offsets() -> Iterator[Variant]:
    for value in (
        None,
        0,
        "0,32",
        {},
        [],
        [0],
        [0, 32, 64],
        ["0", "32"],
        [0.0, 32.0],
        [False, 32],
        [None, 32],
        [-32, 0],
        [0, -32],
        [0, 10**400],
        [1 << 63, (1 << 63) + 32],
    ):
        yield repr(value)[:20], one(tensor_entry("F32", [8], value)), "data_offsets"


def missing_field() -> Iterator[Variant]:
    for field, says in (
        ("dtype", "unknown type"),
        ("shape", "shape"),
        ("data_offsets", "data_offsets"),
    ):
        entry = tensor_entry("F32", [8], [0, 32])
        del entry[field]
        yield field, one(entry), says


def metadata() -> Iterator[Variant]:
    for value in (None, 1, "pt", [], {"format": 1}, {"format": None}, {"format": {"a": "b"}}):
        yield repr(value), safetensors({"__metadata__": value}, b""), "__metadata__"


def wrong_size() -> Iterator[Variant]:
    for name, bits in BITS.items():
        size = 8 * bits // 8
        for end in (size - 1, size + 1, 0, 2 * size):
            entry = tensor_entry(name, [8], [0, end])
            yield f"{name} {end} for {size}", one(entry, end), "do not fit"
    for dims in ([1 << 32, 1 << 32], [1 << 62, 4], [(1 << 63) - 1, 2], [1 << 31] * 2 + [4]):
        yield f"wraps {dims}", one(tensor_entry("F32", dims, [0, 32])), "do not fit"
    yield "backwards", one(tensor_entry("F32", [8], [32, 0])), "do not fit"
    for name, count in (("F4", 7), ("F6_E2M3", 3), ("F6_E3M2", 5)):
        yield f"part of a byte {name}", one(tensor_entry(name, [count], [0, 3]), 3), "do not fit"


def layout() -> Iterator[Variant]:
    def two(first: int, second: int, size: int, third: int | None = None) -> bytes:
        starts = {"a": first, "b": second} | ({"c": third} if third is not None else {})
        header = {
            name: tensor_entry("F32", [8], [start, start + 32]) for name, start in starts.items()
        }
        return safetensors(header, bytes(size))

    yield from (
        ("same place", two(0, 0, 32), "overlap"),
        ("same place, long file", two(0, 0, 64), "overlap"),
        ("half over", two(0, 16, 64), "overlap"),
        ("half over, reversed", two(16, 0, 64), "overlap"),
        ("third over", two(0, 32, 96, 48), "overlap"),
        ("gap of one", two(0, 33, 65), "gap"),
        ("gap between", two(0, 64, 96), "gap"),
        ("gap between, reversed", two(64, 0, 96), "gap"),
        ("gap at the start", two(32, 64, 96), "gap"),
        ("far away", two(0, 1 << 40, 64), "gap"),
        ("byte left over", two(0, 32, 65), "end at"),
        ("much left over", two(0, 32, 4096), "end at"),
        ("byte too few", two(0, 32, 63), "truncated"),
        ("no data", two(0, 32, 0), "truncated"),
        ("data without tensors", safetensors({}, bytes(8)), "end at"),
    )


def expansion() -> Iterator[Variant]:
    """A few bytes of JSON that become many bytes of objects."""
    for item in (b"[]", b"{}", b"[[]]", b'{"":0}', b"[" * 30 + b"]" * 30):
        count = 4_000_000 // (len(item) + 1)
        text = b'{"a":[' + b",".join([item] * count) + b"]}"
        yield repr(item[:8]), safetensors(text, b""), "memory"


KINDS = (
    first_bytes,
    header_length,
    truncated_file,
    broken_json,
    twice,
    nesting,
    entry_kind,
    dtype,
    shape,
    empty_but_huge,
    offsets,
    missing_field,
    metadata,
    wrong_size,
    layout,
    expansion,
)
