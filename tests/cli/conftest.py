"""The command run in this process, with a fake model behind it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_llm import FakeLLM

import dure.llm
from dure.cli import main


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, its output, and the models it made."""

    code: int
    out: str
    err: str
    llms: list[FakeLLM]


Dure = Callable[..., Outcome]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dure.__file__).parent.parent)}
"""For a Python in a process of its own, which is to find the same dure."""


@pytest.fixture
def dure_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dure:
    """A function of arguments, and of `stdin` (bytes; None for a terminal), to an Outcome."""
    monkeypatch.setattr(dure.llm, "LLM", FakeLLM)
    monkeypatch.setattr(FakeLLM, "made", [])

    def run(*arguments: str, stdin: bytes | None = b"") -> Outcome:
        stream = Terminal() if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        code = exit_.value.code
        captured = capsys.readouterr()
        return Outcome(
            code if isinstance(code, int) else 0, captured.out, captured.err, FakeLLM.made
        )

    return run
