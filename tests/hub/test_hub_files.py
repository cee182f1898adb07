from __future__ import annotations

import pytest

from dure.errors import DownloadError, ModelNotFoundError, UnsupportedModelError
from dure.hub.repository import RemoteFile, check_paths, choose_files, has_tokenizer, quant_of
from dure.hub.types import Check


def chosen(*paths: str, quant: str = "") -> list[str]:
    files = [RemoteFile(path, Check(1)) for path in paths]
    return [file.path for file in choose_files(files, quant, "org/repo")]


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("model.Q5_K_S.gguf", "Q5_K_S"),
        ("big-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("Q4_K_M/big-00001-of-00003.gguf", "Q4_K_M"),
        ("x-fp16.gguf", "F16"),
        ("x-BF16.gguf", "BF16"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x-IQ4_XS.gguf", "IQ4_XS"),
        ("gpt-oss-mxfp4.gguf", "MXFP4"),
        ("model.gguf", ""),
    ],
)
def test_the_quantisation_is_read_from_a_files_name(path: str, quant: str) -> None:
    assert quant == quant_of(path)


def test_a_quantisation_picks_its_file_in_any_case() -> None:
    assert chosen("a-Q4_0.gguf", "a-Q8_0.gguf", "README.md", quant="q8_0") == ["a-Q8_0.gguf"]


def test_of_files_of_one_name_none_is_guessed() -> None:
    paths = ("Q4_0/model.gguf", "Q8_0/model.gguf")
    with pytest.raises(ModelNotFoundError, match="several files called") as caught:
        chosen(*paths, quant="model.gguf")
    assert "org/repo:Q4_0 or Q8_0" in caught.value.hint
    assert chosen(*paths, quant="Q8_0") == ["Q8_0/model.gguf"]
    assert chosen(*paths, "model.gguf", quant="model.gguf") == ["model.gguf"]


@pytest.mark.parametrize("quant", ["Q4_0", ""])
def test_of_several_models_in_one_quantisation_none_is_guessed(quant: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"several models in Q4_0: a-Q4_0\.gguf, b") as e:
        chosen("b-Q4_0.gguf", "a-Q4_0.gguf", "sub/c-Q4_0.gguf", quant=quant)
    assert e.value.hint == "name the file: org/repo/a-Q4_0.gguf"
    assert chosen("b-Q4_0.gguf", "sub/c-Q4_0.gguf", quant=quant) == ["b-Q4_0.gguf"]
    with pytest.raises(ModelNotFoundError, match="several models in Q4_0"):
        chosen("a/m-Q4_0.gguf", "b/m-Q4_0.gguf", quant=quant)
    parts = ["a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf"]
    assert chosen(*parts, "A-Q4_0.gguf", quant=quant) == ["A-Q4_0.gguf"]
    assert chosen(*parts, quant=quant) == parts


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((n, True) for n in ("tokenizer.json", "tokenizer.model", "vocab.json", "qwen.tiktoken")),
        *((n, False) for n in ("config.json", "tokenizer_config.json", "sub/tokenizer.json")),
    ],
)
def test_a_tokenizer_is_known_by_its_file(name: str, is_one: bool) -> None:
    files = [RemoteFile("model.safetensors", Check(1)), RemoteFile(name, Check(1))]
    assert has_tokenizer(files) == is_one


def test_all_parts_of_a_split_file_are_picked_in_order() -> None:
    parts = [f"a-Q4_K_M-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    assert sorted(parts) == chosen(*parts, "a-Q8_0.gguf", quant="Q4_K_M")


def test_a_split_file_with_a_part_missing_is_refused() -> None:
    with pytest.raises(DownloadError, match="2 of the 3 parts"):
        chosen("a-Q4_0-00001-of-00003.gguf", "a-Q4_0-00003-of-00003.gguf", quant="Q4_0")


def test_without_a_quantisation_the_usual_one_is_taken() -> None:
    assert chosen("a-F16.gguf", "a-Q2_K.gguf", "a-Q4_K_M.gguf") == ["a-Q4_K_M.gguf"]
    assert chosen("a-F16.gguf", "a-Q8_0.gguf", "mmproj-a-Q4_K_M.gguf") == ["a-Q8_0.gguf"]


def test_a_quantisation_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ModelNotFoundError, match="Q6_K") as caught:
        chosen("a-Q4_0.gguf", "a-Q8_0.gguf", quant="Q6_K")
    assert "Q4_0, Q8_0" in caught.value.hint


def test_safetensors_come_with_what_is_needed_and_nothing_that_runs_code() -> None:
    needed = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
    other = ["pytorch_model.bin", "modeling_x.py", "README.md", "onnx/model.onnx", "x.pt"]
    more = ["consolidated.safetensors", "original/model.safetensors", ".gitattributes"]
    assert sorted(needed) == sorted(chosen(*needed, *other, *more))


def test_a_repository_of_pickles_only_is_refused_and_says_why() -> None:
    with pytest.raises(UnsupportedModelError, match="can run code"):
        chosen("config.json", "pytorch_model.bin")


def test_an_adapter_is_not_taken_for_a_model() -> None:
    with pytest.raises(UnsupportedModelError, match="adapter"):
        chosen("adapter_config.json", "adapter_model.safetensors", "config.json")


@pytest.mark.parametrize(
    "path",
    ["../x.gguf", "a/../../x.gguf", "/etc/x.gguf", "a\\..\\x.gguf", "c:x.gguf", "a//x.gguf", ".x"],
)
def test_a_file_name_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(DownloadError, match="leave its folder"):
        check_paths([RemoteFile(path, Check(1))])
