from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_hub import QUICK, FakeHub, Fault

from dure import hub
from dure.errors import DownloadError, InvalidRequestError, ModelNotFoundError


def test_a_path_is_resolved_to_itself(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    assert file == hub.resolve(str(file)).path
    assert tmp_path == hub.resolve(str(tmp_path)).path


@pytest.mark.parametrize("name", ["./" + "a" * 300, "./b/" + "é" * 150, "/" + "c" * 256])
def test_a_path_longer_than_paths_may_be_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        hub.resolve(name)


def test_a_path_that_is_not_there_suggests_its_neighbours(home: Path, tmp_path: Path) -> None:
    (tmp_path / "qwen3-0.6b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="no file or folder") as caught:
        hub.resolve(str(tmp_path / "qwen3-06b.gguf"))
    assert "qwen3-0.6b.gguf" in caught.value.hint


def test_paths_are_neither_pulled_nor_removed(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")
    for act in (hub.pull, hub.remove):
        with pytest.raises(InvalidRequestError):
            act(str(file))
    assert file.read_bytes() == b"GGUF"


def test_nothing_here_is_an_empty_list_and_makes_no_folder(home: Path) -> None:
    assert hub.local_models() == []
    assert not home.exists()


def test_a_removed_model_is_gone_and_its_bytes_are_told(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    server.huggingface["a/b"] = {"m-Q4_0.gguf": noise(100_000)}
    path = hub.pull("a/b", patience=QUICK).path
    assert hub.remove("A/B") >= 100_000
    assert not path.exists()
    assert hub.local_models() == []
    with pytest.raises(ModelNotFoundError):
        hub.remove("a/b")


def test_removing_clears_a_pull_that_broke_off(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    server.huggingface["a/b"] = {"m-Q4_0.gguf": noise(100_000)}
    server.faults["m-Q4_0.gguf"] = [Fault(cut_after=60_000), *[Fault(cut_after=0)] * 3]
    with pytest.raises(DownloadError):
        hub.pull("a/b", patience=QUICK)
    assert hub.remove("a/b") >= 60_000
    assert not list(home.rglob("*.part"))


def test_a_model_with_a_file_missing_or_short_is_not_here(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    data = noise(100_000)
    server.huggingface["a/b"] = {"m-Q4_0.gguf": data}
    path = hub.pull("a/b", patience=QUICK).path
    path.write_bytes(data[:50_000])
    assert hub.local_models() == []
    assert data == hub.pull("a/b", patience=QUICK).path.read_bytes()
    (path.parent / "dure.json").write_text("{broken")
    assert hub.local_models() == []
    assert data == hub.resolve("a/b", patience=QUICK).path.read_bytes()


def test_a_home_that_cannot_be_written_to_is_said_to_be(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("DURE_HOME", str(blocked))
    with pytest.raises(DownloadError, match="Cannot make the folder") as caught:
        hub.pull("a/b", patience=QUICK)
    assert "DURE_HOME" in caught.value.hint


def test_a_local_only_lookup_asks_nobody(server: FakeHub) -> None:
    with pytest.raises(ModelNotFoundError, match="not on this machine") as caught:
        hub.resolve("a/b", allow_download=False)
    assert "dure pull a/b" in caught.value.hint
    assert server.asked == []


def _cached(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """A repository as Hugging Face's own tools leave it, links and all."""
    repository = tmp_path / "huggingface" / "hub" / "models--Org--Model"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    (repository / "blobs").mkdir()
    for name, data in files.items():
        (repository / "blobs" / name).write_bytes(data)
        (snapshot / name).symlink_to(repository / "blobs" / name)
    return snapshot


def test_what_the_hubs_own_tools_downloaded_is_used_where_it_lies(
    home: Path, tmp_path: Path, server: FakeHub
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x" * 100}
    snapshot = _cached(tmp_path, files)
    with pytest.raises(ModelNotFoundError):  # a tokenizer is missing
        hub.resolve("org/model", allow_download=False)
    (snapshot / "tokenizer.json").write_bytes(b"{}")
    assert snapshot == hub.resolve("org/model").path
    assert server.asked == []
    with pytest.raises(ModelNotFoundError, match="is kept by Hugging Face"):
        hub.remove("org/model")
    assert (snapshot / "model.safetensors").exists()


def test_a_cached_repository_with_a_shard_missing_is_not_used(
    home: Path, tmp_path: Path, server: FakeHub
) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    files["model-00001-of-00002.safetensors"] = b"x"
    snapshot = _cached(
        tmp_path, {**files, "model.safetensors.index.json": json.dumps(index).encode()}
    )
    with pytest.raises(ModelNotFoundError):
        hub.resolve("Org/Model", allow_download=False)
    (snapshot / "model-2.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelNotFoundError):
        hub.resolve("Org/Model", allow_download=False)


def test_a_cached_gguf_repository_opens_the_file_asked_for(
    home: Path, tmp_path: Path, server: FakeHub
) -> None:
    snapshot = _cached(tmp_path, {"m-Q4_0.gguf": b"a", "m-Q8_0.gguf": b"b"})
    assert snapshot / "m-Q8_0.gguf" == hub.resolve("Org/Model:q8_0").path


def test_models_are_readable_by_who_may_read_the_home(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    server.huggingface["a/b"] = {"m-Q4_0.gguf": noise(1000)}
    mode = hub.pull("a/b", patience=QUICK).path.stat().st_mode
    assert mode & stat.S_IRUSR and not mode & stat.S_IXUSR


def test_another_quantisation_in_the_hubs_own_cache_is_named(
    home: Path, tmp_path: Path, server: FakeHub
) -> None:
    _cached(tmp_path, {"m-Q4_K_M.gguf": b"GGUF", "m-Q8_0.gguf": b"GGUF"})
    with pytest.raises(ModelNotFoundError) as caught:
        hub.resolve("Org/Model:Q6_K", allow_download=False)
    assert "Org/Model is here as Org/Model:Q4_K_M or Org/Model:Q8_0" in caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ["a"]), ("name", None), ("license", 5), ("files", ["a.gguf"]), ("files", 3)],
)
def test_a_record_with_a_field_of_another_type_is_no_model(
    home: Path, field: str, value: object
) -> None:
    folder = home / "models" / "a--b"
    folder.mkdir(parents=True)
    (folder / "a.gguf").write_bytes(b"GGUF")
    record: dict[str, object] = {"name": "a:b", "source": "here", "files": {"a.gguf": 4}}
    (folder / "dure.json").write_text(json.dumps(record))
    assert ["a:b"] == [model.name for model in hub.local_models()]
    (folder / "dure.json").write_text(json.dumps({**record, field: value}))
    assert hub.local_models() == []


def test_a_record_nested_without_an_end_is_no_model(home: Path) -> None:
    folder = home / "models" / "a--b"
    folder.mkdir(parents=True)
    (folder / "dure.json").write_text("[" * 100_000)
    assert hub.local_models() == []
