"""A small part of what run.py does, always the same: damaged inputs are read, or refused in words.

The inputs by the hundred thousand are for `python tests/fuzz/run.py`.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run
import worker
from reader import Reader

from dure.errors import DureError

worker.find_modules()

from readers import READERS  # noqa: E402 - the helpers of other folders are found now

COUNT = 30


@pytest.mark.parametrize("name", READERS)
def test_damaged_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path, small=True)
    try:
        for number in range(COUNT):
            end, _, story = worker.one(reader, name, 18, number, watched=False)
            assert end != "fault", f"number {number}: {story}"
    finally:
        reader.close()


class Mixed(Reader):
    """Accepts, refuses, and fails."""

    name = "mixed"

    def draw(self, rng: random.Random) -> int:
        return rng.randrange(3)

    def read(self, drawn: Any) -> bool:
        if drawn == 1:
            raise DureError("No.")
        if drawn == 2:
            raise KeyError(drawn)
        return True


def test_a_traceback_is_a_fault_and_an_error_of_ours_is_none(tmp_path: Path) -> None:
    reader = Mixed(tmp_path)
    expected = {0: "accepted", 1: "refused", 2: "fault"}
    seen = set()
    for number in range(30):
        drawn = reader.draw(worker.rng_of(1, "mixed", number))
        assert worker.one(reader, "mixed", 1, number, watched=False)[0] == expected[drawn]
        seen.add(drawn)
    assert seen == {0, 1, 2}


def test_a_child_that_dies_is_told_from_one_that_ends(tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    progress.write_bytes(worker.PROGRESS.pack(3, 0, 0))
    for code, said in (("pass", ""), ("import os; os.kill(os.getpid(), 9)", "died: -9")):
        child = subprocess.Popen([sys.executable, "-c", code])
        assert run.watch(child, progress) == said


def test_an_input_is_the_same_whenever_it_is_drawn(tmp_path: Path) -> None:
    reader = READERS["hubs"](tmp_path, small=True)
    once, again = (reader.draw(worker.rng_of(7, "hubs", 5)) for _ in range(2))
    assert once == again
