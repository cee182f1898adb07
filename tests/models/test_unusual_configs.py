"""Valid but unusual configs of the families of 2026, as transformers saves them.

Every config's logits are transformers' (family_grid.py says of which tokens, where a choice of
experts is a tie), in one pass and in pieces beside others; those of
tiny_configs/unusual.py and unusual_qwen.py, of which some are tried here, also in the engine.
`tests/family_grid.py` runs all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from family_grid import GRID, check, held, sample, share, versions
from tiny_configs import gemma, kda, v3_like
from tiny_models import PagedRun

TOLERANCE = 1e-4
UNUSUAL = {**v3_like.UNUSUAL, **gemma.UNUSUAL, **kda.UNUSUAL}
# Families that have a few in the default tests, too, and three of four configs of the others.
LONG = {*gemma.UNUSUAL, *kda.UNUSUAL, *v3_like.UNUSUAL} - {*[*v3_like.UNUSUAL][::4]}
TOGETHER = [(0, 20), (17, 1), (23, 0)]
CASES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in UNUSUAL]


@contextmanager
def told_with_versions() -> Iterator[None]:
    """Let a failure say what was compared."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error} ({versions()})") from None


@pytest.mark.parametrize("name", CASES)
def test_an_unusual_config_gives_transformers_logits(name: str, tmp_path: Path) -> None:
    with told_with_versions():
        found = held(name, tmp_path, 40, 21, tolerance=TOLERANCE)
    in_pieces = PagedRun(found.model, found.sequences, seed=1).finish(TOGETHER)
    for whole, pieces in zip(found.logits, in_pieces, strict=True):
        assert np.array_equal(whole, pieces)


def test_every_family_has_twelve_configs() -> None:
    count = Counter(family for family, _ in GRID.values())
    assert not {family: number for family, number in count.items() if number < 12}


def test_shares_of_the_grid_are_the_whole_of_it_each_config_once() -> None:
    shares = [share([*GRID], f"{number}/7") for number in range(1, 8)]
    assert sorted(name for each in shares for name in each) == sorted(GRID)
    for wrong in ("0/7", "8/7", "2", "a/b", ""):
        with pytest.raises(ValueError, match="such as 2/4"):
            share([*GRID], wrong)


@pytest.mark.long
@pytest.mark.parametrize("name", sample())
def test_a_config_of_the_grid_gives_transformers_logits(name: str, tmp_path: Path) -> None:
    """At once; and the same bits in pieces, beside others, from a prefix, after a preemption."""
    with told_with_versions():
        check(name, tmp_path)
