"""bench/make_mtp.py: its model goes on in the cycle, and its head is right where the file says."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dure import LLM, SamplingParams
from dure.batch import Batch

BENCH = Path(__file__).parent.parent.parent / "bench"
BLOCKS = 8
COUNT = 200


@pytest.fixture(scope="module")
def make_mtp() -> Iterator[ModuleType]:
    """bench/make_mtp.py as a module."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("make_mtp")
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module", params=[0.3, 0.8])
def made(request: Any, make_mtp: ModuleType, tmp_path_factory: Any) -> tuple[Path, Any]:
    """A small folder, and the cycle that it should go on in."""
    folder = tmp_path_factory.mktemp("made") / "model"
    shapes = make_mtp.Shapes(vocabulary=600, hidden=256, intermediate=512, layers=2)
    return folder, make_mtp.write(folder, shapes, request.param)


def batch(tokens: list[int]) -> Batch:
    """One sequence from position 0, with the logits of all its rows."""
    rows = np.arange(len(tokens), dtype=np.int32)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=rows,
        sequences=np.zeros(len(tokens), np.int32),
        block_tables=np.arange(BLOCKS, dtype=np.int32)[None],
        logit_rows=rows,
    )


def arrays(specs: Any) -> list[np.ndarray]:
    return [spec.storage(BLOCKS, "f16") for spec in specs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_goes_on_in_the_cycle(made: tuple[Path, Any], temperature: float) -> None:
    folder, cycle = made
    params = SamplingParams(max_tokens=COUNT, temperature=temperature, seed=1)
    [completion] = LLM(folder, context=512).generate([[5, 9, 300]], params)
    assert list(completion.token_ids) == cycle.after(300, COUNT)


def test_the_head_is_right_in_the_share_asked_for_and_where_the_file_says(
    made: tuple[Path, Any],
) -> None:
    folder, cycle = made
    written = json.loads((folder / "cycle.json").read_text("utf-8"))
    assert written == {"next": cycle.following.tolist(), "right": cycle.right.tolist()}
    model: Any = LLM(folder, context=512).model
    tokens = [300, *cycle.after(300, COUNT)]
    hidden = model.run(model.embed(batch(tokens)), batch(tokens), arrays(model.kv_cache_specs))
    _, drafted = model.draft(hidden[:-1], batch(tokens[1:]), arrays(model.draft_cache_specs))
    right = drafted.argmax(axis=1) == cycle.following[tokens[1:]]
    assert right.tolist() == cycle.right[tokens[1:]].tolist()
    gap = np.diff(np.sort(drafted, axis=1)[:, -2:], axis=1)
    assert gap.min() > 10  # nor does it show which: it is as sure of the wrong ones
    assert right.mean() == cycle.share_of([*tokens[1:], *cycle.after(tokens[-1], 1)])
