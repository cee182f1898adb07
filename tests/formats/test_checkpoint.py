"""A path of any kind opens as one model, or the error says what lies there instead."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_bytes import ARRAY, STRING, U16, Array, KeyValue, rich_gguf, rich_safetensors
from model_bytes import gguf as gguf_bytes
from safetensors.numpy import save_file

from dure.errors import ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.formats.safetensors import INDEX_NAME

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small sound model in Hugging Face form."""
    save_file({"w": np.ones((2, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def test_a_folder_gives_what_its_files_say(folder: Path) -> None:
    bare = open_checkpoint(folder)
    assert ("safetensors", folder) == (bare.kind, bare.path)
    assert bare.config == {"model_type": "llama"}
    assert (bare.metadata, bare.generation_config, bare.tokenizer_config) == ({}, {}, {})
    assert bare.tokenizer_json is None and bare.chat_template is None
    (folder / "generation_config.json").write_text('{"top_k": 20}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ 1 }}"}')
    (folder / "tokenizer.json").write_text("{}")
    full = open_checkpoint(folder)
    assert full.generation_config == {"top_k": 20}
    assert full.tokenizer_config == {"chat_template": "{{ 1 }}"}
    assert full.tokenizer_json == folder / "tokenizer.json"
    assert full.chat_template == "{{ 1 }}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
        ([1, {"name": ["default"], "template": 3}, {"name": "default"}], None),
        (5, None),
        (None, None),
    ],
)
def test_the_plain_template_of_several_is_taken(
    template: Any, expected: str | None, folder: Path
) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert expected == open_checkpoint(folder).chat_template


def test_a_template_file_outranks_the_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    (folder / "chat_template.jinja").write_text("새 템플릿", encoding="utf-8")
    assert open_checkpoint(folder).chat_template == "새 템플릿"


def test_a_file_of_a_set_opens_the_set(tmp_path: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        save_file({name: np.ones(3, np.float32)}, tmp_path / file)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / INDEX_NAME, *(tmp_path / file for file in names.values())):
        checkpoint = open_checkpoint(path)
        assert {"a", "b"} == set(checkpoint.tensors)
        assert tmp_path == checkpoint.path


def test_a_single_safetensors_file_opens_with_the_config_beside_it(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "model.safetensors")
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.path == folder / "model.safetensors"


def test_a_gguf_file_opens_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    for name in ("model.gguf", "sha256-0123", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(rich_gguf().data)
        checkpoint = open_checkpoint(str(path))
        assert ("gguf", path, 16) == (checkpoint.kind, checkpoint.path, len(checkpoint.tensors))
        assert checkpoint.config == {} and checkpoint.chat_template is None


def test_a_gguf_template_is_the_checkpoints(tmp_path: Path) -> None:
    for value, expected in (
        (KeyValue("tokenizer.chat_template", STRING, "{{ x }}"), "{{ x }}"),
        (KeyValue("tokenizer.chat_template", ARRAY, Array(STRING, ["x"])), None),
    ):
        (tmp_path / "model.gguf").write_bytes(gguf_bytes([value]).data)
        assert expected == open_checkpoint(tmp_path / "model.gguf").chat_template


def test_a_folder_with_one_gguf_model_opens_it(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(rich_gguf().data)
    (tmp_path / "mmproj-model.gguf").write_bytes(b"GGUF of a vision projector")
    (tmp_path / "README.md").write_text("words")
    assert open_checkpoint(tmp_path).path == tmp_path / "model.gguf"


def test_a_folder_with_one_split_set_opens_it(tmp_path: Path) -> None:
    for i in range(3):
        keys = [KeyValue("split.no", U16, i), KeyValue("split.count", U16, 3)]
        (tmp_path / f"m-{i + 1:05d}-of-00003.gguf").write_bytes(gguf_bytes(keys).data)
    assert open_checkpoint(tmp_path).path == tmp_path / "m-00001-of-00003.gguf"


def _two_models(folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(rich_gguf().data)


def _pickles(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def _no_config(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(rich_safetensors())


def _pointer(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(LFS_POINTER)


def _dangling(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(folder / "gone")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "has no model in it"),
        (_two_models, "has 2 GGUF models: a.gguf, b.gguf"),
        (_pickles, r"only PyTorch weights \(pytorch_model.bin\)"),
        (_no_config, "no config.json"),
        (_pointer, "Git LFS pointer"),
        (_dangling, "does not exist"),
    ],
)
def test_a_folder_that_is_no_model_says_why(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(ModelFileError, match=says) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 archive/data.pkl", "PyTorch checkpoint"),
        (b"<!DOCTYPE html><p>404", "HTML page"),
        (LFS_POINTER, "git lfs pull"),
        (b"tjgg" + bytes(20), "format before GGUF"),
        (b"plain words\n", "text file"),
    ],
)
def test_a_file_that_is_no_model_is_named_for_what_it_looks_like(
    data: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(ModelFileError, match=says):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("path", ["none", "none/model.gguf", "nul\0"])
def test_a_path_that_is_not_there_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"does not exist|cannot be opened"):
        open_checkpoint(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "a JSON list where an object belongs"),
        (b"null", "where an object belongs"),
        (b'{"a": }', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not valid JSON"),
        (b'{"a":' * 65 + b"{}" + b"}" * 65, "nested deeper than 64"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested deeper than 64"),
        (b'{"a": "' + b"x" * (8 << 20) + b'"}', "the limit is 8,388,608"),
        (b'{"a": [' + b"[]," * 1_500_000 + b"[]]}", "bytes of memory"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_broken_config_is_refused_by_name(
    name: str, text: bytes, says: str, folder: Path
) -> None:
    (folder / name).write_bytes(text)
    with pytest.raises(ModelFileError, match=says) as caught:
        open_checkpoint(folder)
    assert name in caught.value.message


def test_a_template_that_is_too_large_or_not_text_is_refused(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ModelFileError, match="the limit is 1,048,576"):
        open_checkpoint(folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match="not UTF-8"):
        open_checkpoint(folder)


def test_a_header_longer_than_its_file_says_both_sizes(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 5_000) + b'{"w":')
    with pytest.raises(ModelFileError, match=r"needs 5,008 bytes, but the file has 13\."):
        open_checkpoint(folder)
