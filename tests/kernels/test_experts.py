"""The mixture of experts against the reference and against our own separate operations."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits, packed, random_activations, random_raw

from dure import kernels
from dure.kernels import reference

COUNTS = (1, 2, 5, 9, 33, 100)
NUM_EXPERTS = 8
# gate, up and down types, hidden, intermediate.
FLOATS = [
    ("F32", "F32", "F32", 24, 40),
    ("BF16", "BF16", "BF16", 64, 33),
    ("F16", "F32", "F16", 7, 9),
    ("F8G128", "F8G32", "F8G32", 256, 96),
]
QUANTIZED = [
    ("Q4_0", "Q4_0", "Q8_0", 64, 96),
    ("Q4_1", "Q5_0", "Q5_1", 96, 160),
    ("Q4_K", "Q4_K", "Q6_K", 256, 512),
    ("Q2_K", "Q3_K", "Q5_K", 512, 256),
    ("IQ4_XS", "IQ4_XS", "IQ4_NL", 256, 96),
    ("MXFP4", "MXFP4", "MXFP4", 160, 32),
    ("I4G128", "I4G128", "I4G32", 128, 96),
    ("I4G64", "Q4_0", "I4G32", 192, 160),
    ("I8G128", "I8G128", "I8G32", 128, 96),
    ("U8G128", "U8G32", "U8G32", 256, 160),
    ("A4G64", "A8G64", "A4G32", 128, 96),
    ("NV4G128", "NV4G128", "NV4G32", 128, 96),
]
MIXED = [("Q4_0", "Q4_0", "F16", 64, 48), ("F32", "Q8_0", "Q4_1", 32, 64)]


@functools.cache
def mixture_of(layout: Any) -> Mixture:
    """The one mixture of this layout: packing one takes longer than most tests of it."""
    return Mixture(layout)


class Mixture:
    """Experts of random blocks: the kernels' own record, and the parts to compute with by hand."""

    def __init__(self, layout: tuple[str, str, str, int, int], *, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        gate, up, down, self.hidden, self.intermediate = layout
        self.types = {"gate": gate, "up": up, "down": down}
        self.experts = kernels.Experts(NUM_EXPERTS, self.hidden, self.intermediate, gate, up, down)
        self.raw: list[dict[str, np.ndarray]] = []
        for expert in range(NUM_EXPERTS):
            parts = {name: random_raw(rng, t, *self.shape(name)) for name, t in self.types.items()}
            for name, raw in parts.items():
                self.experts.fill(name, expert, raw, threads=2)
            self.raw.append(parts)

    def shape(self, part: str) -> tuple[int, int]:
        """Rows and columns of a part."""
        shape = (self.intermediate, self.hidden)
        return shape[::-1] if part == "down" else shape

    def matrices(self) -> list[reference.ExpertMatrices]:
        """The experts as the reference takes them."""
        return [
            reference.ExpertMatrices(
                **{part: reference.QuantizedMatrix(self.types[part], raw[part]) for part in raw}
            )
            for raw in self.raw
        ]

    def floats(self) -> list[reference.ExpertMatrices]:
        """The experts dequantised."""
        return [
            reference.ExpertMatrices(
                **{part: reference.dequantize(self.types[part], raw[part]) for part in raw}
            )
            for raw in self.raw
        ]


def routes(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Random experts without repeats in a row, some of them never chosen, and their weights."""
    popular = np.array([0, 1, 2, 4, 5, 7])
    ids = np.array([rng.permutation(popular)[:k] for _ in range(n)], np.int32)
    return ids, rng.uniform(0.05, 1, (n, k)).astype(np.float32)


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


def apart(mixture: Mixture, slots: list[int], free: int = 0) -> kernels.Experts:
    """The experts of `mixture`, expert i in slot slots[i] of a buffer with `free` slots more."""
    types = mixture.types.values()
    shape = (NUM_EXPERTS, mixture.hidden, mixture.intermediate)
    experts = kernels.Experts(*shape, *types, resident=False)
    buffer = kernels.ExpertBuffer(NUM_EXPERTS + free, experts.record_bytes)
    for expert, slot in enumerate(slots):
        experts.place(expert, buffer, slot)
        for name, raw in mixture.raw[expert].items():
            experts.fill(name, expert, raw)
    return experts


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("layout", [QUANTIZED[0], MIXED[1]])
def test_experts_give_the_same_bits_wherever_they_lie(layout: Any, exact: bool) -> None:
    mixture = mixture_of(layout)
    rng = np.random.default_rng(3)
    x = random_activations(rng, 20, mixture.hidden)
    ids, weights = routes(rng, 20, 3)
    expected = kernels.experts_mlp(x, ids, weights, mixture.experts, exact=exact)
    slots = [int(slot) for slot in rng.permutation(NUM_EXPERTS + 3)[:NUM_EXPERTS]]
    experts = apart(mixture, slots, free=3)
    actual = kernels.experts_mlp(x, ids, weights, experts, exact=exact)
    np.testing.assert_array_equal(bits(actual), bits(expected))


def test_a_record_that_is_copied_to_another_slot_is_the_same_expert() -> None:
    mixture = mixture_of(QUANTIZED[0])
    rng = np.random.default_rng(3)
    x = random_activations(rng, 20, mixture.hidden)
    ids, weights = routes(rng, 20, 3)
    expected = kernels.experts_mlp(x, ids, weights, mixture.experts)
    experts = apart(mixture, list(range(NUM_EXPERTS)))
    old = kernels.ExpertBuffer(1, experts.record_bytes)
    for expert in range(NUM_EXPERTS):  # each buffer lives as long as an expert lies in it
        new = kernels.ExpertBuffer(1, experts.record_bytes)
        experts.place(expert, old, 0)
        for name, raw in mixture.raw[expert].items():
            experts.fill(name, expert, raw)
        new.slot(0)[:] = old.slot(0)
        experts.place(expert, new, 0)
    old.slot(0)[:] = 0
    del old, new
    actual = kernels.experts_mlp(x, ids, weights, experts)
    np.testing.assert_array_equal(bits(actual), bits(expected))


def test_a_buffer_of_another_size_leaves_an_expert_that_lies_in_it_alone() -> None:
    mixture = mixture_of(QUANTIZED[0])
    rng = np.random.default_rng(3)
    x = random_activations(rng, 20, mixture.hidden)
    ids, weights = routes(rng, 20, 3)
    expected = kernels.experts_mlp(x, ids, weights, mixture.experts)
    experts = apart(mixture, list(range(NUM_EXPERTS)))
    buffer = kernels.ExpertBuffer(1, experts.record_bytes)
    buffer.slot(0)[:] = mixture.experts.record(2)
    experts.place(2, buffer, 0)
    for pages in (9, 3, 700, 1):
        buffer.resize(pages * 4096)
        assert buffer.record_bytes == pages * 4096
        buffer.slot(0)[:] = 255
    actual = kernels.experts_mlp(x, ids, weights, experts)
    np.testing.assert_array_equal(bits(actual), bits(expected))
    with pytest.raises(ValueError, match="whole pages"):
        buffer.resize(4095)
    assert (buffer.slot(0) == 255).all()


def test_an_expert_that_is_not_in_memory_is_an_error_and_no_crash() -> None:
    mixture = mixture_of(QUANTIZED[0])
    x = np.zeros((2, mixture.hidden), np.float32)
    weights = np.ones((2, 1), np.float32)
    experts = apart(mixture, list(range(NUM_EXPERTS)))
    assert all(experts.is_resident(expert) for expert in range(NUM_EXPERTS))
    experts.remove(3)
    assert not experts.is_resident(3)
    kernels.experts_mlp(x, np.array([[0], [7]], np.int32), weights, experts)
    for exact in (False, True):
        with pytest.raises(ValueError, match="expert 3 is not in memory"):
            kernels.experts_mlp(x, np.array([[0], [3]], np.int32), weights, experts, exact=exact)
    with pytest.raises(ValueError, match="expert 3 is not in memory"):
        experts.fill("gate", 3, mixture.raw[3]["gate"])
    with pytest.raises(ValueError, match="expert 3 is not in memory"):
        kernels.FilePacker().add_part(experts, "gate", 3, 0)
    nobody = kernels.Experts(1, 64, 96, "Q4_0", "Q4_0", "Q8_0", resident=False)
    with pytest.raises(ValueError, match="expert 0 is not in memory"):
        kernels.gated_mlp(np.zeros((1, 64), np.float32), nobody)


def test_slots_and_experts_that_are_not_there_are_refused() -> None:
    experts = kernels.Experts(8, 64, 96, "Q4_0", "Q4_0", "Q8_0", resident=False)
    assert experts.record_bytes % 4096 == 0
    assert experts.nbytes == 8 * experts.record_bytes
    buffer = kernels.ExpertBuffer(2, experts.record_bytes)
    assert buffer.slot(1).shape == (experts.record_bytes,)
    with pytest.raises(ValueError, match="slot 2 is not one of 2"):
        buffer.slot(2)
    with pytest.raises(ValueError, match="slot 2 is not one of 2"):
        experts.place(0, buffer, 2)
    with pytest.raises(ValueError, match="no expert 8"):
        experts.place(8, buffer, 0)
    for call in (experts.remove, experts.is_resident):
        with pytest.raises(ValueError, match="no expert -1"):
            call(-1)
    with pytest.raises(ValueError, match="a record takes"):
        experts.place(0, kernels.ExpertBuffer(2, 2 * experts.record_bytes), 0)
    for slots, size in ((0, 4096), (1, 0), (1, 4095), (2**40, 2**20)):
        with pytest.raises(ValueError, match="records"):
            kernels.ExpertBuffer(slots, size)


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
