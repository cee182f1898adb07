"""dure create and cp: presets from options and Modelfiles, shown, listed and removed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from outcome import Dure

from dure import hub

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a model, in the current folder; dure's home is empty."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "base.gguf"
    path.write_bytes(EMPTY_GGUF)
    return path


def test_a_preset_is_made_from_options(dure_command: Dure, base: Path) -> None:
    done = dure_command(
        *("create", "mario", "--from", "./base.gguf", "--system", "Be Mario."),
        *("--parameter", "temperature=0.3", "--parameter", "num_ctx=512"),
    )
    assert (done.code, done.out) == (0, "")
    assert done.err == f"mario is created, of {base}: dure run mario\n"
    settings = hub.resolve("mario").settings
    assert (settings.system, settings.context) == ("Be Mario.", 512)
    shown = dure_command("show", "mario", "--modelfile").out
    assert shown == (
        f'FROM {base}\nPARAMETER temperature 0.3\nPARAMETER num_ctx 512\nSYSTEM """Be Mario."""\n'
    )


def test_the_modelfile_of_the_folder_is_read_and_options_win(
    dure_command: Dure, base: Path
) -> None:
    Path("Modelfile").write_text("FROM ./base.gguf\nSYSTEM One\nPARAMETER mirostat 2\n")
    done = dure_command("create", "mario", "--system", "Two")
    assert done.err.startswith("(Ollama's parameter mirostat is not used)\n")
    assert hub.resolve("mario").settings.system == "Two"
    assert "mario is replaced" in dure_command("create", "mario", "-f", "Modelfile").err
    assert hub.resolve("mario").settings.system == "One"


def test_a_model_gets_another_name_is_listed_and_deleted(dure_command: Dure, base: Path) -> None:
    assert dure_command("cp", "./base.gguf", "mine").code == 0
    assert dure_command("cp", "mine", "yours").err == f"yours is a preset of {base}.\n"
    rows = {row["name"]: row for row in json.loads(dure_command("list", "--json").out)}
    assert rows["mine"]["source"] == f"a preset of {base}"
    assert (rows["mine"]["size_bytes"], rows["mine"]["folder"]) == (
        len(EMPTY_GGUF),
        str(base.parent),
    )
    done = dure_command("rm", "mine", "--yes")
    assert done.err == f"mine is deleted; {base}, which it was made of, is kept.\n"
    assert base.exists()
    base.unlink()
    [row] = json.loads(dure_command("list", "--json").out)
    assert (row["name"], row["here"]) == ("yours", False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "There is no Modelfile here, and no --from."),
        (("-f", "none"), "none cannot be read"),
        (("--from", "./base.gguf", "--parameter", "top_k"), "has no value"),
        (("--from", "./base.gguf", "--parameter", "temperature=-1"), "temperature must be"),
        (("--from", "./base.gguf", "--template", "bad.jinja"), "The template writes no prompt"),
        (("--from", "./base.gguf", "--template", "text"), "leaves out what the user says"),
        (("--from", "./text"), "text is not a model file: it looks like a text file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(
    dure_command: Dure, arguments: tuple[str, ...], said: str
) -> None:
    Path("bad.jinja").write_text("{% for %}")
    Path("text").write_text("root:x:0:0")
    done = dure_command("create", "mario", *arguments)
    assert done.code == 1
    assert said in done.err
    assert hub.preset_of("mario") is None


def test_only_a_model_has_a_modelfile(dure_command: Dure) -> None:
    done = dure_command("show", "nothing-of-that-name", "--modelfile")
    assert (done.code, done.out) == (1, "")
    assert "No model is called 'nothing-of-that-name'" in done.err


def test_what_is_no_model_gets_no_other_name(dure_command: Dure) -> None:
    Path("text").write_text("root:x:0:0")
    done = dure_command("cp", "./text", "mine")
    assert (done.code, hub.preset_of("mine")) == (1, None)
    assert "is not a model file" in done.err


def test_a_preset_of_a_model_that_is_not_here_is_listed_with_what_is_known_of_it(
    dure_command: Dure, base: Path
) -> None:
    assert dure_command("cp", "qwen2.5-coder:0.5b", "known").code == 0
    assert dure_command("cp", "org/of-nobody", "unknown").code == 0
    lines = dure_command("list").out.splitlines()
    known, unknown = (next(x for x in lines if x.startswith(name)) for name in ("known", "unk"))
    assert "491 MB" in known
    assert "bytes" not in unknown
