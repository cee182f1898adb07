"""Pooling in the engine: what becomes of hidden states, however a prompt is cut."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_embedders import pooled

from dure.engine.pooling import Pooler, PoolingParams

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
STATES = np.random.default_rng(1).normal(0, 3, (41, 8)).astype(np.float32)


def result(params: PoolingParams, *cuts: int) -> np.ndarray:
    """The vector of STATES in chunks that end at these positions."""
    pooler, start = Pooler(params, len(STATES)), 0
    for stop in (*cuts, len(STATES)):
        rows = pooler.rows(start, stop - start)
        pooler.add(start, STATES[start:stop][list(rows)])
        start = stop
    return pooler.result()


@pytest.mark.parametrize("skip", [0, 7])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_sentence_transformers_own(mode: str, skip: int) -> None:
    made = result(PoolingParams((mode,), skip))
    assert made.dtype == np.float32
    assert np.allclose(made, pooled(STATES, mode, skip), atol=1e-6)


@pytest.mark.parametrize("skip", [0, 7, 40])
def test_a_vector_has_the_same_bits_however_its_prompt_is_cut(skip: int) -> None:
    params = PoolingParams(MODES, skip)
    whole = result(params).tobytes()
    for cuts in ((1,), (7,), (8, 16, 32), tuple(range(1, 41))):
        assert result(params, *cuts).tobytes() == whole


def test_a_prompt_that_is_begun_again_forgets_what_it_had() -> None:
    params = PoolingParams(MODES, 7)
    pooler = Pooler(params, len(STATES))
    pooler.add(0, STATES[7:20] * 9)
    pooler.add(0, STATES[7:])
    assert pooler.result().tobytes() == result(params).tobytes()


def test_only_rows_that_are_pooled_are_asked_for() -> None:
    last = Pooler(PoolingParams(), 41)
    assert (last.rows(0, 32), last.rows(32, 9)) == ((), (8,))
    assert Pooler(PoolingParams(("mean",), 7), 41).rows(4, 6) == (3, 4, 5)


def test_a_prompt_as_long_as_its_text_leaves_the_last_token() -> None:
    assert np.array_equal(result(PoolingParams(("mean",), 99)), STATES[-1])
