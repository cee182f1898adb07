"""Ties of transformers' own choices: which rows have one, and what the grid makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import NOISE, Choices, tied_rows
from family_grid import SEEDS, check, distance_of, first_wrong
from tiny_models import oracle, oracle_logits

LOWEST = torch.finfo(torch.float32).min


def tied(scores: torch.Tensor, rows: int, k: int) -> set[int]:
    with Choices(rows) as choices:
        torch.topk(scores, k, dim=-1)
        scores.topk(k)
    return choices.tied


def test_a_tie_is_between_the_last_that_is_chosen_and_the_first_that_is_not() -> None:
    near = 0.5 - 0.4 * NOISE
    scores = torch.tensor(
        [
            [0.8, 0.5, 0.4, 0.1],
            [0.1, near, 0.8, 0.5],  # the second and the third
            [0.5, near, 0.4, 0.1],  # both are chosen
            [0.8, 0.6, 0.5, near],  # neither is
            [0.3, 0.3, 0.3, 0.3],
        ]
    )
    assert tied(scores, 5, k=2) == {1, 4}
    assert tied(scores, 5, k=4) == set()  # all are


def test_how_near_is_a_share_of_the_largest_score() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.5 - 2 * NOISE], [4.0, 0.5, 0.5 - 2 * NOISE]])
    assert tied(scores, 2, k=2) == {1}


def test_keys_that_are_masked_are_no_tie() -> None:
    """As an indexer's, which chooses of (batch, tokens, keys); scores of 0 of ReLU are one."""
    scores = torch.tensor(
        [[[0.3, LOWEST, LOWEST], [0.3, 0.2, -torch.inf], [0.3, 0.2, 0.2], [0.3, 0.0, 0.0]]]
    )
    assert tied(scores, 4, k=2) == {2, 3}
    assert tied(scores, 4, k=1) == set()


def test_a_tie_of_groups_is_one_of_its_row() -> None:
    groups = torch.tensor([[[3.0, 2.0, 1.0], [3.0, 2.0, 2.0]], [[1.0, 2.0, 3.0], [1.0, 3.0, 4.0]]])
    assert tied(groups, 2, k=2) == {0}


def test_the_first_row_that_differs() -> None:
    expected = np.zeros((4, 3), np.float32)
    actual = expected.copy()
    actual[2, 1], actual[3] = np.nan, 1
    assert first_wrong(expected, actual, 0.5) == 2


@pytest.fixture(scope="module")
def model() -> Any:
    """A mixture of eight experts, the last of which is scored as the first one is."""
    model = oracle("qwen3_moe")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                values[-1] = values[0]
    return model


def test_logits_may_differ_from_a_tie_on_alone(model: Any, tiny: Callable[[str], Any]) -> None:
    tokens = tiny("qwen3_moe").sequences[1]
    ties, expected = tied_rows(model, tokens), oracle_logits(model, tokens)
    first = min(ties)
    assert 0 < first < len(tokens) - 1
    assert distance_of(model, [tokens], [expected], 1e-4) == 0
    for row in (first, len(tokens) - 1):
        other = expected.copy()
        other[row:] += 1
        assert distance_of(model, [tokens], [other], 1e-4) is None
    early = expected.copy()
    early[first - 1] += 1
    with pytest.raises(AssertionError, match=f"row {first - 1}"):
        distance_of(model, [tokens], [early], 1e-4)
    assert not tied_rows(oracle("qwen3_moe"), tokens)


def test_an_indexers_choice_of_keys_is_seen_too(tiny: Callable[[str], Any]) -> None:
    model = tiny("deepseek_v32").oracle
    chosen, layers = model.config.index_topk, model.config.num_hidden_layers
    seen = []
    for count in (chosen, chosen + 1):  # with few keys all are chosen
        with Choices(count) as choices:
            oracle_logits(model, tiny("deepseek_v32").sequences[0][:count])
        seen.append(choices.seen)
    assert seen[1] - seen[0] == layers


@pytest.mark.long
def test_a_config_with_a_tie_agrees_in_all_rows_of_other_tokens(tmp_path: Path) -> None:
    """Of 64 scores the 12th and 13th are an ulp apart in one row of one layer."""
    distance, drawn_anew = check("qwen2_moe-64-12", tmp_path)
    assert distance < 1e-5
    assert 0 < drawn_anew < len(SEEDS)
