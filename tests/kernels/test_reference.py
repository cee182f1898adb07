"""The numpy reference itself, against torch and against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from kernel_inputs import paged_sequences, random_activations, random_raw
from torch.nn import functional

from dure.kernels import reference
from dure.kernels.dequantize import QUANTIZED_TYPES, block_size


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The array as a float64 tensor."""
    return torch.from_numpy(array.astype(np.float64))


def test_a_fused_multiply_add_rounds_the_exact_result_once() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (2, 3000)).astype(np.float32)
    c = (-a * b).astype(np.float32)  # leaves the lowest bits only, where a second rounding shows
    c[::3] = rng.normal(0, 1, 1000).astype(np.float32) * np.float32(2.0) ** rng.integers(-60, 60)
    c[1::3] *= np.float32(2.0) ** rng.integers(-30, 30, 1000)

    actual = reference._fused_multiply_add(a, b, c)

    for i in range(3000):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        assert nearest_float32(exact) == actual[i]


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 nearest to an exact value, ties to even."""
    guess = np.float32(float(value))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - value), f.view(np.uint32) & 1))


@pytest.mark.parametrize("dtype", QUANTIZED_TYPES)
def test_the_integer_product_stays_close_to_the_exact_one(dtype: str) -> None:
    rng = np.random.default_rng(2)
    cols = 2 * block_size(dtype)
    w = reference.QuantizedMatrix(dtype, random_raw(rng, dtype, 9, cols))
    x = random_activations(rng, 5, cols)
    weights = reference.dequantize(dtype, w.raw)
    # An activation is at most half a step, amax / 254, off; the step is its own block's.
    steps = np.abs(x).reshape(5, -1, 32).max(axis=-1).repeat(32, axis=1) / 254

    difference = np.abs(reference.matmul(x, w) - x @ weights.T)

    assert (difference <= 1.001 * steps @ np.abs(weights).T + 1e-5).all()


def test_quantised_rows_come_back_within_half_a_step() -> None:
    x = random_activations(np.random.default_rng(3), 7, 96)
    values, scales = reference.quantize_rows(x)
    assert values.dtype == np.int8
    assert values.min() >= -127
    error = np.abs(values.reshape(7, 3, 32) * scales[..., None] - x.reshape(7, 3, 32))
    assert (error <= 0.5001 * scales[..., None]).all()


@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_attention_is_that_of_torch(window: int | None) -> None:
    rng = np.random.default_rng(4)
    heads, kv_heads, d, scale = 6, 2, 16, 0.2
    paged = paged_sequences(rng, [(0, 37), (69, 1), (3, 4)], kv_heads, d, np.float32)
    q = rng.normal(0, 1, (len(paged.positions), heads, d)).astype(np.float32)

    actual = reference.paged_attention(q, *paged.arguments, scale=scale, window=window)

    for sequence, (k, v) in enumerate(paged.histories):
        rows = np.flatnonzero(paged.sequences == sequence)
        keys = np.arange(len(k))
        at = paged.positions[rows, None]
        mask = (keys <= at) & (keys > at - (window or 10**6))
        expected = functional.scaled_dot_product_attention(
            as_torch(q[rows]).transpose(0, 1),
            as_torch(k).transpose(0, 1),
            as_torch(v).transpose(0, 1),
            attn_mask=torch.from_numpy(mask),
            scale=scale,
            enable_gqa=True,
        )
        np.testing.assert_allclose(actual[rows], expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_rms_norm_and_silu_are_those_of_torch() -> None:
    rng = np.random.default_rng(5)
    x, up = rng.normal(0, 3, (2, 4, 50)).astype(np.float32)
    weight = rng.normal(1, 0.2, 50).astype(np.float32)
    normed = functional.rms_norm(as_torch(x), (50,), as_torch(weight), 1e-5)
    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-5), normed, rtol=1e-6)
    gated = functional.silu(as_torch(x)) * as_torch(up)
    np.testing.assert_allclose(reference.silu_mul(x, up), gated, rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_each_pair_as_a_complex_number(interleaved: bool) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(0, 1, (3, 2, 12)).astype(np.float32)
    angles = rng.uniform(-9, 9, (3, 4))
    turned = x.copy()
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    reference.rope(turned, cos, sin, interleaved=interleaved)
    real, imaginary = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(4), slice(4, 8))
    expected = (x[..., real] + 1j * x[..., imaginary]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(turned[..., real], expected.real, atol=1e-6)
    np.testing.assert_allclose(turned[..., imaginary], expected.imag, atol=1e-6)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_routes_are_the_top_scores_of_torch(score: str) -> None:
    logits = np.random.default_rng(7).normal(0, 2, (20, 32)).astype(np.float32)
    ids, weights = reference.route(logits, top_k=5, normalize=False, score=score)
    scores = as_torch(logits).softmax(-1) if score == "softmax" else as_torch(logits).sigmoid()
    expected = scores.topk(5, dim=-1)
    np.testing.assert_array_equal(ids, expected.indices)
    np.testing.assert_allclose(weights, expected.values, rtol=1e-6)
    _, normalized = reference.route(logits, top_k=5, normalize=True, score=score)
    np.testing.assert_allclose(normalized.sum(axis=1), 1, rtol=1e-6)
