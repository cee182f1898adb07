"""Attention over the paged cache against the reference, and its bits against themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_inputs import PagedSequences, bits, cache_shape, paged_sequences

from dure import kernels
from dure.kernels import reference

# (cached before, new rows): prefill from nothing, a chunk, decode near and across block borders.
MIXED = [(0, 40), (0, 1), (70, 33), (31, 1), (32, 1), (95, 1), (200, 1), (5, 2), (60, 8)]
# Around the borders of the 256-key spans whose partial results are merged.
LONG = [(255, 1), (256, 1), (250, 13), (700, 3), (490, 40), (1030, 1), (0, 270)]
GROUPS = [(1, 1), (4, 2), (8, 2), (6, 1), (8, 1), (3, 3)]
HEAD_DIMS = (16, 24, 64, 80, 96, 128)
SCALE = 0.125
DTYPES = (np.float16, np.float32, np.uint8)


def queries(rng: np.random.Generator, paged: PagedSequences, heads: int, d: int) -> np.ndarray:
    """Random queries, float32 (n, heads, d), a few of them sharp enough to pick one key."""
    q = rng.normal(0, 1, (len(paged.positions), heads, d))
    q[::5] *= 20
    return q.astype(np.float32)


def check(paged: PagedSequences, q: np.ndarray, window: int | None) -> np.ndarray:
    """The kernel's answer, once it is known to be near the reference's."""
    expected = reference.paged_attention(q, *paged.arguments, scale=SCALE, window=window)
    actual = kernels.paged_attention(q, *paged.arguments, scale=SCALE, window=window, threads=2)
    assert actual.shape == q.shape
    # A score of s is rounded by about s * d * 2^-24; sharp queries score up to 200.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)
    plain = np.abs(q).max(axis=(1, 2)) < 6
    np.testing.assert_allclose(actual[plain], expected[plain], rtol=0, atol=5e-6)
    return actual


@pytest.mark.parametrize("d", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_mixed_rows_attend_as_the_reference_does(heads: int, kv_heads: int, d: int) -> None:
    rng = np.random.default_rng(1)
    # Every group meets both types of cache, and so does every head size.
    dtype = DTYPES[(GROUPS.index((heads, kv_heads)) + HEAD_DIMS.index(d)) % 3]
    paged = paged_sequences(rng, MIXED, kv_heads, d, dtype)
    check(paged, queries(rng, paged, heads, d), None)


@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(6, 1, 128), (14, 2, 64), (3, 3, 40)])
@pytest.mark.parametrize("window", [None, 40, 256, 300])
def test_long_contexts_attend_as_the_reference_does(
    window: int | None, heads: int, kv_heads: int, d: int
) -> None:
    rng = np.random.default_rng(9)
    paged = paged_sequences(rng, LONG, kv_heads, d, np.float16)
    check(paged, queries(rng, paged, heads, d), window)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 64, 100, 10**6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_hides_the_keys_before_it(window: int, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    paged = paged_sequences(rng, MIXED, 2, 24, dtype)
    check(paged, queries(rng, paged, 4, 24), window)


def test_blocks_that_no_row_sees_any_more_may_be_gone() -> None:
    rng = np.random.default_rng(3)
    paged = paged_sequences(rng, [(200, 1), (130, 4)], 2, 16, np.float16)
    q = queries(rng, paged, 4, 16)
    expected = kernels.paged_attention(q, *paged.arguments, scale=SCALE, window=32)
    paged.block_tables[0, : (201 - 32) // 32] = -1
    paged.block_tables[1, : (131 - 32) // 32] = -1
    actual = kernels.paged_attention(q, *paged.arguments, scale=SCALE, window=32)
    np.testing.assert_array_equal(bits(actual), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d"), [(4, 2, 24), (8, 1, 64), (6, 1, 80), (1, 1, 16)]
)
def test_a_row_has_the_same_bits_whatever_shares_its_call(
    heads: int, kv_heads: int, d: int, window: int | None, dtype: Any
) -> None:
    rng = np.random.default_rng(4)
    paged = paged_sequences(rng, MIXED, kv_heads, d, dtype)
    q = queries(rng, paged, heads, d)
    n = len(q)

    def attend(rows: np.ndarray, threads: int = 1) -> np.ndarray:
        return kernels.paged_attention(
            q[rows], *paged.only(rows), scale=SCALE, window=window, threads=threads
        )

    alone = np.concatenate([attend(np.array([row])) for row in range(n)])
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(bits(attend(np.arange(n), threads)), bits(alone))
    chunks = np.split(np.arange(n), [7, 8, 30, 71])  # a prefill cut in uneven pieces
    np.testing.assert_array_equal(
        bits(np.concatenate([attend(chunk, 2) for chunk in chunks])), bits(alone)
    )
    some = np.sort(rng.choice(n, n // 2, replace=False))
    np.testing.assert_array_equal(bits(attend(some, 2)), bits(alone[some]))


@pytest.mark.parametrize("window", [None, 100, 300])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(6, 1, 64), (14, 2, 24), (16, 1, 16)])
def test_a_long_row_has_the_same_bits_on_one_thread_and_on_many(
    heads: int, kv_heads: int, d: int, window: int | None
) -> None:
    rng = np.random.default_rng(10)
    paged = paged_sequences(rng, LONG, kv_heads, d, np.float16)
    q = queries(rng, paged, heads, d)

    def attend(rows: np.ndarray, threads: int) -> np.ndarray:
        return kernels.paged_attention(
            q[rows], *paged.only(rows), scale=SCALE, window=window, threads=threads
        )

    every = np.arange(len(q))
    alone = np.concatenate([attend(every[row : row + 1], 1) for row in every])
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(bits(attend(every, threads)), bits(alone))
    for row in (0, 1, 15, 58):  # one row's keys shared out over the threads
        np.testing.assert_array_equal(
            bits(attend(every[row : row + 1], 8)), bits(alone[row : row + 1])
        )


def test_the_place_of_a_block_in_the_cache_changes_no_bit() -> None:
    rng = np.random.default_rng(5)
    paged = paged_sequences(rng, [(0, 50), (100, 1)], 2, 64, np.float16)
    q = queries(rng, paged, 4, 64)
    expected = kernels.paged_attention(q, *paged.arguments, scale=SCALE)
    order = rng.permutation(len(paged.cache))
    moved = np.empty_like(paged.cache)
    moved[order] = paged.cache
    tables = np.where(paged.block_tables < 0, -1, order[paged.block_tables]).astype(np.int32)
    actual = kernels.paged_attention(
        q, moved, paged.positions, paged.sequences, tables, scale=SCALE
    )
    np.testing.assert_array_equal(bits(actual), bits(expected))


def test_a_shared_prefix_is_read_from_the_same_blocks() -> None:
    rng = np.random.default_rng(6)
    paged = paged_sequences(rng, [(64, 1)], 1, 16, np.float16)
    q = np.repeat(queries(rng, paged, 2, 16), 3, axis=0)
    tables = np.repeat(paged.block_tables, 3, axis=0)
    positions, sequences = np.full(3, 63, np.int32), np.arange(3, dtype=np.int32)
    actual = kernels.paged_attention(q, paged.cache, positions, sequences, tables, scale=SCALE)
    np.testing.assert_array_equal(bits(actual[0]), bits(actual[1]))
    np.testing.assert_array_equal(bits(actual[0]), bits(actual[2]))


def test_scores_beyond_the_range_of_exp_pick_the_best_key() -> None:
    rng = np.random.default_rng(7)
    paged = paged_sequences(rng, [(90, 1)], 1, 16, np.float32)
    k, v = paged.histories[0]
    for factor in (1e4, 1e18):
        q = (k[17, 0] * factor)[None, None].astype(np.float32)
        best = int(np.argmax(k[:, 0] @ k[17, 0]))
        actual = kernels.paged_attention(q, *paged.arguments, scale=1.0)
        np.testing.assert_allclose(actual[0, 0], v[best, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", HEAD_DIMS)
def test_written_keys_and_values_lie_where_the_reference_puts_them(d: int, dtype: Any) -> None:
    rng = np.random.default_rng(8)
    k, v = (rng.normal(0, 1, (2, 40, 3, d)) * 10 ** rng.uniform(-8, 4, (2, 40, 3, d))).astype(
        np.float32
    )
    positions = np.concatenate([np.arange(20, 55), np.arange(64, 69)]).astype(np.int32)
    sequences = np.array([1] * 35 + [0] * 5, np.int32)
    tables = np.array([[-1, -1, 3], [6, 1, -1]], np.int32)
    v[::7], k[3, 0, 5], v[4, 1, :9] = 0, np.nan, np.inf
    expected = rng.integers(0, 99, cache_shape(7, 3, d, dtype)).astype(dtype)
    actual = expected.copy()
    reference.write_cache(k, v, expected, positions, sequences, tables)
    assert kernels.write_cache(k, v, actual, positions, sequences, tables) is None
    np.testing.assert_array_equal(actual, expected)


def test_values_past_the_range_of_float16_become_infinite_and_nan_stays_nan() -> None:
    k = np.array([65504, 65519.9, 65520, -1e9, np.nan, 2.0**-24, 2.0**-25, 2.0**-26], np.float32)
    k = np.resize(k, (1, 1, 16))
    cache = np.zeros((1, 1, 64 * 16), np.float16)
    zero, table = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    kernels.write_cache(k, k, cache, zero, zero, table)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(cache[0, 0, 32 * 16 : 33 * 16], k[0, 0].astype(np.float16))


def good() -> dict[str, Any]:
    """Arguments that attention and write_cache accept: two rows of one sequence of 41 tokens."""
    return {
        "q": np.zeros((2, 4, 16), np.float32),
        "k": np.zeros((2, 2, 16), np.float32),
        "v": np.zeros((2, 2, 16), np.float32),
        "cache": np.zeros((5, 2, 64 * 16), np.float16),
        "positions": np.array([39, 40], np.int32),
        "sequences": np.array([0, 0], np.int32),
        "block_tables": np.array([[4, 2, -1]], np.int32),
        "window": None,
    }


COMMON_FAULTS = [
    {"cache": np.zeros((5, 2, 64 * 16), np.float64)},
    {"cache": np.zeros((5, 2, 64 * 16), np.int16)},
    {"cache": np.zeros((5, 2, 64 * 16), np.uint8)},  # no room for scales
    {"cache": np.zeros((5, 2, 64 * 16 + 1), np.float16)},
    {"cache": np.zeros((5, 2, 64 * 8), np.float16)},
    {"cache": np.zeros((5, 2 * 64 * 16), np.float16)},
    {"cache": np.zeros((10, 2, 64 * 16), np.float16)[::2]},
    {"positions": np.array([39, 96], np.int32)},  # past the table
    {"positions": np.array([39, -1], np.int32)},
    {"positions": np.array([39, 2**31 - 1], np.int32)},
    {"positions": np.array([39], np.int32)},
    {"positions": np.array([39, 40], np.int64)},
    {"sequences": np.array([0, 1], np.int32)},
    {"sequences": np.array([-1, 0], np.int32)},
    {"sequences": np.array([0, 0, 0], np.int32)},
    {"block_tables": np.array([[4, -1, 2]], np.int32)},  # -1 in the used range
    {"block_tables": np.array([[4, 5, -1]], np.int32)},  # a block the cache does not have
    {"block_tables": np.array([[4, 2**31 - 1, -1]], np.int32)},
    {"block_tables": np.array([4, 2, -1], np.int32)},
    {"block_tables": np.array([[4, 2, -1]], np.int64)},
    {"block_tables": np.zeros((0, 3), np.int32)},
    {"block_tables": np.zeros((1, 0), np.int32)},
]


@pytest.mark.parametrize(
    "fault",
    [
        *COMMON_FAULTS,
        {"block_tables": np.array([[-1, 2, -1]], np.int32)},  # the start of the prefix is gone
        {"q": np.zeros((2, 3, 16), np.float32)},  # 3 query heads over 2 key heads
        {"q": np.zeros((2, 0, 16), np.float32)},
        {"q": np.zeros((2, 4, 8), np.float32)},
        {"q": np.zeros((2, 64), np.float32)},
        {"q": np.zeros((2, 4, 16), np.float64)},
        {"q": np.zeros((2, 4, 32), np.float32)[..., ::2]},
        {"cache": np.zeros((5, 0, 64 * 16), np.float16)},
        {"window": 0},
        {"window": -1},
    ],
)
def test_attention_to_what_is_not_there_is_refused(fault: dict[str, Any]) -> None:
    a = {**good(), **fault}
    rows = [a[name] for name in ("q", "cache", "positions", "sequences", "block_tables")]
    with pytest.raises((TypeError, ValueError)):
        kernels.paged_attention(*rows, scale=1.0, window=a["window"])


@pytest.mark.parametrize(
    "fault",
    [
        *COMMON_FAULTS,
        {"k": np.zeros((2, 1, 16), np.float32)},
        {"k": np.zeros((1, 2, 16), np.float32)},
        {"k": np.zeros((2, 2, 16), np.float16)},
        {"k": np.zeros((2, 2, 8), np.float32), "v": np.zeros((2, 2, 8), np.float32)},
        {"v": np.zeros((2, 1, 16), np.float32)},
        {"v": np.zeros((2, 2, 8), np.float32)},
        {"v": np.zeros((2, 2, 32), np.float32)[..., ::2]},
    ],
)
def test_writing_where_the_cache_is_not_is_refused(fault: dict[str, Any]) -> None:
    a = {**good(), **fault}
    with pytest.raises((TypeError, ValueError)):
        kernels.write_cache(
            a["k"], a["v"], a["cache"], a["positions"], a["sequences"], a["block_tables"]
        )


def test_a_cache_closed_to_writing_is_refused() -> None:
    a = good()
    a["cache"].flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        kernels.write_cache(
            a["k"], a["v"], a["cache"], a["positions"], a["sequences"], a["block_tables"]
        )


def test_the_arguments_that_the_faults_are_made_from_are_good() -> None:
    a = good()
    rows = [a[name] for name in ("cache", "positions", "sequences", "block_tables")]
    kernels.write_cache(a["k"], a["v"], *rows)
    np.testing.assert_array_equal(kernels.paged_attention(a["q"], *rows, scale=1.0), a["q"])


SHAPES = [(4, 2, 24, 16), (6, 1, 16, 20), (8, 4, 192, 128), (2, 2, 7, 33)]
WINDOWS = [None, 1, 33, 300]


# Every two of a shape, a type and a window.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "e", "dtype", "window"),
    [
        (*shape, DTYPES[j % len(DTYPES)], WINDOWS[(i + j) % len(WINDOWS)])
        for i, shape in enumerate(SHAPES)
        for j in range(len(WINDOWS))
    ],
)
def test_sinks_and_values_of_another_width_attend_as_the_reference_does(
    heads: int, kv_heads: int, d: int, e: int, dtype: Any, window: int | None
) -> None:
    rng = np.random.default_rng(11)
    paged = paged_sequences(rng, LONG[:5], kv_heads, d, dtype, values=e)
    q = rng.normal(0, 1, (len(paged.positions), heads, d)).astype(np.float32)
    sinks = rng.normal(0, 3, heads).astype(np.float32)
    more: dict[str, Any] = {"scale": SCALE, "window": window, "sinks": sinks, "values": e}
    more["value_scale"] = 0.707
    expected = reference.paged_attention(q, *paged.arguments, **more)
    actual = kernels.paged_attention(q, *paged.arguments, **more, threads=2)
    assert actual.shape == (len(q), heads, e)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)

    def attend(rows: np.ndarray, threads: int) -> np.ndarray:
        return kernels.paged_attention(q[rows], *paged.only(rows), **more, threads=threads)

    every = np.arange(len(q))
    alone = np.concatenate([attend(every[row : row + 1], 1) for row in every])
    for threads in (2, 8):
        np.testing.assert_array_equal(bits(attend(every, threads)), bits(alone))


@pytest.mark.parametrize("sink", [-1e38, -1000.0, 1000.0, 1e38])
def test_a_sink_takes_nothing_or_all(sink: float) -> None:
    rng = np.random.default_rng(12)
    paged = paged_sequences(rng, [(300, 4)], 2, 16, np.float16)
    q = queries(rng, paged, 4, 16) / 20
    plain = kernels.paged_attention(q, *paged.arguments, scale=SCALE)
    sinks = np.full(4, sink, np.float32)
    actual = kernels.paged_attention(q, *paged.arguments, scale=SCALE, sinks=sinks)
    np.testing.assert_array_equal(actual, plain if sink < 0 else np.zeros_like(plain))


def test_wrong_sinks_and_widths_are_refused() -> None:
    rng = np.random.default_rng(13)
    paged = paged_sequences(rng, [(30, 4)], 2, 16, np.float16)
    q = queries(rng, paged, 4, 16)
    for more in ({"sinks": np.zeros(3, np.float32)}, {"values": 15}, {"values": 0}):
        with pytest.raises(ValueError, match=r"sinks|block"):
            kernels.paged_attention(q, *paged.arguments, scale=SCALE, **more)
