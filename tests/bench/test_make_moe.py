"""bench/make_moe.py: mixtures of noise in the shapes of 2026 are files that dure runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, loaded, prefill_logits, random_sequences

BENCH = Path(__file__).parent.parent.parent / "bench"
MODULES = ("make_moe", "moe_2026", "noise")


@pytest.mark.long  # the layers are as wide as those of the real ones
@pytest.mark.parametrize(
    "make, experts, layers", [("qwen36", 8, 4), ("gpt_oss", 4, 2), ("gemma4", 8, 6)]
)
def test_a_mixture_of_noise_runs(
    make: str, experts: int, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    make_moe, moe_2026, _ = (importlib.import_module(name) for name in MODULES)
    shapes: Any = getattr(moe_2026, make)(experts)
    path = tmp_path / "noise.gguf"
    writer = gguf.GGUFWriter(path, shapes.architecture)
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_layer_norm_rms_eps(1e-6)
    shapes.add_sizes(writer, layers)
    make_moe.write(writer, lambda: shapes.tensors(layers, VOCAB_SIZE))
    logits = prefill_logits(loaded(path, exact=False), random_sequences(20)[0])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
