"""bench/speculation.py and rows.py: what is asked, what is compared, and what can be expected."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"
SYMBOLS = list(range(100, 140))


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """A file of bench/ as a module."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("kind", ["symbols", "motifs"])
@pytest.mark.parametrize("size", [600, 4001])
def test_a_hostile_prompt_has_its_size_and_a_round_changes_its_end_alone(
    script: Callable[[str], ModuleType], kind: str, size: int
) -> None:
    work = script("speculation_work")
    first, second = (work.drawn_prompt(kind, SYMBOLS, size, turn) for turn in (0, 1))
    assert len(first) == len(second) == size
    assert first != second
    end = max(work.TAIL, work.MOTIF + 2)
    assert first[:-end] == second[:-end]


def test_motifs_repeat_and_the_token_behind_them_changes(
    script: Callable[[str], ModuleType],
) -> None:
    work = script("speculation_work")
    ids = work.drawn_prompt("motifs", SYMBOLS, 2000, 0)
    length = work.MOTIF + 1
    parts = [tuple(ids[at : at + length]) for at in range(0, 1900, length)]
    assert len({part[:-1] for part in parts}) == 1
    assert len({part[-1] for part in parts}) > 20


def test_the_file_to_be_changed_has_150_lines_and_the_line_once(
    script: Callable[[str], ModuleType],
) -> None:
    work = script("speculation_work")
    assert 140 <= len(work.FILE.splitlines()) <= 160
    assert work.FILE.count("owed_cents: int = 0\n") == 1
    compile(work.FILE, "speculation_file.txt", "exec")


def test_a_difference_is_found_by_answer_and_token(script: Callable[[str], ModuleType]) -> None:
    difference = script("speculation").difference
    one = {"answers": [[1, 2, 3], [4, 5]]}
    assert difference(one, {"answers": [[1, 2, 3], [4, 5]]}) == ""
    assert difference(one, {"answers": [[1, 2, 3], [4, 6]]}).startswith("answer 1 differs")
    assert "3 tokens, then 2" in difference(one, {"answers": [[1, 2], [4, 5]]})


def test_slow_settings_of_the_peer_are_left_out_but_never_none(
    script: Callable[[str], ModuleType],
) -> None:
    speeds = {"dure off": 1.0, "none": 5.0, "ngram-mod 8/1-16": 10.0, "ngram-simple 12/48": 8.0}
    runs = {name: [{"decode_tps": speed}] for name, speed in speeds.items()}
    kept = script("speculation").contenders(list(speeds), runs)
    assert kept == ["dure off", "none", "ngram-mod 8/1-16"]


def test_expected_speed_ups_are_those_of_the_formula(script: Callable[[str], ModuleType]) -> None:
    expected = script("rows").expected
    flat, steep = {1: 1.0, 8: 1.0}, {1: 1.0, 8: 8.0}
    assert expected(1.0, flat, 0.0) == (8.0, 7)
    assert expected(1.0, steep, 0.1) == (1.0, 0)
    assert expected(0.0, flat, 0.1) == (1.0, 0)
    speed_up, drafts = expected(0.5, {1: 1.0, 2: 1.25, 3: 9.0}, 0.05)
    assert (speed_up, drafts) == (pytest.approx(1.5 / 1.3), 1)
