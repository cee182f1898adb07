"""What context and cache a model gets, and what is said when it does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.memory import (
    OVERHEAD_BYTES,
    MemoryPlan,
    check_threads,
    plan_memory,
    state_slots,
)

TOKEN = 1000  # bytes a token takes in the cache
WEIGHTS = 10**9


def plan(*, room_tokens: int, **options: Any) -> MemoryPlan:
    """The plan on a machine with room for so many tokens beside the weights."""
    settings: dict[str, Any] = {"wanted": None, "model_context": 131072, **options}
    available = WEIGHTS + OVERHEAD_BYTES + room_tokens * TOKEN
    return plan_memory(
        "giant", token_bytes=TOKEN, weight_bytes=WEIGHTS, available=available, **settings
    )


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
