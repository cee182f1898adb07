"""dure rm: deletes what was pulled, and nothing else, and asks first."""

from __future__ import annotations

from pathlib import Path

import pytest

from dure.hub import local_models
from dure.hub.store import Record, land, models_folder


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))
    partial = models_folder() / ".partial" / "x"
    partial.mkdir(parents=True)
    (partial / "m.gguf").write_bytes(bytes(5000))
    folder = models_folder() / "catalogue--smollm2--135m"
    land(partial, folder, Record("smollm2:135m", "PyPI", files={"m.gguf": 5000}))
    return folder / "m.gguf"


def test_yes_deletes_without_asking_and_says_what_is_free_again(model, dure_command) -> None:
    done = dure_command("rm", "SmolLM2:135m", "--yes")
    assert (done.code, done.out) == (0, "")
    assert "5.1 kB freed" in done.err
    assert not model.exists()
    assert local_models() == []


def test_another_name_of_a_model_deletes_it_as_it_pulls_it(model, dure_command) -> None:
    kept = models_folder() / "catalogue--qwen3--30b-a3b"
    model.parent.rename(kept)
    assert dure_command("rm", "qwen3:30b", "--yes").code == 0
    assert not kept.exists()


def test_without_a_terminal_to_ask_on_nothing_is_deleted(model, dure_command) -> None:
    done = dure_command("rm", "smollm2:135m")
    assert done.code == 1
    assert "dure rm smollm2:135m --yes" in done.err
    assert model.exists()


def test_a_model_that_is_not_here_fails_and_suggests(model, dure_command) -> None:
    done = dure_command("rm", "smollm2:136m", "--yes")
    assert done.code == 1
    assert "did you mean smollm2:135m?" in done.err
    assert model.exists()


def test_a_file_of_the_users_own_is_never_deleted(model, dure_command) -> None:
    done = dure_command("rm", str(model), "--yes")
    assert done.code == 1
    assert model.exists()
