"""Experts live where their pool says: another kind of pool changes no layer and no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_gguf import config_of, parameters_of, write_folder
from tiny_models import prefill_logits

from dure import kernels
from dure.formats.checkpoint import open_checkpoint
from dure.models import family_of, load_model, read_config
from dure.weights.expert_pool import ExpertPool, Work
from dure.weights.loader import Weights

TOKENS = np.arange(3, 40)


class FewSlots(ExpertPool):
    """Keeps records beside the model and brings those of a product into as few slots as it needs:
    what a pool that reads from disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.away: dict[int, list[np.ndarray]] = {}
        self.begun = self.most = 0

    def send_away(self) -> None:
        """Copy every record out of memory, once everything is packed."""
        for experts in self._sets:
            self.away[id(experts)] = [experts.record(e).copy() for e in range(experts.count)]
            for expert in range(experts.count):
                experts.remove(expert)

    def begin(
        self, experts: kernels.Experts, ids: np.ndarray, x: np.ndarray, scores: np.ndarray
    ) -> Work:
        """Bring the experts into slots in falling order, and forget all others."""
        for expert in range(experts.count):
            experts.remove(expert)
        wanted = np.unique(ids)[::-1].tolist()
        buffer = kernels.ExpertBuffer(len(wanted), experts.record_bytes)
        for slot, expert in enumerate(wanted):
            buffer.slot(slot)[:] = self.away[id(experts)][expert]
            experts.place(expert, buffer, slot)
        self.begun, self.most = self.begun + 1, max(self.most, len(wanted))
        return super().begin(experts, ids, x, scores)


def test_a_pool_that_brings_experts_for_each_product_changes_no_bit(tmp_path: Path) -> None:
    config = config_of("qwen3_moe")
    folder = write_folder(tmp_path, config, parameters_of(config))
    for quantize in (None, "q4"):
        checkpoint = open_checkpoint(folder)
        expected = prefill_logits(load_model(checkpoint, quantize=quantize), TOKENS)
        pool = FewSlots()
        weights = Weights(checkpoint, quantize=quantize, expert_pool=pool)
        model = family_of(checkpoint).Model(read_config(checkpoint), weights)
        weights.finish()
        pool.send_away()
        assert prefill_logits(model, TOKENS).tobytes() == expected.tobytes()
        one_by_one = prefill_logits(model, TOKENS[:1])
        assert one_by_one.tobytes() == expected[:1].tobytes()
        assert pool.begun == 2 * config["num_hidden_layers"]
        assert 3 < pool.most <= 8


def test_the_pool_of_all_experts_says_how_much_memory_they_take() -> None:
    pool = ExpertPool()
    one = pool.add(8, 64, 96, "Q4_0", "Q4_0", "Q8_0")
    two = pool.add(4, 256, 64, "F32", "F32", "F32")
    assert pool.nbytes == one.nbytes + two.nbytes
    assert one.nbytes == 8 * one.record_bytes
    parts = [kernels.packed_bytes("Q4_0", 96, 64)] * 2 + [kernels.packed_bytes("Q8_0", 64, 96)]
    assert sum(parts) <= one.record_bytes < sum(parts) + 4096
    assert all(one.is_resident(expert) for expert in range(one.count))
    assert pool.stats is None and pool.take_failures() == []
