from __future__ import annotations

from pathlib import Path

import pytest

from dure.errors import InvalidRequestError
from dure.hub import parse_name


@pytest.mark.parametrize(
    ("text", "kind", "repo", "revision", "quant"),
    [
        ("Qwen/Qwen3-0.6B", "huggingface", "Qwen/Qwen3-0.6B", "", ""),
        ("org/repo:Q4_K_M", "huggingface", "org/repo", "", "Q4_K_M"),
        ("org/repo@v1.0:Q8_0", "huggingface", "org/repo", "v1.0", "Q8_0"),
        ("org/repo@refs/pr/1", "huggingface", "org/repo", "refs/pr/1", ""),
        ("modelscope:org/repo", "modelscope", "org/repo", "", ""),
        ("ms:org/repo:q8_0", "modelscope", "org/repo", "", "q8_0"),
        ("hf:org/repo", "huggingface", "org/repo", "", ""),
        ("HuggingFace:org/repo", "huggingface", "org/repo", "", ""),
        ("https://huggingface.co/org/repo/tree/main", "huggingface", "org/repo", "", ""),
        ("hf.co/org/repo:Q4_0", "huggingface", "org/repo", "", "Q4_0"),
        ("https://www.modelscope.cn/models/org/repo/summary", "modelscope", "org/repo", "", ""),
    ],
)
def test_a_hub_name_says_which_hub_repository_revision_and_quantisation(
    text: str, kind: str, repo: str, revision: str, quant: str
) -> None:
    name = parse_name(text)
    assert (kind, repo, revision, quant) == (name.kind, name.repo, name.revision, name.quant)


@pytest.mark.parametrize("text", ["qwen3:0.6b", "smollm2", "  Qwen2.5-Coder:1.5B "])
def test_a_name_without_a_slash_is_the_catalogues(text: str) -> None:
    assert parse_name(text).kind == "catalogue"


@pytest.mark.parametrize(
    "text", ["./model", "../up/model.gguf", "/abs/model", "~/model", "model.gguf", "folder/", "."]
)
def test_what_is_written_as_a_path_is_a_path_whether_it_exists_or_not(text: str) -> None:
    assert parse_name(text).kind == "path"


def test_what_exists_here_is_a_path_before_it_is_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "repo").mkdir(parents=True)
    (tmp_path / "mymodel").mkdir()
    assert parse_name("org/repo").kind == "path"
    assert parse_name("mymodel").kind == "path"
    assert parse_name("org/other").kind == "huggingface"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "x" * 600,
        "org/../../etc",
        "org/repo/../../x",
        "org/re\\po",
        "a/b/c",
        "org/repo@../../x",
        "org/--repo",
        "or\ng/repo",
        "org/repo\x00",
        "modelscope:../x",
        "org/repo:../../q",
        "https://example.com/org/repo",
    ],
)
def test_a_name_that_could_leave_its_folder_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_name(text)


def test_the_folder_of_a_name_is_one_safe_component_and_the_same_in_any_case() -> None:
    names = ["Qwen/Qwen3-0.6B", "org/repo@refs/pr/1:Q4_K_M", "modelscope:Org/Repo", "qwen3:0.6b"]
    folders = [parse_name(name).folder for name in names]
    assert folders == [parse_name(name.lower()).folder for name in names]
    assert len(set(folders)) == len(names)
    assert not any(set(folder) & set('/\\:*?"<>|') or folder.startswith(".") for folder in folders)


@pytest.mark.parametrize(
    ("text", "kind", "repo", "quant", "revision"),
    [
        ("org/repo/m-Q4_K_M.gguf", "huggingface", "org/repo", "m-Q4_K_M.gguf", ""),
        ("org/repo/Q8_0/m-Q8_0.gguf", "huggingface", "org/repo", "m-Q8_0.gguf", ""),
        ("hf.co/org/repo/m.gguf", "huggingface", "org/repo", "m.gguf", ""),
        (
            "https://huggingface.co/org/repo/resolve/main/m.gguf?download=true",
            "huggingface",
            "org/repo",
            "m.gguf",
            "",
        ),
        ("https://hf.co/org/repo/blob/v2/Q4/m.gguf", "huggingface", "org/repo", "m.gguf", "v2"),
        (
            "https://modelscope.cn/models/org/repo/resolve/master/m.gguf",
            "modelscope",
            "org/repo",
            "m.gguf",
            "",
        ),
    ],
)
def test_a_file_on_a_hub_is_named_by_its_place_or_its_address(
    text: str, kind: str, repo: str, quant: str, revision: str
) -> None:
    name = parse_name(text)
    assert (name.kind, name.repo, name.quant, name.revision) == (kind, repo, quant, revision)


@pytest.mark.parametrize("text", ["./org/repo/m.gguf", "/org/repo/m.gguf", "m.gguf", "a/m.gguf"])
def test_what_is_written_as_a_path_is_none_of_a_hubs_files(text: str) -> None:
    assert parse_name(text).kind == "path"


def test_a_file_that_is_here_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "repo").mkdir(parents=True)
    (tmp_path / "org" / "repo" / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert parse_name("org/repo/m.gguf").kind == "path"
