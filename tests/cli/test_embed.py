"""dure embed: texts, files or lines in, a JSON object a line out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dure.cli import embed, run
from dure.pooling.config import PoolingConfig


class Embedder:
    """Stands for an LLM whose vectors are the length of a text, and of its prompt."""

    name, memory = "fake", None

    def __init__(self, pooling: PoolingConfig) -> None:
        self.pooling = pooling
        self.asked: list[dict[str, Any]] = []

    def embed(self, texts: list[str], **options: Any) -> list[Any]:
        self.asked.append(options)
        sizes = [np.array([len(text), 0.5], np.float32) for text in texts]
        return [SimpleNamespace(vector=each, prompt_tokens=int(each[0])) for each in sizes]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Embedder:
    made = Embedder(PoolingConfig(source="this test"))
    monkeypatch.setattr(run, "load", lambda *_, **__: made)
    monkeypatch.setattr(embed.console, "tell_memory", lambda *_: None)
    return made


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_and_files_are_embedded_in_order(
    llm: Embedder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("a\nb")
    embed.command("fake", ["one", ""], file=[tmp_path / "text"], prompt_name="query", dimensions=2)
    assert lines(capsys) == [
        {"index": 0, "tokens": 3, "embedding": [3.0, 0.5]},
        {"index": 1, "tokens": 0, "embedding": [0.0, 0.5]},
        {"index": 2, "tokens": 3, "embedding": [3.0, 0.5]},
    ]
    [asked] = llm.asked
    assert (asked["prompt_name"], asked["dimensions"], asked["truncate"]) == ("query", 2, False)


def test_lines_of_standard_input_are_texts_some_at_a_time(
    llm: Embedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = io.TextIOWrapper(io.BytesIO("두\n\nab\r\n".encode() + b"x\n" * 256))
    monkeypatch.setattr(sys, "stdin", piped)
    embed.command("fake")
    assert [each["tokens"] for each in lines(capsys)] == [1, 2, *[1] * 256]
    assert len(llm.asked) == 2


def test_long_texts_are_no_more_at_once_than_one_request_may_have(
    llm: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    embed.command("fake", ["a" * 100_000] * 5 + ["b"], prompt="Find: ")
    assert [each["index"] for each in lines(capsys)] == [0, 1, 2, 3, 4, 5]
    assert len(llm.asked) == 3


def test_what_no_file_says_is_said_on_stderr(
    llm: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.pooling = PoolingConfig()
    embed.command("fake", ["one"])
    assert "does not say how it is pooled" in capsys.readouterr().err


def test_a_line_that_is_no_text_is_named(llm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xff\n")))
    with pytest.raises(ValueError, match="Line 2 of standard input is not UTF-8"):
        embed.command("fake")
    assert llm.asked == []
