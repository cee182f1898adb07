"""The mixture of experts against the reference and against our own separate operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits, packed, random_activations
from kernel_mixtures import FLOATS, MIXED, NUM_EXPERTS, QUANTIZED, mixture_of, routes

from dure import kernels
from dure.kernels import reference

COUNTS = (1, 2, 5, 9, 33, 100)


@pytest.mark.parametrize("layout", FLOATS + QUANTIZED + MIXED)
def test_exact_experts_are_those_of_the_dequantised_weights(layout: Any) -> None:
    rng = np.random.default_rng(2)
    mixture = mixture_of(layout)
    floats = mixture.floats()
    for n, k in ((1, 2), (9, 3), (33, 2)):
        x = rng.normal(0, 1, (n, mixture.hidden)).astype(np.float32)
        ids, weights = routes(rng, n, k)
        expected = reference.experts_mlp(x, ids, weights, floats)
        actual = kernels.experts_mlp(x, ids, weights, mixture.experts, exact=True, threads=2)
        assert actual.shape == (n, mixture.hidden)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layout", QUANTIZED)
def test_quantised_experts_are_our_own_operations_one_after_another(layout: Any) -> None:
    rng = np.random.default_rng(3)
    mixture = mixture_of(layout)
    parts = [
        {part: packed(mixture.types[part], raw[part], mixture.shape(part)[1]) for part in raw}
        for raw in mixture.raw
    ]
    x = random_activations(rng, 12, mixture.hidden)
    ids, weights = routes(rng, 12, 3)
    expected = np.zeros(x.shape)
    terms = np.zeros(x.shape)
    for row in range(12):
        one = x[row : row + 1]
        for expert, weight in zip(ids[row], weights[row], strict=True):
            part = parts[expert]
            gate, up = kernels.matmul(one, part["gate"]), kernels.matmul(one, part["up"])
            term = kernels.matmul(kernels.silu_mul(gate, up), part["down"])[0] * np.float64(weight)
            expected[row] += term
            terms[row] += np.abs(term)
    actual = kernels.experts_mlp(x, ids, weights, mixture.experts, threads=2)
    # Only the weighted sum of three terms is rounded otherwise.
    assert (np.abs(actual - expected) <= 4 * 2.0**-24 * terms).all()


@pytest.mark.parametrize("layout", QUANTIZED)
def test_quantised_experts_stay_near_the_reference(layout: Any) -> None:
    rng = np.random.default_rng(4)
    mixture = mixture_of(layout)
    x = rng.normal(0, 1, (5, mixture.hidden)).astype(np.float32)
    ids, weights = routes(rng, 5, 2)
    expected = reference.experts_mlp(x, ids, weights, mixture.matrices())
    actual = kernels.experts_mlp(x, ids, weights, mixture.experts)
    # An intermediate value on the border of two integers may fall either way: one part in 127.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("layout", [FLOATS[0], *QUANTIZED, MIXED[0]])
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(
    layout: Any, exact: bool
) -> None:
    rng = np.random.default_rng(5)
    mixture = mixture_of(layout)
    x = random_activations(rng, 100, mixture.hidden)
    ids, weights = routes(rng, 100, 3)

    def run(rows: np.ndarray, threads: int = 1) -> np.ndarray:
        return kernels.experts_mlp(
            x[rows], ids[rows], weights[rows], mixture.experts, exact=exact, threads=threads
        )

    alone = np.concatenate([run(np.array([row])) for row in range(100)])
    for n in COUNTS:
        for threads in (1, 2, 3) if n in (1, 9, 100) else (1,):
            np.testing.assert_array_equal(bits(run(np.arange(n), threads)), bits(alone[:n]))
    shuffled = rng.permutation(100)
    np.testing.assert_array_equal(bits(run(shuffled, 2)), bits(alone[shuffled]))


@pytest.mark.parametrize(
    ("layout", "rows", "exact"),
    [(QUANTIZED[3], 1500, False), (QUANTIZED[1], 7300, False), (FLOATS[0], 30000, True)],
)
def test_many_rows_are_added_up_by_columns_with_the_same_bits(
    layout: Any, rows: int, exact: bool
) -> None:
    # More than 8 MB of products: 448 and 64 columns of 512; 64 and 32 of 96; 24, which is below 64.
    mixture = mixture_of(layout)
    rng = np.random.default_rng(6)
    x = random_activations(rng, 100, mixture.hidden)[rng.integers(0, 100, rows)]
    ids, weights = routes(rng, rows, 3)
    add = random_activations(rng, rows, mixture.hidden)

    def run(part: slice) -> np.ndarray:
        return kernels.experts_mlp(
            x[part],
            ids[part],
            weights[part],
            mixture.experts,
            add=add[part],
            exact=exact,
            threads=2,
        )

    parts = np.concatenate([run(slice(start, start + 1000)) for start in range(0, rows, 1000)])
    np.testing.assert_array_equal(bits(run(slice(None))), bits(parts))


def test_all_rows_may_go_to_one_expert_and_to_all_of_them() -> None:
    rng = np.random.default_rng(6)
    mixture = mixture_of(QUANTIZED[0])
    x = random_activations(rng, 20, mixture.hidden)
    one = np.full((20, 1), 3, np.int32)
    weights = np.ones((20, 1), np.float32)
    raw = mixture.raw[3]
    part = {name: packed(mixture.types[name], raw[name], mixture.shape(name)[1]) for name in raw}
    inner = kernels.silu_mul(kernels.matmul(x, part["gate"]), kernels.matmul(x, part["up"]))
    expected = kernels.matmul(inner, part["down"])
    actual = kernels.experts_mlp(x, one, weights, mixture.experts)
    np.testing.assert_array_equal(bits(actual), bits(expected))

    everyone = np.tile(np.arange(NUM_EXPERTS, dtype=np.int32), (20, 1))
    shares = np.zeros((20, NUM_EXPERTS), np.float32)
    shares[:, 3] = 1
    actual = kernels.experts_mlp(x, everyone, shares, mixture.experts)
    np.testing.assert_array_equal(actual, expected)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    rng = np.random.default_rng(7)
    for layout in (FLOATS[0], QUANTIZED[2]):
        mixture = mixture_of(layout)
        x = random_activations(rng, 9, mixture.hidden)
        ids, weights = routes(rng, 9, 2)
        expected = kernels.experts_mlp(x, ids, weights, mixture.experts)
        x[4, 5] = np.nan
        actual = kernels.experts_mlp(x, ids, weights, mixture.experts)
        others = np.arange(9) != 4
        np.testing.assert_array_equal(bits(actual[others]), bits(expected[others]))
        assert np.isnan(actual[4]).all()


def test_no_rows_give_no_rows() -> None:
    mixture = mixture_of(QUANTIZED[0])
    none = np.zeros((0, 2))
    x = np.zeros((0, mixture.hidden), np.float32)
    actual = kernels.experts_mlp(x, none.astype(np.int32), none.astype(np.float32), mixture.experts)
    assert actual.shape == (0, mixture.hidden)


@pytest.mark.parametrize(
    ("x", "ids", "weights"),
    [
        (np.zeros((2, 32), np.float32), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.float64), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((1, 2), np.int32), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 2), np.int32), np.zeros((2, 3), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.float32), np.full((2, 2), 8, np.int32), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.float32), np.full((2, 2), -1, np.int32), np.ones((2, 2), np.float32)),
        (np.zeros((4, 64), np.float32)[::2], np.zeros((2, 2), np.int32), np.ones((2, 2), "f4")),
    ],
)
def test_rows_or_experts_that_do_not_fit_are_refused(
    x: np.ndarray, ids: np.ndarray, weights: np.ndarray
) -> None:
    mixture = mixture_of(QUANTIZED[0])
    with pytest.raises((TypeError, ValueError)):
        kernels.experts_mlp(x, ids, weights, mixture.experts)


@pytest.mark.parametrize(
    ("part", "expert", "shape"),
    [
        ("gate", 8, (96, 36)),
        ("gate", -1, (96, 36)),
        ("gate", 2**31 - 1, (96, 36)),
        ("router", 0, (96, 36)),
        ("gate", 0, (95, 36)),
        ("gate", 0, (112, 36)),
        ("gate", 0, (17, 36)),
        ("gate", 0, (96, 35)),
        ("down", 0, (96, 36)),
    ],
)
def test_a_part_that_does_not_fit_its_expert_is_refused(
    part: str, expert: int, shape: tuple[int, int]
) -> None:
    experts = kernels.Experts(8, 64, 96, "Q4_0", "Q4_0", "Q8_0")
    with pytest.raises((TypeError, ValueError)):
        experts.fill(part, expert, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("count", "hidden", "intermediate", "dtype"),
    [
        (0, 64, 96, "Q4_0"),
        (-1, 64, 96, "Q4_0"),
        (8, 63, 96, "Q4_0"),
        (8, 64, 95, "Q4_0"),
        (8, 0, 96, "Q4_0"),
        (8, 64, 0, "Q4_0"),
        (8, 64, 96, "Q4_K"),
        (8, 64, 96, "Q9_9"),
        (65536, 2**24, 2**24, "F32"),  # 2^67.6 bytes: more than an address can say
    ],
)
def test_experts_of_impossible_type_or_size_are_refused(
    count: int, hidden: int, intermediate: int, dtype: str
) -> None:
    with pytest.raises((TypeError, ValueError, MemoryError)):
        kernels.Experts(count, hidden, intermediate, dtype, dtype, dtype)
