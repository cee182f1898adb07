"""Answers of a server whose model lies in stages are those of one process, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_server import AT_ONCE, served, under_load
from stage_models import FAMILIES

from dure import LLM

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

REQUESTS = 50
SETTINGS: dict[str, Any] = {"threads": 1, "context": 256, "max_sequences": AT_ONCE}


def bodies() -> list[dict[str, Any]]:
    """Prompts of 1 to 150 letters, some with the beginning of another; greedy and drawn."""
    made = []
    for number in range(REQUESTS):
        rng = np.random.default_rng(number)
        letters = "".join(map(chr, rng.integers(97, 123, int(rng.integers(1, 90)))))
        shared = "What two of them have in common, and a third has not. " if number % 3 else ""
        drawn = {"temperature": 0.8, "top_p": 0.9, "seed": number}
        made.append(
            {
                "prompt": shared + letters,
                "max_tokens": int(rng.integers(1, 16)),
                "logprobs": 4,
                **(drawn if number % 2 else {"temperature": 0}),
            }
        )
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_under_load_are_those_of_one_process(
    name: str, cluster: Any, folders: dict[str, Path]
) -> None:
    folder, asked = folders[name], bodies()
    with served(lambda: LLM(folder, **SETTINGS)) as post:
        expected = [post(body) for body in asked]  # one after another
        assert under_load(post, asked) == expected
    assert len({answer[0] for answer in expected}) > REQUESTS / 2
    for stages in (2, 4):
        opened: list[LLM] = []

        def open_it(stages: int = stages, opened: list[LLM] = opened) -> LLM:
            opened.append(LLM(folder, ray=cluster.address, stages=stages, **SETTINGS))
            return opened[0]

        with served(open_it) as post:
            assert under_load(post, asked) == expected
            assert opened[0].stages is not None
            assert len(opened[0].stages.stages) == stages - 1
