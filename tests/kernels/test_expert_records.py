"""Where experts lie: records in slots of buffers, and experts that are not in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_inputs import bits, random_activations
from kernel_mixtures import MIXED, NUM_EXPERTS, QUANTIZED, Mixture, mixture_of, routes

from dure import kernels


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
