"""Valid but unusual configs of the families of 2026, as transformers saves them.

Every config's logits are transformers', in one pass and in pieces beside others; those of
tiny_configs/unusual.py and unusual_qwen.py, of which some are tried here, also in the engine.
`tests/family_grid.py` runs all of them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_grid import GRID, check, sample, share, versions
from tiny_configs import gemma, kda, v3_like
from tiny_models import (
    STAND_INS,
    PagedRun,
    furthest,
    loaded,
    oracle_logits,
    oracle_of,
    random_sequences,
    reopened,
    saved_as,
)

TOLERANCE = 1e-4
UNUSUAL = {**v3_like.UNUSUAL, **gemma.UNUSUAL, **kda.UNUSUAL}
# Families that have a few in the default tests, too, and every second config of the others.
LONG = {**gemma.UNUSUAL, **kda.UNUSUAL, **dict.fromkeys([*v3_like.UNUSUAL][1::2])}
SEQUENCES = random_sequences(40, 21, seed=5)
TOGETHER = [(0, 20), (17, 1), (23, 0)]

# How a folder is saved: as makers name and stack tensors, as memory has them, in halves. Which one
# a config gets is decided by its name alone, so that a new config changes no other's.
SAVES: tuple[tuple[dict[str, Any], str | None], ...] = (
    ({}, None),
    ({"save_original_format": False}, None),
    ({}, "bfloat16"),
    ({}, "float16"),
)
CASES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in UNUSUAL]


@pytest.mark.parametrize("name", CASES)
def test_an_unusual_config_gives_transformers_logits(name: str, tmp_path: Path) -> None:
    family, settings = UNUSUAL[name]
    options, dtype = SAVES[zlib.crc32(name.encode()) % len(SAVES)]
    if family in STAND_INS:  # which transformers could not read again
        dtype = None
    model = oracle_of(family, settings)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    saved_as(family, model, tmp_path, **options)
    if dtype is not None:
        model = reopened(tmp_path)
    ours = loaded(tmp_path)
    expected = [oracle_logits(model, tokens) for tokens in SEQUENCES]
    at_once = PagedRun(ours, SEQUENCES).finish([tuple(len(tokens) for tokens in SEQUENCES)])
    in_pieces = PagedRun(ours, SEQUENCES, seed=1).finish(TOGETHER)
    for theirs, whole, pieces in zip(expected, at_once, in_pieces, strict=True):
        assert furthest(theirs, whole) < TOLERANCE, f"transformers {transformers.__version__}"
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
    try:
        check(name, tmp_path)
    except AssertionError as error:
        raise AssertionError(f"{error} ({versions()})") from None
