"""What stands between an expert's matrices: biases, clamps, limits, GELU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits
from kernel_mixtures import FLOATS, MIXED, NUM_EXPERTS, QUANTIZED, Mixture, routes

from dure import kernels
from dure.kernels import reference

CLAMP = (1.702, 0.8)
LIMIT = 0.7


def biased(
    layout: Any, seed: int, *, limited: bool = False
) -> tuple[Mixture, list[Any], list[Any]]:
    """A mixture with biases and the clamp, or a limit, and what the reference takes: as it is, and
    floats.
    """
    mixture, rng = Mixture(layout, seed=seed), np.random.default_rng(seed)
    widths = (mixture.intermediate, mixture.intermediate, mixture.hidden)
    biases = [rng.normal(0, 1, (NUM_EXPERTS, width)).astype(np.float32) for width in widths]
    mixture.experts.add_biases(*biases)
    changes: dict[str, Any] = {"limit": LIMIT} if limited else {"clamp": CLAMP}
    if limited:
        mixture.experts.limit(LIMIT)
    else:
        mixture.experts.clamp(*CLAMP)
    stored, floats = (
        [
            dataclasses.replace(one, biases=(biases[0][i], biases[1][i], biases[2][i]), **changes)
            for i, one in enumerate(experts)
        ]
        for experts in (mixture.matrices(), mixture.floats())
    )
    return mixture, stored, floats


@pytest.mark.parametrize("limited", [False, True], ids=["clamp", "limit"])
@pytest.mark.parametrize("layout", [*FLOATS, QUANTIZED[0], QUANTIZED[5], *MIXED])
def test_biases_and_the_clamp_are_those_of_the_reference(layout: Any, limited: bool) -> None:
    rng = np.random.default_rng(12)
    mixture, _, floats = biased(layout, 12, limited=limited)
    for n, k in ((1, 2), (9, 3), (33, 2)):
        x = rng.normal(0, 1, (n, mixture.hidden)).astype(np.float32)
        ids, weights = routes(rng, n, k)
        expected = reference.experts_mlp(x, ids, weights, floats)
        actual = kernels.experts_mlp(x, ids, weights, mixture.experts, exact=True, threads=2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layout", [*FLOATS, QUANTIZED[0], QUANTIZED[5], *MIXED])
def test_gelu_is_that_of_the_reference(layout: Any) -> None:
    rng = np.random.default_rng(14)
    mixture = Mixture(layout, seed=14)
    mixture.experts.use_gelu()
    floats = [dataclasses.replace(one, gelu=True) for one in mixture.floats()]
    for n, k, spread in ((1, 2, 1.0), (9, 3, 0.01), (33, 2, 30.0)):  # near 0, and far from it
        x = rng.normal(0, spread, (n, mixture.hidden)).astype(np.float32)
        ids, weights = routes(rng, n, k)
        expected = reference.experts_mlp(x, ids, weights, floats)
        actual = kernels.experts_mlp(x, ids, weights, mixture.experts, exact=True, threads=2)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("limited", [False, True], ids=["clamp", "limit"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("layout", [FLOATS[1], QUANTIZED[1], QUANTIZED[5]])
def test_biased_rows_have_the_same_bits_in_any_batch(
    layout: Any, exact: bool, limited: bool
) -> None:
    rng = np.random.default_rng(13)
    mixture, stored, floats = biased(layout, 13, limited=limited)
    x = rng.normal(0, 1, (40, mixture.hidden)).astype(np.float32)
    ids, weights = routes(rng, 40, 3)

    def compute(rows: np.ndarray, threads: int) -> np.ndarray:
        return kernels.experts_mlp(
            x[rows], ids[rows], weights[rows], mixture.experts, exact=exact, threads=threads
        )

    every = np.arange(40)
    alone = np.concatenate([compute(every[row : row + 1], 1) for row in every])
    for threads in (1, 3):
        np.testing.assert_array_equal(bits(compute(every, threads)), bits(alone))
    meant = floats if exact or layout in FLOATS else stored
    expected = reference.experts_mlp(x, ids, weights, meant, exact=exact)
    # An intermediate value on the border of two integers may fall either way: one part in 127.
    np.testing.assert_allclose(alone, expected, rtol=0, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("limited", [False, True], ids=["clamp", "limit"])
def test_a_nan_among_the_gates_shows_through_the_clamp(limited: bool) -> None:
    mixture, _, _ = biased(FLOATS[0], 14, limited=limited)
    x = np.full((1, mixture.hidden), np.nan, np.float32)
    ids, weights = np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)
    assert np.isnan(kernels.experts_mlp(x, ids, weights, mixture.experts)).all()


def test_wrong_biases_are_refused() -> None:
    mixture = Mixture(FLOATS[0])
    inner, outer = (np.zeros((NUM_EXPERTS, w), np.float32) for w in (40, 24))
    for wrong in ((outer, inner, outer), (inner, inner, inner), (inner[:3], inner, outer)):
        with pytest.raises(ValueError, match="biases"):
            mixture.experts.add_biases(*wrong)
    with pytest.raises(ValueError, match="limit"):
        mixture.experts.clamp(1.0, 0.0)
    with pytest.raises(ValueError, match="limit"):
        mixture.experts.limit(-1.0)
