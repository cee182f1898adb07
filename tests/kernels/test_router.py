"""Which experts a row goes to, against the reference."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from kernel_inputs import bits

from dure import kernels
from dure.kernels import reference

Score = Literal["softmax", "sigmoid"]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("experts", "top_k"), [(8, 2), (128, 8), (60, 4), (256, 8), (6, 6), (1, 1)]
)
def test_routes_are_those_of_the_reference(
    experts: int, top_k: int, score: Score, normalize: bool
) -> None:
    logits = np.random.default_rng(1).normal(0, 2, (50, experts)).astype(np.float32)
    ids, weights = kernels.route(logits, top_k=top_k, normalize=normalize, score=score)
    expected_ids, expected_weights = reference.route(
        logits, top_k=top_k, normalize=normalize, score=score
    )
    assert (ids.dtype, weights.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=5e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_of_equal_scores_the_lower_id_comes_first(score: Score) -> None:
    logits = np.zeros((3, 10), np.float32)
    logits[1, [3, 7, 9]] = 1
    logits[2] = np.arange(10) // 2
    ids, weights = kernels.route(logits, top_k=4, normalize=True, score=score)
    assert ids.tolist() == [[0, 1, 2, 3], [3, 7, 9, 0], [8, 9, 6, 7]]
    np.testing.assert_allclose(weights[0], 0.25, rtol=1e-6)


def test_large_logits_neither_overflow_nor_lose_their_order() -> None:
    logits = np.array([[1e4, 1e4 - 1, -1e4, 1e4 - 2]], np.float32)
    ids, weights = kernels.route(logits, top_k=3, normalize=True)
    assert ids.tolist() == [[0, 1, 3]]
    expected = np.exp([0, -1, -2]) / np.exp([0, -1, -2]).sum()
    np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_row_has_the_same_bits_in_any_batch(score: Score) -> None:
    logits = np.random.default_rng(2).normal(0, 2, (40, 64)).astype(np.float32)
    ids, weights = kernels.route(logits, top_k=6, normalize=True, score=score)
    for i in range(40):
        one_ids, one_weights = kernels.route(
            logits[i : i + 1], top_k=6, normalize=True, score=score
        )
        np.testing.assert_array_equal(one_ids[0], ids[i])
        np.testing.assert_array_equal(bits(one_weights[0]), bits(weights[i]))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_row_that_is_not_finite_still_goes_to_different_experts_that_exist(score: Score) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.random.default_rng(3).normal(0, 1, (3, 16)).astype(np.float32)
        clean, _ = kernels.route(logits, top_k=16, normalize=True, score=score)
        logits[1, ::2] = bad
        ids, _ = kernels.route(logits, top_k=16, normalize=True, score=score)
        np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(16), (3, 1)))
        np.testing.assert_array_equal(ids[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    ("logits", "top_k", "score"),
    [
        (np.zeros((2, 8), np.float32), 9, "softmax"),
        (np.zeros((2, 8), np.float32), 0, "softmax"),
        (np.zeros((2, 8), np.float32), -1, "softmax"),
        (np.zeros((2, 0), np.float32), 1, "softmax"),
        (np.zeros((2, 8), np.float32), 2, "tanh"),
        (np.zeros((2, 8), np.float64), 2, "softmax"),
        (np.zeros(8, np.float32), 2, "softmax"),
        (np.zeros((4, 8), np.float32)[::2], 2, "softmax"),
    ],
)
def test_routes_that_cannot_be_are_refused(logits: np.ndarray, top_k: int, score: Score) -> None:
    with pytest.raises((TypeError, ValueError)):
        kernels.route(logits, top_k=top_k, normalize=True, score=score)


RULES: list[dict[str, object]] = [
    {"group_rule": "max", "groups": 8, "kept_groups": 3},
    {"group_rule": "top2", "groups": 8, "kept_groups": 4, "scale": 2.5},
    {"group_rule": "top2", "groups": 32, "kept_groups": 6},
    {"group_rule": "top2", "groups": 64, "kept_groups": 9},
    {"group_rule": "each", "groups": 6},
    {"group_rule": "each", "groups": 3, "scale": 0.5},
    {"group_rule": "max", "groups": 1, "kept_groups": 1},
    {"scale": 16.0},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_groups_biases_and_scales_are_those_of_the_reference(
    score: Score, biased: bool, normalize: bool, rule: dict[str, object]
) -> None:
    rng = np.random.default_rng(4)
    experts = 192 if rule.get("group_rule") in ("each", "none") else 64
    logits = rng.normal(0, 2, (50, experts)).astype(np.float32)
    options = {"top_k": 6, "normalize": normalize, "score": score, **rule}
    if biased:
        options["bias"] = rng.normal(0, 0.3, experts).astype(np.float32)
        options["scales"] = rng.uniform(0.5, 2, experts).astype(np.float32)
    ids, weights = kernels.route(logits, **options)
    expected_ids, expected_weights = reference.route(logits, **options)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=5e-6)


def test_a_bias_chooses_and_does_not_weigh() -> None:
    logits = np.zeros((1, 4), np.float32)
    bias = np.array([0, 9, 0, 5], np.float32)
    ids, weights = kernels.route(logits, top_k=2, normalize=False, bias=bias)
    assert ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)


def test_each_rule_keeps_other_groups() -> None:
    """Group 0 has the best expert, group 1 the best two, group 2 neither."""
    logits = np.log(np.array([[9, 1, 6, 5, 4, 3]], np.float32))
    options = {"top_k": 2, "normalize": True, "groups": 3, "kept_groups": 1}
    assert kernels.route(logits, group_rule="max", **options)[0].tolist() == [[0, 1]]
    assert kernels.route(logits, group_rule="top2", **options)[0].tolist() == [[2, 3]]
    ids, _ = kernels.route(logits, top_k=3, normalize=True, group_rule="each", groups=3)
    assert ids.tolist() == [[0, 2, 4]]


def test_scores_that_are_all_nothing_share_out_nothing() -> None:
    logits = np.full((1, 4), -200, np.float32)
    _, weights = kernels.route(logits, top_k=2, normalize=True, score="sigmoid")
    assert weights.tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_a_bias_that_is_not_finite_still_gives_experts_that_exist(
    bad: float, rule: dict[str, object]
) -> None:
    bias = np.zeros(64, np.float32)
    bias[::3] = bad
    logits = np.random.default_rng(5).normal(0, 1, (9, 64)).astype(np.float32)
    ids, _ = kernels.route(logits, top_k=6, normalize=True, bias=bias, **rule)
    assert all(len(set(row)) == 6 and 0 <= min(row) and max(row) < 64 for row in ids.tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"group_rule": "max", "groups": 5},
        {"group_rule": "max", "groups": 0},
        {"group_rule": "max", "groups": 4, "kept_groups": 5},
        {"group_rule": "top2", "groups": 4, "kept_groups": 0},
        {"group_rule": "top2", "groups": 8, "kept_groups": 1},  # one expert, two wanted
        {"group_rule": "each", "groups": 4},
        {"group_rule": "median", "groups": 4},
        {"bias": np.zeros(7, np.float32)},
        {"scales": np.zeros(9, np.float32)},
    ],
    ids=str,
)
def test_rules_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"group|expert|top_k"):
        kernels.route(np.zeros((2, 8), np.float32), top_k=2, normalize=True, **options)


def test_near_uses_are_those_that_the_words_say() -> None:
    scores = np.random.default_rng(3).normal(0, 2, (7, 64)).astype(np.float32)
    scores[2] = 0.5  # all as good as the last that is chosen
    scores[4, 9] = np.nan
    counted = np.delete(scores, 4, axis=0).astype(np.float64)
    last = np.sort(counted, axis=1)[:, [-6]]
    spread = 0.6 * counted.std(axis=1, keepdims=True) + 1e-9
    expected = np.exp(np.minimum(0, (counted - last) / spread)).sum(axis=0)
    actual = kernels.near_uses(scores, top_k=6, near=0.6)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    assert not kernels.near_uses(scores[:0], top_k=6, near=0.6).any()
    with pytest.raises(ValueError, match="top_k"):
        kernels.near_uses(scores, top_k=65, near=0.6)
