"""Each script of examples/ runs, and prints what it says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PRINTS = {
    "generate.py": r"\d tokens per second\n.*\d tokens per second\n",
    "chat.py": r"> Name three colours\.\n.+\n> And three animals\?\n.+\n",
    "tools.py": r"^weather\(\{'city': '[^\n]+'unit': '(celsius|fahrenheit)'\}\) -> \{'city': .*\n",
    "json_schema.py": r"^name='.*' legs=\d+ home='(land|water|air)'\n",
    "server.py": r"\w+.*\n",
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


# The slowest, whose APIs have tests of their own.
SLOW = ("tools.py", "server.py")


@pytest.mark.model
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in PRINTS],
)
def test_an_example_runs_and_prints_its_answer(name: str, smollm2: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(smollm2)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,  # not where the sources are
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS[name], done.stdout, re.DOTALL), done.stdout
