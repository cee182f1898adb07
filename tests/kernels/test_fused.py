"""Operations that do the work of several: the same bits as the several, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_inputs import packed, paged_sequences, random_activations, random_raw

from dure import kernels
from dure.kernels import reference

BAD = (TypeError, ValueError)
COLS, EPS = 256, 1e-5
ROW_COUNTS = (1, 2, 5, 8, 9, 130)
SPANS = [(0, 40), (70, 33), (31, 1), (200, 1), (5, 2)]


def matrices(*dtypes: str) -> list[kernels.Matrix]:
    rng = np.random.default_rng(2)
    return [
        packed(dtype, random_raw(rng, dtype, 20 + 17 * index, COLS), COLS)
        for index, dtype in enumerate(dtypes)
    ]


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether they are the same in every bit, NaN included."""
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and left.tobytes() == right.tobytes()


def rows_and_norm(n: int, cols: int = COLS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return random_activations(rng, n, cols), rng.normal(1, 0.3, cols).astype(np.float32)


@pytest.mark.parametrize("n", ROW_COUNTS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_matrices_of_any_types_together_are_each_by_itself(
    n: int, exact: bool, threads: int
) -> None:
    x, _ = rows_and_norm(n)
    weights = matrices("Q4_K", "F16", "Q6_K", "F32", "Q5_0")
    biases = [None, *(np.random.default_rng(w.rows).normal(0, 1, w.rows) for w in weights[1:])]
    biases = [None if bias is None else bias.astype(np.float32) for bias in biases]
    together = kernels.matmuls(x, weights, biases=biases, exact=exact, threads=threads)
    for result, w, bias in zip(together, weights, biases, strict=True):
        assert same(result, kernels.matmul(x, w, bias=bias, exact=exact))


@pytest.mark.parametrize("dtype", ["Q4_K", "F16"])
@pytest.mark.parametrize("n", ROW_COUNTS)
def test_a_residual_is_added_after_the_bias(n: int, dtype: str) -> None:
    (w,) = matrices(dtype)
    rng = np.random.default_rng(n)
    bias, add = (rng.normal(0, 9, s).astype(np.float32) for s in (w.rows, (n, w.rows)))
    x, _ = rows_and_norm(n)
    expected = add + kernels.matmul(x, w, bias=bias)
    assert same(kernels.matmul(x, w, bias=bias, add=add, threads=2), expected)


@pytest.mark.parametrize("n", ROW_COUNTS)
@pytest.mark.parametrize("first", ["floats", "Q4_K", "F32"])
def test_normed_rows_are_what_rms_norm_gives_whoever_asks_first(n: int, first: str) -> None:
    x, norm = rows_and_norm(n)
    plain = kernels.rms_norm(x, norm, EPS)
    normed = kernels.Activations(x, norm, EPS)
    assert normed.shape == x.shape
    for dtype in (first, "floats", "F32", "Q4_K", "Q6_K"):
        if dtype == "floats":
            assert same(normed.floats(2), plain)
        else:
            (w,) = matrices(dtype)
            assert same(kernels.matmul(normed, w, threads=2), kernels.matmul(plain, w))


@pytest.mark.parametrize("normed", [False, True])
def test_some_of_the_rows_are_those_rows(normed: bool) -> None:
    x, norm = rows_and_norm(9)
    rows = np.array([7, 0, 7, 3], np.int32)
    every = kernels.Activations(x, norm, EPS) if normed else kernels.Activations(x)
    assert same(every.take(rows).floats(1), every.floats(1)[rows])
    for wrong in ([9], [-1]):
        with pytest.raises(ValueError, match="is not one of 9"):
            every.take(np.array(wrong, np.int32))


@pytest.mark.parametrize(("gate", "down"), [("Q4_K", "Q6_K"), ("F16", "F16")])
@pytest.mark.parametrize("n", ROW_COUNTS)
def test_a_gated_mlp_is_a_mixture_of_one(n: int, gate: str, down: str) -> None:
    rng = np.random.default_rng(5)
    expert = kernels.Experts(1, COLS, 512, gate, gate, down)
    expert.fill("gate", 0, random_raw(rng, gate, 512, COLS))
    expert.fill("up", 0, random_raw(rng, gate, 512, COLS))
    expert.fill("down", 0, random_raw(rng, down, COLS, 512))
    x, _ = rows_and_norm(n)
    ids, ones = np.zeros((n, 1), np.int32), np.ones((n, 1), np.float32)
    expected = kernels.experts_mlp(x, ids, ones, expert)
    assert same(kernels.gated_mlp(x, expert, threads=2), expected)
    add = rng.normal(0, 9, x.shape).astype(np.float32)
    assert same(kernels.gated_mlp(x, expert, add=add, threads=2), add + expected)
    assert same(kernels.experts_mlp(x, ids, ones, expert, add=add), add + expected)


ATTENDS: list[dict[str, Any]] = [
    {},
    {"rotation": 16},
    {"rotation": 6, "interleaved": True, "window": 40},
    {"rotation": 16, "norms": True, "eps": EPS},
    {"rotation": 16, "norms": True, "eps": EPS, "norm_last": True},
    {"rotation": 16, "window": 40, "sinks": np.arange(6, dtype=np.float32), "value_scale": 0.7},
]


def attend_inputs(settings: dict[str, Any], rows: np.ndarray | None) -> tuple[Any, ...]:
    """(q, k, v, the paged cache, keywords): 6 heads on 2, of 40."""
    rng = np.random.default_rng(6)
    paged = paged_sequences(rng, SPANS, 2, 40, np.float32)
    n = len(paged.positions)
    q = rng.normal(0, 1, (n if rows is None else len(rows), 240)).astype(np.float32)
    k, v = rng.normal(0, 1, (2, n, 80)).astype(np.float32)
    settings = {"scale": 0.2, "chosen": rows, **settings}
    if "rotation" in settings:
        angles = rng.uniform(-9, 9, (n, settings["rotation"]))
        settings["rotation"] = np.cos(angles).astype("f4"), np.sin(angles).astype("f4")
    if "norms" in settings:
        settings["norms"] = tuple(rng.normal(1, 0.2, (2, 40)).astype(np.float32))
    return q, k, v, paged, settings


@pytest.mark.parametrize("settings", ATTENDS)
@pytest.mark.parametrize("rows", [None, [0, 39, 40, 74, 76], [76, 3, 3], []])
def test_attend_is_norm_rotation_cache_and_attention(
    settings: dict[str, Any], rows: list[int] | None
) -> None:
    chosen = None if rows is None else np.array(rows, np.int32)
    q, k, v, paged, settings = attend_inputs(settings, chosen)
    which = np.arange(len(k)) if chosen is None else chosen
    heads = [x.copy().reshape(len(x), x.shape[1] // 40, 40) for x in (q, k, v)]
    angles = settings.get("rotation")

    def norm() -> None:
        for index, weight in enumerate(settings.get("norms", ())):
            heads[index] = kernels.rms_norm(heads[index], weight, EPS)

    if not settings.get("norm_last"):
        norm()
    for x, of in ((heads[0], which), (heads[1], np.arange(len(k)))):
        if angles:
            cos_sin = [np.ascontiguousarray(angle[of]) for angle in angles]
            kernels.rope(x, *cos_sin, interleaved=settings.get("interleaved", False))
    if settings.get("norm_last"):
        norm()
    cache = paged.cache.copy()
    kernels.write_cache(heads[1], heads[2], cache, *paged.arguments[1:])
    expected = kernels.paged_attention(
        heads[0],
        cache,
        *paged.only(which)[1:],
        scale=0.2,
        window=settings.get("window"),
        sinks=settings.get("sinks"),
        value_scale=settings.get("value_scale", 1.0),
    )
    twin = reference.rope_cache_attention(
        q.copy(), k.copy(), v, paged.cache.copy(), *paged.arguments[1:], **settings
    )

    out = kernels.rope_cache_attention(q, k, v, *paged.arguments, **settings, threads=3)

    assert same(out, expected.reshape(len(q), 240))
    assert same(paged.cache, cache)
    np.testing.assert_allclose(out, twin, rtol=0, atol=2e-5)


LAYERS = [
    (["Q4_K", "Q4_K", "Q6_K", "F16"], False),
    (["Q8_0", "F16", "Q8_0", "F32"], False),
    (["Q8_0", "Q5_0", "Q4_0", "F16"], True),
]


@pytest.mark.parametrize("settings", ATTENDS)
@pytest.mark.parametrize(("dtypes", "exact"), LAYERS)
@pytest.mark.parametrize("rows", [None, [0, 39, 40, 74, 76], [76, 3, 3]])
def test_a_layers_attention_is_its_projections_and_attend(
    settings: dict[str, Any], dtypes: list[str], exact: bool, rows: list[int] | None
) -> None:
    rng = np.random.default_rng(7)
    chosen = None if rows is None else np.array(rows, np.int32)
    *_, paged, settings = attend_inputs(settings, chosen)
    shapes = [(240, COLS), (80, COLS), (80, COLS), (COLS, 240)]
    weights = [
        packed(dtype, random_raw(rng, dtype, *shape), shape[1])
        for dtype, shape in zip(dtypes, shapes, strict=True)
    ]
    biases = [rng.normal(0, 1, shape[0]).astype(np.float32) for shape in shapes[:3]]
    x, norm = rows_and_norm(len(paged.positions))
    add = rng.normal(0, 9, (len(x) if rows is None else len(rows), COLS)).astype(np.float32)
    cos, sin = settings.get("rotation") or (None, None)
    q_norm, k_norm = settings.get("norms") or (None, None)
    cache = paged.cache.copy()
    layer = kernels.AttentionLayerKernel(
        weights=[w.packed for w in weights],
        biases=[*biases, None],
        head_dim=40,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=EPS,
        norm_last=settings.get("norm_last", False),
        interleaved=settings.get("interleaved", False),
        scale=settings["scale"],
        window=settings.get("window") or 0,
        sinks=settings.get("sinks"),
        value_scale=settings.get("value_scale", 1.0),
        exact=exact,
        threads=2,
    )
    normed = kernels.Activations(x, norm, EPS)
    asking = normed if chosen is None else normed.take(chosen)
    (q,) = kernels.matmuls(asking, weights[:1], biases=biases[:1], exact=exact)
    k, v = kernels.matmuls(normed, weights[1:3], biases=biases[1:], exact=exact)
    attended = kernels.rope_cache_attention(q, k, v, cache, *paged.arguments[1:], **settings)
    expected = kernels.matmul(attended, weights[3], add=add, exact=exact)

    out = layer(kernels.Activations(x, norm, EPS), *paged.arguments, chosen, cos, sin, add)

    assert same(out, expected)
    assert same(paged.cache, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"q": np.zeros((77, 200), np.float32)},  # not a multiple of the keys' columns
        {"q": np.zeros((76, 240), np.float32)},
        {"k": np.zeros((77, 81), np.float32)},
        {"v": np.zeros((77, 40), np.float32)},
        {"chosen": np.array([77], np.int32), "q": np.zeros((1, 240), np.float32)},
        {"chosen": np.array([-1], np.int32), "q": np.zeros((1, 240), np.float32)},
        {"rotation": (np.zeros((76, 4), np.float32), np.zeros((76, 4), np.float32))},
        {"rotation": (np.zeros((77, 4), np.float32), np.zeros((77, 5), np.float32))},
        {"rotation": (np.zeros((77, 21), np.float32), np.zeros((77, 21), np.float32))},
        {"norms": (np.zeros(40, np.float32), np.zeros(41, np.float32))},
        {"positions": np.zeros(76, np.int32)},
        {"positions": np.full(77, -1, np.int32)},
        {"window": 0},
        {"threads": 0},
    ],
)
def test_attend_refuses_what_does_not_fit(changes: dict[str, Any]) -> None:
    q, k, v, paged, settings = attend_inputs({}, None)
    assert len(k) == 77
    names = ("cache", "positions", "sequences", "block_tables")
    arguments = dict(zip(names, paged.arguments, strict=True))
    with pytest.raises(BAD):
        kernels.rope_cache_attention(**{"q": q, "k": k, "v": v, **arguments, **settings, **changes})


@pytest.mark.parametrize("add", [np.zeros((3, 20), "f4"), np.zeros((2, 21), "f4"), np.zeros(20)])
def test_a_residual_of_another_shape_is_refused(add: np.ndarray) -> None:
    (w,) = matrices("Q4_K")
    with pytest.raises(BAD):
        kernels.matmul(rows_and_norm(2)[0], w, add=add)
