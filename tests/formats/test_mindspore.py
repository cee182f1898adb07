"""MindSpore's .ckpt files are read as the protobuf they are, without running anything."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.quantized_checkpoint import parameters

NAME = "model.norm.weight"


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def value(name: str, shape: tuple[int, ...], kind: str, content: bytes) -> bytes:
    tensor = b"".join(field(1, size) for size in shape)
    tensor += field(2, kind.encode()) + field(3, content)
    return field(1, field(1, name.encode()) + field(2, tensor))


def folder(path: Path, *files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for index, content in enumerate(files):
        (path / f"part{index}.ckpt").write_bytes(content)
    return path


WEIGHT = np.arange(6 * 7, dtype=np.float32).reshape(6, 7)


def test_tensors_come_under_their_names_with_their_values(tmp_path: Path) -> None:
    half = WEIGHT.astype(np.float16)
    first = value("a.weight", (6, 7), "Float32", WEIGHT.tobytes())
    second = value("b.weight", (6, 7), "Float16", half.tobytes())
    found = parameters(open_checkpoint(folder(tmp_path, first + second)))
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        "a.weight": ("F32", (6, 7)),
        "b.weight": ("F16", (6, 7)),
    }
    np.testing.assert_array_equal(found["a.weight"].read().view(np.float32), WEIGHT)
    np.testing.assert_array_equal(found["b.weight"].read_rows(2, 4).view(np.float16), half[2:4])


def test_slices_of_a_large_tensor_are_joined_wherever_they_end(tmp_path: Path) -> None:
    raw = WEIGHT.tobytes()
    cuts = [raw[:40], raw[40:100], raw[100:]]
    parts = b"".join(value("a.weight", (6, 7), "Float32", part) for part in cuts)
    found = parameters(open_checkpoint(folder(tmp_path, parts + b"crc_num0123456789")))
    assert list(found) == ["a.weight"]
    np.testing.assert_array_equal(found["a.weight"].read().view(np.float32), WEIGHT)
    np.testing.assert_array_equal(found["a.weight"].read_rows(1, 5).view(np.float32), WEIGHT[1:5])


def test_a_model_in_several_files_is_one_and_a_name_in_two_is_refused(tmp_path: Path) -> None:
    files = [value(name, (6, 7), "Float32", WEIGHT.tobytes()) for name in ("a", "b")]
    assert set(parameters(open_checkpoint(folder(tmp_path, *files)))) == {"a", "b"}
    with pytest.raises(ModelFileError, match="'a' in two"):
        open_checkpoint(folder(tmp_path, files[0], files[0]))


GOOD = value("a.weight", (6, 7), "Float32", WEIGHT.tobytes())
WRONG: dict[str, tuple[bytes, type[DureError], str]] = {
    "cut": (GOOD[:-1], ModelFileError, "byte 0"),
    "an endless number": (b"\n" + b"\xff" * 20, ModelFileError, "byte"),
    "no tensor": (field(1, field(1, b"a")), ModelFileError, "byte"),
    "too few bytes": (value("a", (6, 8), "Float32", b"1234"), ModelFileError, "4 bytes"),
    "another type": (value("a", (1,), "Complex64", b"12345678"), UnsupportedModelError, "Complex"),
    "a name that is no text": (field(1, field(1, b"\xff\xfe")), ModelFileError, "byte"),
    "many dims": (value("a", (1,) * 9, "Float32", b"1234"), ModelFileError, "byte"),
    "a fixed field": (field(1, b"\x0d" + struct.pack("<I", 1)), ModelFileError, "byte"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    content, error, said = WRONG[what]
    with pytest.raises(error, match=said):
        open_checkpoint(folder(tmp_path, content))


def test_a_pickle_called_ckpt_is_still_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="can run code"):
        open_checkpoint(folder(tmp_path, b"\x80\x02}q\x00."))
