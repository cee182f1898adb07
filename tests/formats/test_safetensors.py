"""What the safetensors package writes, we read back, from one file or many."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from model_bytes import safetensors, tensor_entry
from safetensors.numpy import save_file

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS, SAFETENSORS_DTYPES
from dure.formats.safetensors import INDEX_NAME, read_safetensors

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _save_sharded(folder: Path) -> dict[str, str]:
    """Two files with two tensors each; what is in which."""
    weight_map = {}
    for i, name in enumerate(SHARDS):
        tensors = {f"w{2 * i + j}": np.full((2, 3), 2 * i + j, np.float32) for j in range(2)}
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    _write_index(folder, weight_map)
    return weight_map


def _write_index(folder: Path, weight_map: Any) -> None:
    index = {"metadata": {"total_size": 96}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index))


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_come_back_as_the_package_wrote_them(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = {"matrix": (5, 7), "vector": (9,), "experts": (2, 3, 4), "scalar": (), "none": (0, 3)}
    arrays = {
        key: np.asarray(rng.standard_normal(shape)).astype(DTYPES[name])
        for key, shape in shapes.items()
    }
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read_safetensors(tmp_path)
    assert set(arrays) == set(tensors)
    for key, array in arrays.items():
        tensor = tensors[key]
        assert (name, array.shape) == (tensor.dtype, tensor.shape)
        raw = tensor.read()
        assert (tensor.num_rows, tensor.row_bytes) == raw.shape
        assert array.tobytes() == raw.tobytes()
    experts = arrays["experts"].reshape(6, 4)
    assert experts[2:5].tobytes() == tensors["experts"].read_rows(2, 5).tobytes()


@pytest.mark.parametrize("name", sorted(SAFETENSORS_DTYPES - set(DTYPES)))
def test_other_types_are_listed_and_refused_by_name_when_read(name: str, tmp_path: Path) -> None:
    size = 8 // BLOCKS[name].block_size * BLOCKS[name].block_bytes
    data = safetensors({"odd": tensor_entry(name, [2, 4], [0, size])}, bytes(size))
    (tmp_path / "model.safetensors").write_bytes(data)
    tensor = read_safetensors(tmp_path)["odd"]
    assert (name, size) == (tensor.dtype, tensor.size_bytes)
    with pytest.raises(UnsupportedModelError, match=f"'odd' .* is stored as {name}"):
        tensor.read()


def test_a_sharded_model_is_joined_by_its_index(tmp_path: Path) -> None:
    weight_map = _save_sharded(tmp_path)
    for path in (tmp_path, tmp_path / INDEX_NAME):
        tensors = read_safetensors(path)
        assert {name: tensor.source.path.name for name, tensor in tensors.items()} == weight_map
        for i in range(4):
            np.testing.assert_array_equal(
                np.full((2, 3), i, "<f4"), tensors[f"w{i}"].read().view("<f4")
            )


def test_shards_that_are_links_are_followed(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    snapshot = tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    _save_sharded(snapshot)
    for name in SHARDS:  # as the Hugging Face cache keeps them
        (snapshot / name).rename(blobs / name)
        (snapshot / name).symlink_to(os.path.join("..", "blobs", name))  # noqa: PTH118
    assert len(read_safetensors(snapshot)) == 4


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        ".hidden.safetensors",
        "..safetensors",
        "nul\0.safetensors",
        "weights.bin",
        "",
        "x" * 300 + ".safetensors",
    ],
)
def test_an_index_cannot_reach_outside_its_folder(name: str, tmp_path: Path) -> None:
    _save_sharded(tmp_path)
    save_file({"w": np.ones(3, np.float32)}, tmp_path.parent / "model.safetensors")
    _write_index(tmp_path, {"w": name})
    with pytest.raises(ModelFileError, match="only plain names"):
        read_safetensors(tmp_path)


def test_one_whole_file_goes_before_an_index_that_is_left_over(tmp_path: Path) -> None:
    """As transformers reads it: after merging parts, tools leave the index where it was."""
    save_file({"whole": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    _write_index(tmp_path, {"part": "model-00001-of-00002.safetensors"})
    assert list(read_safetensors(tmp_path)) == ["whole"]


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    weight_map = _save_sharded(tmp_path)
    for changed, says in (
        (weight_map | {"w0": SHARDS[1]}, "places tensor 'w0' in model-00002"),
        (weight_map | {"other": SHARDS[0]}, "places tensor 'other' in model-00001"),
        (weight_map | {"w0": "model-00003-of-00002.safetensors"}, "1 are missing"),
        (weight_map | {"w0": 5}, "only plain names"),
        (weight_map | {"w0": None}, "only plain names"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (None, "no weight_map"),
    ):
        _write_index(tmp_path, changed)
        with pytest.raises(ModelFileError, match=says):
            read_safetensors(tmp_path)


def test_a_tensor_named_twice_in_an_index_is_refused(tmp_path: Path) -> None:
    _save_sharded(tmp_path)
    text = f'{{"weight_map": {{"w0": "{SHARDS[0]}", "w0": "{SHARDS[1]}"}}}}'
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(ModelFileError, match="'w0' is there twice"):
        read_safetensors(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    _save_sharded(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    with pytest.raises(
        ModelFileError, match=rf"has no {INDEX_NAME} .* \({SHARDS[0]}, {SHARDS[1]}\)"
    ):
        read_safetensors(tmp_path)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(ModelFileError, match=rf"has no {INDEX_NAME} .* \({SHARDS[0]}\)"):
        read_safetensors(tmp_path)


def test_a_lone_file_of_another_name_is_the_model(tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    assert list(read_safetensors(tmp_path)) == ["w"]
    assert list(read_safetensors(tmp_path / "weights.safetensors")) == ["w"]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no \.safetensors file"):
        read_safetensors(tmp_path)
