"""What a cache takes: layers with a window take what they see, whatever the context."""

from __future__ import annotations

from typing import Any

import pytest

from dure.batch import KVCacheSpec, StateSpec
from dure.engine.windows import window_span
from dure.loading.cache_size import CacheSize
from dure.loading.memory import OVERHEAD_BYTES, MemoryPlan, plan_memory

FULL = KVCacheSpec("gqa", 8, 64)
NEAR = KVCacheSpec("window", 8, 64, window=128)
GPT_OSS_20B = (NEAR, FULL) * 12


def whole(layers: Any, tokens: int) -> int:
    """The bytes of a cache in which every layer keeps every token."""
    return tokens * sum(layer.bytes_per_token("f16") for layer in layers)


def test_gpt_oss_at_128k_takes_about_half_of_a_cache_of_the_whole_past() -> None:
    size = CacheSize.of(GPT_OSS_20B, "f16")
    share = size.bytes_of(131072) / whole(GPT_OSS_20B, 131072)
    assert 0.5 < share < 0.55
    plan = plan_memory(
        "gpt-oss-20b",
        wanted=None,
        model_context=131072,
        size=size,
        weight_bytes=12 * 10**9,
        available=12 * 10**9 + OVERHEAD_BYTES + size.bytes_of(131072),
        cache_tokens=131072,
    )
    assert plan == MemoryPlan(32768, 131072)


def test_the_windows_part_does_not_grow_with_the_context() -> None:
    size = CacheSize.of(GPT_OSS_20B, "f16")
    assert size.window_tokens(131072) == size.window_tokens(32 * 131072)
    assert size.bytes_of(200_000) - size.bytes_of(199_968) == 32 * 12 * FULL.bytes_per_token("f16")


@pytest.mark.parametrize("conversations", [1, 8, 64])
@pytest.mark.parametrize("window", [1, 128, 4096])
@pytest.mark.parametrize("tokens", [32, 512, 4096, 131072, 1 << 22])
def test_windows_have_room_for_every_conversation_and_a_step(
    tokens: int, window: int, conversations: int
) -> None:
    size = CacheSize(1000, 1000, window, conversations)
    kept = size.window_tokens(tokens)
    assert kept % 32 == 0
    assert kept == tokens or kept >= 2 * conversations * window_span(window) * 32 + size.rows
    assert kept <= tokens


@pytest.mark.parametrize(
    "size",
    [CacheSize(1000), CacheSize(1000, 500, 128), CacheSize(0, 500, 4096, 3), CacheSize(7, 1, 1)],
)
@pytest.mark.parametrize("size_bytes", [-5, 0, 31_999, 32_000, 10**7, 10**10 + 1])
def test_the_tokens_in_so_many_bytes_are_the_most_that_fit(
    size: CacheSize, size_bytes: int
) -> None:
    tokens = size.tokens_in(size_bytes)
    assert tokens % 32 == 0
    assert tokens == 0 or size.bytes_of(tokens) <= size_bytes
    assert size.bytes_of(tokens + 32) > size_bytes


def test_a_cache_without_windows_takes_the_same_for_every_token() -> None:
    size = CacheSize.of((FULL, StateSpec(99)), "q8")
    assert (size.window_tokens(10**6), size.bytes_of(96)) == (0, 96 * FULL.bytes_per_token("q8"))
    assert size.tokens_in(10**9) == 10**9 // (32 * size.token_bytes) * 32


def test_what_drafts_keeps_every_token_with_a_window_too() -> None:
    size = CacheSize.of((FULL,), "f16", whole=(NEAR,))
    assert (size.token_bytes, size.window) == (2 * FULL.bytes_per_token("f16"), 0)
