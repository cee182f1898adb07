"""dure list: what is here and what could be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dure.hub import load_catalogue
from dure.hub.store import Record, land, models_folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))


def place(name: str, size: int) -> None:
    """A model that is here, without the pulling."""
    partial = models_folder() / ".partial" / "x"
    partial.mkdir(parents=True)
    (partial / "m.gguf").write_bytes(bytes(size))
    record = Record(name, "PyPI", "1", "Apache-2.0", pulled_at="2026-01-02T03:04:05+00:00")
    folder = models_folder() / ("catalogue--" + name.replace(":", "--"))
    land(partial, folder, Record(**{**vars(record), "files": {"m.gguf": size}}))


def test_an_empty_list_prints_nothing_and_says_how_to_begin(dure_command) -> None:
    done = dure_command("list")
    assert (done.code, done.out) == (0, "")
    assert f"dure pull {load_catalogue().default}" in done.err
    assert json.loads(dure_command("list", "--json").out) == []


def test_models_here_are_a_table_with_a_line_each(dure_command) -> None:
    place("smollm2:135m", 98_000_000 // 1000)
    place("qwen3:0.6b", 5000)
    head, first, second = dure_command("list").out.splitlines()
    assert head.split() == ["NAME", "SIZE", "HERE", "FITS", "FROM", "LICENCE", "FOLDER"]
    here = ["qwen3:0.6b", "5.0", "kB", "2026-01-02", "PyPI", "Apache-2.0"]
    assert first.split() == [*here, str(models_folder())]
    assert second.startswith("smollm2:135m")


def test_all_adds_the_rest_of_the_catalogue_and_marks_the_default(dure_command) -> None:
    place("smollm2:135m", 1000)
    rows = json.loads(dure_command("list", "--all", "--json").out)
    assert {row["name"] for row in rows} == {e.name for e in load_catalogue().entries}
    assert [row["name"] for row in rows if row["here"]] == ["smollm2:135m"]
    assert [row["name"] for row in rows if row["default"]] == [load_catalogue().default]
    assert "(default)" in dure_command("list", "--all").out


def test_output_off_a_terminal_has_no_colour(dure_command) -> None:
    assert "\x1b" not in dure_command("list", "--all").out


def test_of_what_is_not_here_it_says_whether_it_fits(
    dure_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.machine.memory_available", lambda: 16_000_000_000)
    rows = {row["name"]: row for row in json.loads(dure_command("list", "--all", "--json").out)}
    assert rows["qwen2.5:7b"]["fits"] == "yes"
    assert rows["llama3.3:70b"]["fits"] == "no"
    assert rows["qwen3:30b-a3b"]["fits"] == "no, disk"
    assert not rows["llama3.3:70b"]["size_is_known"]
    assert "about 43 GB" in dure_command("list", "--all").out
    assert "about 43 GB" in dure_command("show", "llama3.3:70b").out
