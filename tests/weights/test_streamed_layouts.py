"""Experts of every layout are read from disk when they are needed, and change no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packed_mixtures import LAYOUTS, gguf_mixture, mixture
from tiny_models import prefill_logits, random_sequences

from dure.convert.folder import pack_folder
from dure.formats.checkpoint import open_checkpoint
from dure.models import load_model
from dure.weights.streaming_pool import StreamingExpertPool

TOKENS = random_sequences(40, seed=1)[0]


def check_streamed(path: Path, **options: Any) -> None:
    """Compare the logits under the smallest cache with those of the whole model in memory."""
    checkpoint = open_checkpoint(path)
    expected = prefill_logits(load_model(checkpoint, threads=2, **options), TOKENS)
    pool = StreamingExpertPool()
    model = load_model(checkpoint, threads=2, expert_pool=pool, **options)
    pool.open(pool.least_bytes, rows=len(TOKENS))
    for _ in range(2):
        assert prefill_logits(model, TOKENS).tobytes() == expected.tobytes()
    assert pool.stats.misses > 0
    assert not pool.take_failures()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_each_layout(tmp_path: Path, layout: str) -> None:
    check_streamed(mixture(tmp_path / "in", layout))


@pytest.mark.parametrize("layout", ["bfloat16", "fp8", "gptq desc_act"])
def test_what_is_quantised_on_the_way(tmp_path: Path, layout: str) -> None:
    check_streamed(mixture(tmp_path / "in", layout), quantize="q4")


@pytest.mark.parametrize("layout", ["bfloat16", "gptq desc_act", "mlx"])
def test_a_packed_folder(tmp_path: Path, layout: str) -> None:
    pack_folder(mixture(tmp_path / "in", layout), tmp_path / "out.dure")
    check_streamed(tmp_path / "out.dure")


def test_a_packed_gguf(tmp_path: Path) -> None:
    pack_folder(gguf_mixture(tmp_path / "in.gguf", "Q4_K"), tmp_path / "out.dure")
    check_streamed(tmp_path / "out.dure")
