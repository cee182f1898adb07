"""What a command leaves behind, and how to start one in a process of its own."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fake_llm import FakeLLM

import dure


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
Talk = Callable[..., FakeLLM]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dure.__file__).parent.parent)}
"""For a Python in a process of its own, which is to find the same dure."""
