"""Attention over a latent cache, and products by head, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits, columns, packed, paged_latents, random_activations, random_raw
from numpy.typing import DTypeLike

from dure import kernels
from dure.kernels import latent_reference, reference
from dure.kernels.dequantize import LAYOUTS

SPANS = [(0, 70), (100, 1), (40, 5), (600, 9), (0, 1)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
@pytest.mark.parametrize(
    ("heads", "latent", "rotated"),
    [(16, 512, 64), (4, 16, 8), (1, 48, 2), (128, 32, 64), (5, 64, 0), (24, 32, 20)],
)
def test_what_queries_gather_is_the_references(
    heads: int, latent: int, rotated: int, dtype: DTypeLike
) -> None:
    rng = np.random.default_rng(1)
    paged = paged_latents(rng, SPANS, latent, rotated, dtype)
    q = rng.normal(0, 1, (len(paged.positions), heads, latent + rotated)).astype(np.float32)
    options: dict[str, Any] = {"latent": latent, "scale": (latent + rotated) ** -0.5}
    everything = paged.only(slice(None))
    expected = latent_reference.latent_attention(q, *everything, **options)
    actual = kernels.latent_attention(q, *everything, **options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-6)
    for threads in (2, 5):
        again = kernels.latent_attention(q, *everything, **options, threads=threads)
        np.testing.assert_array_equal(bits(actual), bits(again))
    for row in range(0, len(q), 7):
        rows = slice(row, row + 1)
        alone = kernels.latent_attention(q[rows], *paged.only(rows), **options)
        np.testing.assert_array_equal(bits(actual[rows]), bits(alone))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_entries_lie_token_by_token(dtype: DTypeLike) -> None:
    rng = np.random.default_rng(2)
    latent, rotated = (rng.normal(0, 9, (40, size)).astype(np.float32) for size in (16, 6))
    latent[3] = 1e-7  # subnormal in float16
    positions, sequences = np.arange(40, dtype=np.int32), np.zeros(40, np.int32)
    tables = np.array([[2, 0]], np.int32)
    ours, theirs = (np.zeros((3, 1, 32 * 22), dtype) for _ in range(2))
    kernels.write_latent(latent, rotated, ours, positions, sequences, tables)
    latent_reference.write_latent(latent, rotated, theirs, positions, sequences, tables)
    np.testing.assert_array_equal(ours, theirs)
    assert ours[2, 0, :16].tolist() == latent[0].astype(dtype).tolist()


def test_entries_of_bytes_have_a_scale_for_32_columns() -> None:
    """A group may hold the latent's end and what is rotated."""
    rng = np.random.default_rng(5)
    latent, rotated = (rng.normal(0, 9, (40, size)).astype(np.float32) for size in (48, 22))
    latent[3] = 0
    positions, sequences = np.arange(40, dtype=np.int32), np.zeros(40, np.int32)
    tables = np.array([[2, 0]], np.int32)
    ours, theirs = (np.zeros((3, 1, 32 * (70 + 12)), np.uint8) for _ in range(2))
    kernels.write_latent(latent, rotated, ours, positions, sequences, tables)
    latent_reference.write_latent(latent, rotated, theirs, positions, sequences, tables)
    np.testing.assert_array_equal(ours, theirs)
    scales = ours[2, 0, 32 * 70 :].view(np.float32).reshape(3, 32)
    assert scales[0, 3] == 0
    entry = np.concatenate([latent[5], rotated[5]])
    read = ours[2, 0, 5 * 70 : 6 * 70].view(np.int8) * np.repeat(scales[:, 5], 32)[:70]
    assert np.abs(read - entry).max() <= np.abs(entry).max() / 254 * 1.001


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", LAYOUTS)
def test_every_head_is_multiplied_by_its_own_rows(dtype: str, exact: bool) -> None:
    rng = np.random.default_rng(3)
    cols, heads, period, first, outputs = columns(dtype)[0], 3, 64, 16, 40
    raw = random_raw(rng, dtype, heads * period, cols)
    w = packed(dtype, raw, cols)
    x = random_activations(rng, 9 * heads, cols + 24)[:, : cols + 24].reshape(9, heads, -1)
    x = np.ascontiguousarray(x)
    actual = kernels.head_matmul(x, w, first=first, outputs=outputs, exact=exact, room=50)
    assert actual.shape == (9, heads, 50)
    for head in range(heads):
        rows = raw[head * period + first :][:outputs]
        own = np.ascontiguousarray(x[:, head, :cols])
        expected = kernels.matmul(own, packed(dtype, rows, cols), exact=exact)
        np.testing.assert_array_equal(bits(expected), bits(actual[:, head, :outputs]))
    options: dict[str, Any] = {"first": first, "outputs": outputs, "exact": exact}
    for threads in (2, 5):
        again = kernels.head_matmul(x, w, **options, threads=threads)
        np.testing.assert_array_equal(bits(again), bits(actual[..., :outputs]))
    alone = kernels.head_matmul(x[4:5], w, **options)
    np.testing.assert_array_equal(bits(alone), bits(actual[4:5, :, :outputs]))
    assert kernels.head_matmul(x[:0], w, **options).shape == (0, heads, outputs)


def test_products_by_head_are_the_references() -> None:
    rng = np.random.default_rng(4)
    raw = random_raw(rng, "Q8_0", 96, 64)
    x = rng.normal(0, 1, (5, 3, 70)).astype(np.float32)
    w = reference.QuantizedMatrix("Q8_0", raw)
    expected = latent_reference.head_matmul(x, w, first=16, outputs=16)
    actual = kernels.head_matmul(x, packed("Q8_0", raw, 64), first=16, outputs=16)
    np.testing.assert_array_equal(bits(expected), bits(actual))


@pytest.mark.parametrize(
    "options",
    [{"latent": 24}, {"latent": 0}, {"latent": 64}, {"latent": -16}, {"latent": 16, "threads": 0}],
    ids=str,
)
def test_latents_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    one = np.zeros(1, np.int32)
    q = np.zeros((1, 2, 40), np.float32)
    cache = np.zeros((1, 1, 32 * 40), np.float16)
    with pytest.raises((ValueError, TypeError)):
        kernels.latent_attention(q, cache, one, one, one[None], scale=1.0, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": 17},
        {"outputs": 0},
        {"outputs": 16, "first": 8},
        {"outputs": 16, "first": 32},
        {"outputs": 16, "first": -16},
        {"outputs": 16, "room": 8},
    ],
    ids=str,
)
def test_heads_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    w = packed("F32", np.zeros((48, 128), np.uint8), 32)
    x = np.zeros((2, 3, 32), np.float32)
    assert kernels.head_matmul(x, w, outputs=16).shape == (2, 3, 16)
    with pytest.raises(ValueError, match=r"head|room"):
        kernels.head_matmul(x, w, **options)
    with pytest.raises(ValueError, match="columns"):
        kernels.head_matmul(x[..., :16].copy(), w, outputs=16)
