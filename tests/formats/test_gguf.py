"""What the gguf package writes, we read back: every value, every tensor type, split or whole."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from model_bytes import (
    ARRAY,
    BOOL,
    F64,
    STRING,
    U64,
    Array,
    KeyValue,
    Raw,
    Tensor,
    rich_gguf,
)
from model_bytes import gguf as gguf_bytes

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS, BY_ID, SUPPORTED
from dure.formats.gguf import GGUFFile, read_gguf
from dure.formats.string_array import StringArray


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: GGMLQuantizationType, values: np.ndarray) -> np.ndarray:
    """The values in blocks of that type, by the gguf package if it can, else any bytes."""
    try:
        return gguf.quantize(values, kind).view(np.uint8)
    except NotImplementedError:
        shape = gguf.quant_shape_to_byte_shape(values.shape, kind)
        return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    for kind, (block_size, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        block = BY_ID[int(kind)]
        expected = (kind.name, block_size, block_bytes)
        assert expected == (block.name, block.block_size, block.block_bytes)


@pytest.mark.parametrize("name", [n for n in SUPPORTED if BLOCKS[n].ggml_id is not None])
@pytest.mark.parametrize("shape", [(4, 256), (3, 2, 512), (256,)])
def test_tensors_of_every_type_come_back_as_written(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    kind = GGMLQuantizationType[name]
    values = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    blocks = _blocks(kind, values)
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("before", np.ones(3, dtype=np.float32))
    writer.add_tensor("w", blocks, raw_dtype=kind)
    writer.add_tensor("after", np.ones(3, dtype=np.float32))
    _finish(writer)
    tensor = read_gguf(tmp_path / "one.gguf").tensors["w"]
    assert (name, shape) == (tensor.dtype, tensor.shape)
    rows = blocks.reshape(math.prod(shape[:-1]), -1)
    np.testing.assert_array_equal(rows, tensor.read())
    middle = len(rows) // 2
    np.testing.assert_array_equal(rows[middle:], tensor.read_rows(middle, len(rows)))
    assert (0, rows.shape[1]) == tensor.read_rows(1, 1).shape


@pytest.mark.parametrize("name", [n for n, b in BLOCKS.items() if b.ggml_id and not b.supported])
def test_a_type_we_do_not_run_is_listed_and_refused_by_name_when_read(
    name: str, tmp_path: Path
) -> None:
    block = BLOCKS[name]
    assert block.ggml_id is not None
    tensor = Tensor("odd", (block.block_size, 2), block.ggml_id, 0)
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf_bytes([], [tensor], bytes(2 * block.block_bytes)).data)
    listed = read_gguf(path).tensors["odd"]
    assert (name, 2 * block.block_bytes) == (listed.dtype, listed.size_bytes)
    with pytest.raises(UnsupportedModelError, match=f"'odd' .* is stored as {name}"):
        listed.read()


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rich.gguf").write_bytes(rich_gguf().data)
    tensor = read_gguf(tmp_path / "rich.gguf").tensors["blk.0.Q4_K"]
    for start, stop in ((0, 4), (-1, 2), (2, 1), (3, 1 << 62)):
        with pytest.raises(ModelFileError, match="has 3 rows"):
            tensor.read_rows(start, stop)


def test_values_of_every_kind_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "rich.gguf"
    path.write_bytes(rich_gguf().data)
    metadata = read_gguf(path).metadata
    scalars: dict[str, Any] = {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -100,
        "a.u16": 60_000,
        "a.i16": -30_000,
        "a.i32": -2_000_000_000,
        "a.f32": float(np.float32(1e-5)),
        "a.bool": True,
        "a.u64": 1 << 63,
        "a.i64": -(1 << 62),
        "a.f64": 3.25,
        "tokens": [f"token{i} 가" for i in range(40)],
        "empty": [],
    }
    for key, value in scalars.items():
        assert value == metadata[key], key
        assert type(value) is type(metadata[key]), key
    for key, array in (
        ("scores", np.arange(40, dtype=np.float32) / 2),
        ("types", np.arange(40, dtype=np.int32)),
        ("flags", np.array([False, True, True])),
    ):
        np.testing.assert_array_equal(array, metadata[key], strict=True)


def test_arrays_of_numbers_of_every_width_come_back(tmp_path: Path) -> None:
    for kind, dtype in ((U64, np.uint64), (F64, np.float64), (BOOL, np.bool_)):
        values = [0, 1, 1, 0, 1]
        path = tmp_path / f"{kind}.gguf"
        path.write_bytes(gguf_bytes([KeyValue("list", ARRAY, Array(kind, values))]).data)
        expected = np.array(values, dtype=dtype)
        np.testing.assert_array_equal(expected, read_gguf(path).metadata["list"], strict=True)


@pytest.mark.parametrize("size_bytes", [0, 1 << 27])  # of a large file they are decoded later
def test_strings_of_any_length_and_bytes_come_back(size_bytes: int, tmp_path: Path) -> None:
    rng = random.Random(5)
    texts: list[bytes] = [
        b"",
        b"\0",
        b"\0" * 8,
        b"a\0",
        b"\0a",
        b"\xff\xfe",
        b"\xe2\x82",
        b"x" * 255,
    ]
    texts += [b"long " * 60_000, b"y" * 70_000, b"", "가나다".encode() * 100_000, b"end"]
    texts += ["Ġ한글 é 👋 word"[: rng.randrange(12)].encode() for _ in range(60_000)]
    texts += [rng.randbytes(rng.randrange(400)) for _ in range(2_000)]
    whole = gguf_bytes([KeyValue("texts", ARRAY, Array(STRING, texts))])
    (tmp_path / "texts.gguf").write_bytes(whole.data)
    if size_bytes:
        os.truncate(tmp_path / "texts.gguf", size_bytes)
    found = read_gguf(tmp_path / "texts.gguf").metadata["texts"]
    assert isinstance(found, StringArray if size_bytes else list)
    assert len(texts) == len(found)
    for _ in range(2):
        assert texts == [text.encode("utf-8", "surrogateescape") for text in found]


def test_version_2_is_read_as_version_3_is(tmp_path: Path) -> None:
    data = rich_gguf().data
    (tmp_path / "3.gguf").write_bytes(data)
    data[4:8] = struct.pack("<I", 2)
    (tmp_path / "2.gguf").write_bytes(data)
    second, third = read_gguf(tmp_path / "2.gguf"), read_gguf(tmp_path / "3.gguf")
    assert (second.version, third.version) == (2, 3)
    assert list(third.tensors) == list(second.tensors)


def test_a_file_of_metadata_alone_is_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.gguf").write_bytes(gguf_bytes([KeyValue("a", STRING, "b")]).data)
    assert GGUFFile({"a": "b"}, {}, 3) == read_gguf(tmp_path / "vocab.gguf")


@pytest.mark.parametrize("value", [8, 32, 64, 4096])
def test_other_alignments_are_kept(value: int, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "aligned.gguf", "llama")
    writer.add_custom_alignment(value)
    arrays = [np.full(size, size, dtype=np.float32) for size in (3, 7, 33)]
    for array in arrays:
        writer.add_tensor(f"w{array.size}", array)
    _finish(writer)
    tensors = read_gguf(tmp_path / "aligned.gguf").tensors
    for array in arrays:
        np.testing.assert_array_equal(array, tensors[f"w{array.size}"].read().view("<f4")[0])


def _split(folder: Path, parts: int) -> list[Path]:
    writer = GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=2)
    writer.add_token_list(["a", "b"])
    for i in range(2 * parts):
        writer.add_tensor(f"w{i}", np.full((2, 4), i, dtype=np.float32))
    _finish(writer)
    return sorted(folder.glob("m-*.gguf"))


def test_a_split_model_is_joined_from_its_first_part(tmp_path: Path) -> None:
    paths = _split(tmp_path, 3)
    assert len(paths) == 3
    file = read_gguf(paths[0])
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"]
    assert [f"w{i}" for i in range(6)] == list(file.tensors)
    for i, tensor in enumerate(file.tensors.values()):
        np.testing.assert_array_equal(np.full((2, 4), i, "<f4"), tensor.read().view("<f4"))


def test_a_split_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    paths = _split(tmp_path, 3)
    with pytest.raises(ModelFileError, match="part 2 of 3, not the first") as caught:
        read_gguf(paths[1])
    assert str(paths[0]) in caught.value.hint
    shutil.copy(paths[0], tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="which its name does not"):
        read_gguf(tmp_path / "renamed.gguf")
    second = paths[1].read_bytes()
    shutil.copy(paths[2], paths[1])
    with pytest.raises(ModelFileError, match="should be part 2 of 3, but says it is part 3"):
        read_gguf(paths[0])
    paths[1].write_bytes(second.replace(b"w2", b"w0"))
    with pytest.raises(ModelFileError, match=r"tensor 'w0' is in .* and again in"):
        read_gguf(paths[0])
    paths[1].unlink()
    with pytest.raises(ModelFileError, match="1 of its parts are missing"):
        read_gguf(paths[0])


def test_parts_that_hold_fewer_tensors_than_promised_are_refused(tmp_path: Path) -> None:
    paths = _split(tmp_path, 2)
    key = b"split.tensors.count" + struct.pack("<I", 5)
    first = paths[0].read_bytes()
    paths[0].write_bytes(first.replace(key + struct.pack("<i", 4), key + struct.pack("<i", 9)))
    with pytest.raises(ModelFileError, match="hold 4 tensors, but 9 were promised"):
        read_gguf(paths[0])


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        pytest.param("two letters each", [b"ab"] * 1_400_000, marks=pytest.mark.long),
        (
            "one letter beyond U+FFFF makes every one four bytes",
            ["👋".encode() + b"a" * (20 << 20)],
        ),
        ("broken UTF-8", [b"\xff" * (30 << 20)]),
        ("many long ones", ["👋".encode() + b"a" * (1 << 20)] * 30),
    ],
)
def test_texts_that_would_swell_beyond_twice_the_file_are_refused(
    name: str, texts: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.gguf"
    value = struct.pack("<IQ", STRING, len(texts))
    value += b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    path.write_bytes(gguf_bytes([KeyValue("texts", ARRAY, Raw(value))]).data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="more memory than twice the file"):
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * path.stat().st_size + (64 << 20)


@pytest.mark.long
def test_the_most_keys_and_tensors_that_are_allowed_stay_within_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.gguf"
    keys = [KeyValue(f"k{i}", STRING, "v") for i in range(65_536)]
    tensors = [Tensor(f"tensor.{i}", (8, 1, 1, 1), 0, 32 * i) for i in range(65_536)]
    path.write_bytes(gguf_bytes(keys, tensors, bytes(32 * 65_536)).data)
    tracemalloc.start()
    file = read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(file.metadata), len(file.tensors)) == (65_536, 65_536)
    assert peak <= 2 * path.stat().st_size + (64 << 20)


@pytest.mark.long  # that package takes seconds to read the file
@pytest.mark.model
def test_a_real_model_reads_as_the_gguf_package_reads_it(smollm2: Path) -> None:
    ours, theirs = read_gguf(smollm2), gguf.GGUFReader(smollm2)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(fields) == set(ours.metadata)
    for key, value in ours.metadata.items():
        found = value.tolist() if isinstance(value, np.ndarray) else value
        if isinstance(found, list):  # of 50,000 tokens some
            assert len(fields[key].data) == len(found)
            found = found[::50]
        assert fields[key].contents(slice(None, None, 50)) == found, key
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert tuple(int(dim) for dim in reversed(tensor.shape)) == info.shape
        assert tensor.tensor_type.name == info.dtype
        assert np.array_equal(tensor.data.view(np.uint8).ravel(), info.read().ravel())
