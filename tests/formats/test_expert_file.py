"""experts.dure says what was written into it, and whatever it says otherwise is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.expert_file import (
    ExpertFile,
    ExpertLayer,
    FileFacts,
    header_bytes,
    placed,
    read_expert_file,
)

ORDER = np.random.default_rng(0).permutation(64).astype(np.int32)
FACTS = FileFacts("model.gguf", 1234, "ab" * 32)
LAYERS = [
    ExpertLayer("a.experts", 3, 64, 32, ("Q8_0", "Q8_0", "F16"), ("x", "y", "z"), 8192),
    ExpertLayer("b.experts", 2, 64, 96, ("I4G32",) * 3, ("GPTQ-4",) * 3, 4096, columns=ORDER),
]
Header = dict[str, Any]


def written(path: Path) -> ExpertFile:
    """A file of two layers whose records are zeros."""
    file = placed(LAYERS, ExpertFile(1, {}, FACTS, (FACTS,), "q4", "mlx"))
    path.write_bytes(header_bytes(file) + bytes(3 * 8192 + 2 * 4096))
    return file


def rewritten(path: Path, change: Callable[[Header], None]) -> None:
    """The file with a changed header, whose digest is right."""
    whole = path.read_bytes()
    size = struct.unpack_from("<I", whole, 12)[0]
    header = json.loads(whole[48 : 48 + size])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    assert len(text) == size, "the records stay where they are"
    digest = hashlib.blake2b(text, digest_size=32).digest()
    path.write_bytes(whole[:16] + digest + text + whole[48 + size :])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "experts.dure"
    expected, found = written(path), read_expert_file(path)
    assert replace(found, layers={}) == replace(expected, layers={})
    assert list(found.layers) == ["a.experts", "b.experts"]
    for layer in found.layers.values():
        other = expected.layers[layer.name]
        assert replace(layer, columns=None) == replace(other, columns=None)
        assert layer.offset % 4096 == 0
    columns = found.layers["b.experts"].columns
    assert columns is not None
    assert np.array_equal(columns, ORDER)
    last = found.layers["b.experts"]
    assert last.offset + last.size_bytes == path.stat().st_size
    parts = found.parameters()
    assert parts["a.experts.down_proj.weight"].shape == (3, 64, 32)
    assert parts["b.experts.gate_proj.weight"].dtype == "I4G32"
    assert parts["b.experts.down_proj.weight"].columns is None
    with pytest.raises(UnsupportedModelError, match="packed for dure's kernels"):
        parts["a.experts.up_proj.weight"].read()


def test_a_digest_changes_no_length(tmp_path: Path) -> None:
    file = written(tmp_path / "experts.dure")
    layers = {n: replace(each, digest="f" * 64) for n, each in file.layers.items()}
    assert len(header_bytes(replace(file, layers=layers))) == len(header_bytes(file))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.dure"
    written(path)
    whole = path.read_bytes()
    for size in [*range(0, 4200, 7), 8192, len(whole) - 4096, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_expert_file(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelFileError, match="records end at byte"):
        read_expert_file(path)


def test_every_changed_byte_before_the_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experts.dure"
    written(path)
    whole = path.read_bytes()
    size = 48 + struct.unpack_from("<I", whole, 12)[0]
    for place in range(size):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DureError):
            read_expert_file(path)


def _set(key: str, value: Any, layer: int | None = None) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        (header if layer is None else header["layers"][layer])[key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("layout", 0),
        _set("layout", True),
        _set("quantize", "q5"),
        _set("layers", []),
        _set("layers", [1]),
        _set("origin", None),
        _set("weights", 3),
        _set("reader", 3),
        _set("count", 0, 0),
        _set("count", 4, 0),
        _set("count", 99_999, 0),
        _set("count", 1 << 40, 0),
        _set("count", -3, 0),
        _set("count", 3.0, 0),
        _set("hidden", 0, 0),
        _set("hidden", 63, 0),
        _set("hidden", 1 << 60, 0),
        _set("intermediate", 31, 1),
        _set("record_bytes", 8191, 0),
        _set("record_bytes", 4096, 0),
        _set("record_bytes", 0, 0),
        _set("record_bytes", 1 << 62, 0),
        _set("offset", "0" * 16, 0),
        _set("offset", 4096, 0),
        _set("offset", "f" * 16, 1),
        _set("digest", "00", 0),
        _set("name", "", 0),
        _set("name", "b.experts", 0),
        _set("types", ["Q8_0"], 0),
        _set("types", [1, 2, 3], 0),
        _set("stored", None, 0),
        _set("columns", "AAAA", 1),
        _set("columns", 7, 1),
        _set("columns", "?", 1),
    ],
)
def test_a_header_that_says_something_impossible_is_refused(
    tmp_path: Path, change: Callable[[Header], None]
) -> None:
    path = tmp_path / "experts.dure"
    written(path)
    rewritten(path, change)
    with pytest.raises(ModelFileError):
        read_expert_file(path)


def test_an_order_that_has_a_column_twice_is_refused(tmp_path: Path) -> None:
    twice = ORDER.copy()
    twice[0] = twice[1]
    path = tmp_path / "experts.dure"
    file = placed([replace(LAYERS[1], columns=twice)], ExpertFile(1, {}, FACTS))
    path.write_bytes(header_bytes(file) + bytes(2 * 4096))
    with pytest.raises(ModelFileError, match="an order of columns"):
        read_expert_file(path)


@pytest.mark.parametrize("dtype", ["Q9_9", "IQ2_S"])
def test_a_type_that_the_kernels_lack_is_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "experts.dure"
    written(path)
    rewritten(path, lambda header: header["layers"][0].update(types=["F16", "F16", dtype]))
    with pytest.raises(UnsupportedModelError, match=dtype):
        read_expert_file(path)


def test_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "experts.dure"
    written(path)
    whole = bytearray(path.read_bytes())
    whole[8] = 2
    path.write_bytes(whole)
    with pytest.raises(UnsupportedModelError, match="is version 2 of its format"):
        read_expert_file(path)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "experts.dure"
    path.write_bytes(struct.pack("<8sII32s", b"DURE\r\n\x1a\n", 1, 1 << 31, bytes(32)))
    with pytest.raises(ModelFileError, match=r"a header of 2,147,483,648 bytes"):
        read_expert_file(path)
