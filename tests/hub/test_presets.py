"""Presets: what a Modelfile says becomes settings over a model's own, and nothing is run."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from dure import hub
from dure.errors import InvalidRequestError, ModelFileError, ModelNotFoundError
from dure.hub.modelfile import modelfile_of, read_modelfile

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
MODELFILE = '''# a comment
FROM ./base.gguf
PARAMETER temperature 0.3
parameter num_ctx 2048
PARAMETER stop "<|end|>"
PARAMETER stop END
PARAMETER num_gpu 1
PARAMETER mirostat 1
SYSTEM """You are Mario.

Be brief."""
MESSAGE user "Who are you?"
MESSAGE assistant """It's
me."""
LICENSE MIT
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with base.gguf and Modelfile; dure's home is elsewhere."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home"))
    (tmp_path / "base.gguf").write_bytes(EMPTY_GGUF)
    (tmp_path / "Modelfile").write_text(MODELFILE, encoding="utf-8")
    return tmp_path


def test_a_modelfile_becomes_a_preset(folder: Path) -> None:
    preset = hub.create(read_modelfile(folder / "Modelfile").preset("mario"))
    found = hub.resolve("Mario:latest")
    assert (found.name, found.path) == ("mario", folder / "base.gguf")
    settings = found.settings
    assert settings.sampling == {"temperature": 0.3, "stop": ["<|end|>", "END"]}
    assert (settings.context, settings.system) == (2048, "You are Mario.\n\nBe brief.")
    assert settings.messages == (
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "It's\nme."},
    )
    assert settings.notes == (f"mario is a preset of {folder / 'base.gguf'}",)
    assert preset.settings.notes == ("Ollama's parameter mirostat is not used",)
    [listed] = [model for model in hub.local_models() if model.name == "mario"]
    assert (listed.path, listed.size_bytes, listed.license) == (
        folder / "base.gguf",
        len(EMPTY_GGUF),
        "MIT",
    )


def test_a_preset_written_as_a_modelfile_is_the_same_again(folder: Path) -> None:
    first = hub.create(read_modelfile(folder / "Modelfile").preset("mario"))
    again = folder / "again"
    again.write_text(modelfile_of(first), encoding="utf-8")
    second = read_modelfile(again).preset("mario")
    assert hub.create(second) == second
    assert hub.resolve("mario").settings.sampling == first.settings.sampling
    assert second.settings.messages == first.settings.messages
    assert (second.base, second.license) == (first.base, "MIT")


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ('"""Say "yes""""', 'Say "yes"'),
        ('You write """docs"""', 'You write """docs"""'),
        ('"two\nlines"', "two\nlines"),
        ('"""a "quoted"\nword""" ', 'a "quoted"\nword'),
        ('"Hi" is what you say', '"Hi" is what you say'),
        ('"a \\"b\\"\\r\\n"', 'a "b"\r\n'),
        ("'single'", "'single'"),
        ('"in \\boxed{} of C:\\new"', "in \\boxed{} of C:\\new"),
        ('"say \\"yes\\" twice"', 'say \\"yes\\" twice'),
        ('"""two spaces  \nand\ta line  """', "two spaces  \nand\ta line  "),
        ('"open  \nand shut" ', "open  \nand shut"),
        ("bare words  ", "bare words"),
    ],
)
def test_quotes_are_read_as_ollama_reads_them_and_written_back(
    folder: Path, text: str, system: str
) -> None:
    file = folder / "quotes"
    file.write_text(f"FROM\t./base.gguf\nSYSTEM\t {text}\nMESSAGE  user\t{text}\n", "utf-8")
    preset = read_modelfile(file).preset("mario")
    assert preset.settings.system == system
    assert preset.settings.messages == ({"role": "user", "content": system},)
    file.write_text(modelfile_of(preset), encoding="utf-8")
    assert read_modelfile(file).preset("mario").settings == preset.settings


def test_presets_whose_names_look_alike_are_two(folder: Path) -> None:
    made = read_modelfile(folder / "Modelfile")
    for name in ("a:b", "a--b"):
        made.system = name
        hub.create(made.preset(name))
    assert [hub.resolve(name).settings.system for name in ("a:b", "a--b")] == ["a:b", "a--b"]


def test_a_preset_that_cannot_be_written_leaves_the_former_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read_modelfile(folder / "Modelfile")
    hub.create(made.preset("mario"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    made.system = "new"
    with pytest.raises(InvalidRequestError, match="No space left"):
        hub.create(made.preset("mario"))
    assert [file.name for file in (folder / "home" / "presets").iterdir()] == ["mario.json"]
    assert hub.resolve("mario").settings.system.startswith("You are Mario.")


def test_a_preset_of_a_preset_has_the_settings_of_both(folder: Path) -> None:
    hub.create(read_modelfile(folder / "Modelfile").preset("mario"))
    (folder / "two").write_text("FROM mario\nPARAMETER temperature 1\nSYSTEM Hi", encoding="utf-8")
    made = hub.create(read_modelfile(folder / "two").preset("luigi:v2"))
    assert made.base == str(folder / "base.gguf")
    hub.remove("mario")
    settings = hub.resolve("luigi:v2").settings
    assert settings.sampling == {"temperature": 1.0, "stop": ["<|end|>", "END"]}
    assert (settings.system, settings.context) == ("Hi", 2048)
    assert (folder / "base.gguf").exists()


def test_a_base_that_went_away_is_said_by_the_presets_name(folder: Path) -> None:
    hub.create(read_modelfile(folder / "Modelfile").preset("mario"))
    (folder / "base.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"mario is a preset of .*There is no file"):
        hub.resolve("mario")
    assert [model.name for model in hub.local_models()] == []
    assert [preset.name for preset in hub.all_presets()] == ["mario"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not said which model"),
        ("FROM a\nFROM b", "line 2: There is a FROM already"),
        ("FROM ./base.gguf\nADAPTER x.gguf", "line 2: ADAPTER is not supported"),
        ("FROM ./base.gguf\nSYTEM x", "line 2: SYTEM is no instruction"),
        ("FROM ./base.gguf\nPARAMETER temprature 1", "no parameter 'temprature'"),
        ("FROM ./base.gguf\nPARAMETER top_k many", "'many' is not a value for top_k"),
        ("FROM ./base.gguf\nMESSAGE robot hi", "no role 'robot'"),
        ('FROM ./base.gguf\nSYSTEM """open', "line 2: the text has no end"),
        ('FROM ./base.gguf\nSYSTEM """a""" b', "line 2: something stands behind"),
        ("FROM ./base.gguf\nTEMPLATE {{ .Prompt }}", "a program in Go, which is not run"),
        ("FROM ./none.gguf", "no file or folder"),
        ("FROM", "names no model"),
        ("FROM x\nPARAMETER num_ctx 0", "num_ctx is a number of tokens"),
        ("FROM nothing-of-that-name", "No model is called 'nothing-of-that-name'"),
    ],
)
def test_what_cannot_be_honoured_is_said_with_its_line(folder: Path, text: str, said: str) -> None:
    file = folder / "wrong"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((InvalidRequestError, ModelNotFoundError), match=said):
        hub.create(read_modelfile(file).preset("mario"))
    assert hub.preset_of("mario") is None


def test_templates_in_jinja_are_used_and_known_ones_in_go_have_a_stand_in(folder: Path) -> None:
    jinja = "{% for m in messages %}{{ m.content }}{% endfor %}"
    go = "<|im_start|>user\n{{ .Prompt }}<|im_end|>"
    for name, template in (("a", jinja), ("b", go)):
        (folder / name).write_text(f'FROM ./base.gguf\nTEMPLATE """{template}"""', encoding="utf-8")
        hub.create(read_modelfile(folder / name).preset(name))
    assert hub.resolve("a").settings.template == jinja
    settings = hub.resolve("b").settings
    assert settings.template == ""
    assert "<|im_start|>" in settings.fallback_template
    assert "ChatML" in settings.template_note
    written = modelfile_of(hub.Preset("c", str(folder / "base.gguf"), settings))
    assert f'TEMPLATE """{go}"""' in written
    (folder / "c").write_text(written, encoding="utf-8")
    again = hub.create(read_modelfile(folder / "c").preset("c")).settings
    assert (again.fallback_template, again.go_template) == (settings.fallback_template, go)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("a text", "looks like a text file"),
        ("<!doctype html>", "an HTML page"),
        ("", "it is empty"),
        (None, "has no model in it"),
    ],
)
def test_a_base_that_is_no_model_is_refused(folder: Path, made: str | None, said: str) -> None:
    path = folder / "other"
    if made is None:
        path.mkdir()
    else:
        path.write_text(made)
    with pytest.raises(ModelFileError, match=said):
        hub.create(hub.Preset("mario", str(path)))
    assert hub.preset_of("mario") is None


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x" * 600, "qwen2.5-coder:0.5b"])
def test_a_preset_has_a_name_of_its_own(folder: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        hub.create(read_modelfile(folder / "Modelfile").preset(name))


def test_a_damaged_preset_is_none(folder: Path) -> None:
    hub.create(read_modelfile(folder / "Modelfile").preset("mario"))
    (folder / "home" / "presets" / "mario.json").write_text('{"name": 3}', encoding="utf-8")
    assert hub.preset_of("mario") is None
    assert hub.all_presets() == []
