"""What context and cache a model gets, and what is said when it does not fit."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.cache_size import CacheSize
from dure.loading.memory import (
    OVERHEAD_BYTES,
    MemoryPlan,
    check_memory,
    check_threads,
    parse_size,
    plan_memory,
    state_slots,
)

TOKEN = 1000  # bytes a token takes in the cache
WEIGHTS = 10**9


def plan(*, room_tokens: int, **options: Any) -> MemoryPlan:
    """The plan on a machine with room for so many tokens beside the weights."""
    settings: dict[str, Any] = {"wanted": None, "model_context": 131072, **options}
    available = WEIGHTS + OVERHEAD_BYTES + room_tokens * TOKEN
    settings = {"size": CacheSize(TOKEN), **settings}
    return plan_memory("giant", weight_bytes=WEIGHTS, available=available, **settings)


@pytest.mark.parametrize(
    ("room", "model_context", "context", "cache"),
    [
        (10**6, 131072, 32768, 32768),  # our default
        (10**6, 8192, 8192, 32768),  # the model's own; several sequences share the cache
        (10_000, 131072, 9984, 9984),  # what fits, in whole blocks
        (10_000, 2048, 2048, 9984),
        (512, 131072, 512, 512),
        (64, 50, 50, 64),  # a model with a tiny context
    ],
)
def test_the_default_context_is_the_models_or_what_fits_or_32768(
    room: int, model_context: int, context: int, cache: int
) -> None:
    found = plan(room_tokens=room, model_context=model_context)
    assert found == MemoryPlan(context, cache)


def test_a_context_that_is_asked_for_is_what_one_gets() -> None:
    assert plan(room_tokens=10**6, wanted=100_000) == MemoryPlan(100_000, 100_000)
    assert plan(room_tokens=10**6, wanted=1000) == MemoryPlan(1000, 32768)


def test_a_context_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=20_000, wanted=50_000)
    assert "giant" in caught.value.message
    assert "50,016 tokens needs 1.21 GB" in caught.value.message
    assert "1.18 GB is available" in caught.value.message
    assert caught.value.hint == "a context of 20,000 tokens fits"


def test_a_model_that_leaves_no_room_for_a_context_is_refused_with_smaller_ones() -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=100)
    assert "of the catalogue these fit" in caught.value.hint
    assert "qwen3:0.6b" in caught.value.hint


def test_a_context_beyond_the_models_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequestError, match=r"9,000 tokens is outside 1 to 8,192"):
        plan(room_tokens=10**6, wanted=9000, model_context=8192)


def test_a_cache_of_so_many_bytes_is_taken_as_it_is() -> None:
    assert plan(room_tokens=10**6, cache_bytes=10_000 * TOKEN) == MemoryPlan(9984, 9984)
    with pytest.raises(NotEnoughMemoryError):
        plan(room_tokens=10**4, cache_bytes=20_000 * TOKEN)


def test_a_cache_below_one_context_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(room_tokens=10**6, wanted=2000, cache_bytes=1000 * TOKEN)
    assert "holds 992 tokens" in caught.value.message
    assert "2,016,000" in caught.value.hint


def test_a_cache_of_so_many_tokens_is_rounded_up_to_blocks() -> None:
    assert plan(room_tokens=10**6, wanted=10, cache_tokens=100) == MemoryPlan(10, 128)


@pytest.mark.parametrize(
    ("room", "conversations", "cache"),
    [
        (10**6, 1, 32768),
        (10**6, 32, 32 * 4096),
        (200_000, 32, 100_000),  # half of what is free
        (40_000, 32, 32768),  # as for one
        (10_000, 32, 9984),
    ],
)
def test_a_cache_for_several_has_4096_tokens_of_each_in_half_the_room(
    room: int, conversations: int, cache: int
) -> None:
    assert plan(room_tokens=room, conversations=conversations).cache_tokens == cache
    given = plan(room_tokens=room, conversations=conversations, cache_bytes=8000 * TOKEN)
    assert given.cache_tokens == 8000


@pytest.mark.parametrize(
    ("sequence_bytes", "room", "slots"),
    [
        (0, 10**10, 0),
        (79 * 10**6, 0, 13),
        (79 * 10**6, 160 * 10**9, 128),
        (79 * 10**6, 24 * 10**9, 37),
        (2**31, 0, 2),
    ],
)
def test_recurrent_states_get_an_eighth_of_the_room_or_a_gigabyte(
    sequence_bytes: int, room: int, slots: int
) -> None:
    assert state_slots(sequence_bytes, room) == slots


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_senseless_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(InvalidRequestError, match="threads"):
        check_threads(threads)


def test_threads_are_by_default_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dure.machine.usable_threads", lambda: 7)
    assert check_threads(None) == 7
    assert check_threads(3) == 3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("512MB", 512 * 10**6),
        ("6GiB", 6 << 30),
        ("1.5G", 1_500_000_000),
        ("1.5Gi", 3 << 29),
        (" 8 gb ", 8 * 10**9),
        (".5tb", 5 * 10**11),
        ("2048KiB", 2 << 20),
        ("8000000000", 8 * 10**9),
        ("8000000000B", 8 * 10**9),
        ("0.0000015TB", 1_500_000),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert size == parse_size(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "GB",
            "8 apples",
            "8GB8",
            "-8GB",
            "+8GB",
            "8,5GB",
            "8e9",
            "nan",
            "inf",
            "1.2.3G",
        ),
        *(
            "50%",
            "0x10",
            "8PB",
            "8iB",
            "8 G B",
            "8_000MB",
            "\u0668GB",
            "9" * 5000,
            "." * 50,
            "8\n9",
        ),
        *("1.5", "0", "0GB", "8", "1000", "1e30", "9" * 18, "2000TB"),
    ],
)
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_size(text)
    assert "GB" in caught.value.hint
    assert len(caught.value.message) < 120


@pytest.mark.parametrize("size", [None, True, 8.0, "8GB", -1, 0, 8, (1 << 50) + 1, float("nan")])
def test_what_is_no_number_of_bytes_is_no_budget(size: Any) -> None:
    with pytest.raises(InvalidRequestError):
        check_memory(size)


def test_a_budget_that_holds_the_model_bounds_its_cache_as_a_smaller_machine_would() -> None:
    room = WEIGHTS + OVERHEAD_BYTES + 10_000 * TOKEN
    assert plan(room_tokens=10**6, budget=room) == plan(room_tokens=10_000)
    assert plan(room_tokens=10_000, budget=100 * room) == plan(room_tokens=10_000)


@pytest.mark.parametrize("options", [{}, {"wanted": 50_000}, {"cache_tokens": 3000}])
def test_a_budget_that_is_too_small_is_refused_with_one_that_would_do(options: Any) -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=10**6, budget=WEIGHTS, **options)
    assert "the budget is 1.00 GB" in caught.value.message
    match = re.fullmatch(r"a budget of (\S+) would do", caught.value.hint)
    assert match is not None
    plan(room_tokens=10**6, budget=parse_size(match[1]), **options)


HALF = CacheSize(TOKEN // 2)


def test_a_smaller_cache_is_named_with_its_figure_where_it_would_fit() -> None:
    room = WEIGHTS + OVERHEAD_BYTES + 30_000 * TOKEN
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=10**6, budget=room, wanted=50_000, smaller=HALF)
    would = "or a context of 29,984 tokens, or --cache q8, with which it needs 1.18 GB"
    assert caught.value.hint == f"a budget of 1.21GB would do, {would}"
    plan(room_tokens=10**6, budget=room, wanted=50_000, size=HALF)
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=30_000, wanted=50_000, smaller=HALF)
    would = "with --cache q8 it fits, and needs 1.18 GB, or a context of 29,984 tokens"
    assert caught.value.hint == would
    with pytest.raises(NotEnoughMemoryError) as caught:
        plan(room_tokens=300, smaller=HALF)
    assert caught.value.hint == "with --cache q8 it fits, and needs 1.16 GB"


@pytest.mark.parametrize("options", [{"wanted": 60_032}, {"cache_bytes": 50_000 * TOKEN}])
def test_a_smaller_cache_is_not_named_where_it_does_not_fit_or_the_bytes_are_asked_for(
    options: Any,
) -> None:
    for budget in (None, WEIGHTS + OVERHEAD_BYTES + 30_000 * TOKEN):
        with pytest.raises(NotEnoughMemoryError) as caught:
            plan(room_tokens=30_000, budget=budget, smaller=HALF, **options)
        assert "q8" not in caught.value.hint


def test_where_the_machine_has_less_than_the_budget_the_machine_is_named() -> None:
    with pytest.raises(NotEnoughMemoryError, match="is available"):
        plan(room_tokens=100, budget=1 << 40)
