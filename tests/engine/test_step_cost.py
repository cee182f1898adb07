"""The cost of a step by its rows, as the speculator learns it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dure.engine.spec_decode.cost import StepCost


def test_a_cost_is_known_between_sizes_and_beyond_them() -> None:
    cost = StepCost()
    assert not cost.is_known
    assert cost(1) < cost(2) < cost(9)  # as on other machines
    cost.add(1, 1.0)
    cost.add(5, 3.0)
    assert cost.is_known
    assert cost(1) == 1.0
    assert cost(3) == pytest.approx(2.0)
    assert cost(5) == 3.0
    assert cost(6) > 3.0
    assert cost(10) > cost(6)


def test_a_cost_never_falls_with_more_rows() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        cost = StepCost()
        for rows in rng.integers(1, 129, 12):
            cost.add(int(rows), float(rng.random()))
        costs = [cost(rows) for rows in range(1, 200)]
        assert all(low <= high for low, high in itertools.pairwise(costs))


def test_a_cost_follows_what_is_seen_but_no_outlier() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.add(4, 1.0)
    cost.add(4, 100.0)
    assert 1.0 < cost(4) < 1.2
    for _ in range(40):
        cost.add(4, 0.5)
    assert cost(4) == pytest.approx(0.5, rel=0.05)


def test_prompts_teach_no_cost() -> None:
    cost = StepCost()
    cost.add(129, 1.0)
    cost.add(0, 1.0)
    assert not cost.is_known


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_where_every_step_takes_longer_or_less_long_sizes_unseen_do_too(factor: float) -> None:
    """A long context ends, or another program does: eight rows are still worth as many of one."""
    cost = StepCost()
    for _ in range(30):
        cost.add(1, 1.0)
        cost.add(8, 1.6)
    for _ in range(60):
        cost.add(1, factor)
    assert cost(8) / cost(1) == pytest.approx(1.6, rel=0.25)


def test_a_size_that_was_slow_once_is_not_held_to_it_for_ever() -> None:
    cost = StepCost()
    for _ in range(30):
        cost.add(1, 1.0)
    cost.add(4, 4.0)
    assert cost(4) == 4.0
    for _ in range(1000):  # it looks too dear to be tried, so nobody sees that it is not
        cost.add(1, 1.0)
    assert cost(4) < 2.0
