"""The command run in this process, with a fake model behind it."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from fake_llm import FakeLLM
from outcome import Dure, Outcome, Talk, Terminal

import dure.llm
from dure.cli import main
from dure.cli.chat import Chat
from dure.engine.params import SamplingParams
from dure.hub import server_client


@pytest.fixture
def dure_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dure:
    """A function of arguments, and of `stdin` (bytes; None for a terminal), to an Outcome."""
    monkeypatch.setattr(dure.llm, "LLM", FakeLLM)
    monkeypatch.setattr(FakeLLM, "made", [])

    def run(*arguments: str, stdin: bytes | None = b"") -> Outcome:
        stream = Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(server_client, "DEFAULT_URL", "http://127.0.0.1:9")  # nobody listens
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        code = exit_.value.code
        captured = capsys.readouterr()
        return Outcome(
            code if isinstance(code, int) else 0, captured.out, captured.err, FakeLLM.made
        )

    return run


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A function that chats the given lines with a fake model, which it returns."""

    def run(*lines: str | type[BaseException], model: str = "fake", **options: Any) -> FakeLLM:
        monkeypatch.setattr(FakeLLM, "made", [])
        rest = iter([*lines, EOFError])

        def read(_prompt: str, text: str = "") -> str:
            line = next(rest)
            if isinstance(line, str) and text:
                line = line.replace("…", text)  # what one edits stands in the line
            if isinstance(line, str):
                return line
            raise line

        llm = FakeLLM(model)
        params = options.pop("params", SamplingParams())
        Chat(llm, params, read=read, **options).run()  # type: ignore[arg-type]
        assert list(rest) in ([], [EOFError])  # every line was read
        return llm

    return run
