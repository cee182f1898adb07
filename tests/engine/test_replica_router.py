"""Which engine gets a request: the one with its prefix, unless that has too much to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from fake_model import ScriptModel
from prefix_model import StateModel
from test_windows import WindowModel

from dure.engine.block_pool import root_digest
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.params import SamplingParams
from dure.engine.router import Asked, _Digests, choose, common_prefix

ROOT = root_digest("", "")
LONG = tuple(range(100)) * 4  # 400 tokens
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


@dataclass
class Here:
    """An engine, and what was sent to it."""

    engine: Engine
    expected: dict[int, Asked] = field(default_factory=dict)


def places(count: int = 2) -> list[Here]:
    return [Here(Engine(ModelRunner(ScriptModel(), num_blocks=64))) for _ in range(count)]


def asked(prompt: Sequence[int], root: bytes = ROOT, **more: Any) -> Asked:
    return Asked(root, tuple(prompt), len(prompt), **more)


def computed(place: Here, prompt: Sequence[int], *, salt: str = "") -> None:
    place.engine.add(prompt, SHORT, cache_salt=salt)
    while place.engine.has_work:
        place.engine.step()


def test_of_equal_ones_each_has_its_turn() -> None:
    all_equal = places(3)
    assert [choose(asked(LONG), all_equal, turn)[0] for turn in range(4)] == [0, 1, 2, 0]


def test_a_prompt_goes_where_it_is_cached_and_that_is_told() -> None:
    [one, other] = places()
    computed(other, LONG)
    longer = asked((*LONG, 7, 7, 7))
    assert choose(longer, [one, other], turn=0) == (1, 384)
    assert choose(asked(LONG[::-1]), [one, other], turn=0) == (0, 0)


def test_blocks_without_the_state_after_them_do_not_count_as_cached() -> None:
    prompt = tuple(range(40)) * 5  # 200 tokens
    [one, other] = [
        Here(Engine(ModelRunner(StateModel(), num_blocks=64, num_states=4))) for _ in range(2)
    ]
    computed(other, prompt)
    longer = asked((*prompt, 7, 7, 7))
    assert choose(longer, [one, other], turn=0) == (1, 192)  # behind its last full block
    parts = asked((*prompt[:100], *(9,) * 50))  # no state was kept in the midst of it
    assert len(other.engine.pool.find(_Digests(parts))) == 3
    assert choose(parts, [one, other], turn=0) == (0, 0)
    for state in range(4):
        computed(other, [state] * 3)  # snapshots of others take the place of its own
    assert len(other.engine.pool.find(_Digests(longer))) == 6
    assert choose(longer, [one, other], turn=0) == (0, 0)


def test_a_prompt_that_waits_is_no_beginning_for_one_that_parts_from_it_before_its_state() -> None:
    prompt = tuple(range(40)) * 5
    [one, other] = [
        Here(Engine(ModelRunner(StateModel(), num_blocks=64, num_states=4))) for _ in range(2)
    ]
    other.expected[1] = Asked(ROOT, prompt, 10)
    assert choose(asked((*prompt, 7)), [one, other], turn=0) == (1, 192)
    assert choose(asked((*prompt[:100], 7)), [one, other], turn=0) == (0, 0)


def test_a_window_that_is_gone_does_not_count_as_cached() -> None:
    prompt = tuple(range(40)) * 5
    [one, other] = [
        Here(Engine(ModelRunner(WindowModel(40), num_blocks=64, num_window_blocks=8)))
        for _ in range(2)
    ]
    computed(other, prompt)
    longer = asked((*prompt, 7))
    assert choose(longer, [one, other], turn=0)[0] == 1
    for first in range(6):
        computed(other, [50 + first] * 60)
    assert len(other.engine.pool.find(_Digests(longer))) == 6
    assert choose(longer, [one, other], turn=0) == (0, 0)


def test_another_tenants_prefix_is_none() -> None:
    [one, other] = places()
    computed(other, LONG, salt="somebody")
    assert choose(asked(LONG), [one, other], turn=0) == (0, 0)
    somebody = asked(LONG, root_digest("somebody", ""))
    assert choose(somebody, [one, other], turn=0) == (1, 384)


def test_who_has_more_to_do_than_the_prefix_is_worth_does_not_get_it() -> None:
    [one, other] = places()
    computed(other, LONG)
    for _ in range(9):
        other.engine.add([1, 2, 3], SamplingParams(max_tokens=100))
    assert choose(asked(LONG), [one, other], turn=1)[0] == 0


def test_a_prompt_that_waits_or_is_only_sent_counts_as_cached() -> None:
    [one, other] = places()
    other.engine.add(LONG, SHORT)
    follows = asked((*LONG, 5), max_tokens=4)
    assert choose(follows, [one, other], turn=0) == (1, 400)
    [one, other] = places()
    other.expected[1] = asked(LONG, max_tokens=4)
    assert choose(follows, [one, other], turn=0) == (1, 400)
    other.expected[1] = asked(LONG, root_digest("somebody", ""), max_tokens=4)
    assert choose(follows, [one, other], turn=1) == (0, 0)


def test_a_short_prompt_goes_to_who_has_least_to_do() -> None:
    [one, other] = places()
    one.expected[1] = asked((1,), answers=2)
    other.expected[1] = asked((2,))
    assert choose(asked((3, 4)), [one, other], turn=0)[0] == 1
    other.expected[2] = Asked(ROOT, (), 5000, answers=0)  # texts to embed
    assert choose(asked((3, 4)), [one, other], turn=1)[0] == 0


def test_who_is_lost_comes_last_and_is_asked_if_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    [one, other] = places()
    computed(one, LONG)
    one.engine.runner.is_whole = False  # type: ignore[misc]
    assert choose(asked(LONG), [one, other], turn=0) == (1, 0)
    other.engine.runner.is_whole = False  # type: ignore[misc]
    assert choose(asked(LONG), [one, other], turn=1) == (0, 384)


def test_a_common_beginning_is_as_long_as_comparing_one_by_one_says() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        left = tuple(random.integers(0, 9, random.integers(0, 300)).tolist())
        same = int(random.integers(0, 300))
        right = (*left[:same], *random.integers(0, 9, random.integers(0, 40)).tolist())
        pairs = list(zip(left, right, strict=False))
        expected = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        assert common_prefix(left, right) == expected
