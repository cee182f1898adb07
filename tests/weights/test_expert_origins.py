"""One expert by itself, on any thread, is made of the file as loading makes all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import packed_mixtures
import pytest
from fused_mixtures import across, fused
from packed_mixtures import LAYOUTS, gguf_mixture, mixture
from tiny_gguf import config_of, parameters_of, write_folder

from dure import kernels
from dure.convert.folder import pack_folder
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.models import family_of, read_config
from dure.weights.expert_pool import ExpertPool
from dure.weights.expert_records import Converted, PackedOnArrival, Ready, RecordSource
from dure.weights.loader import Weights


class Loaded(ExpertPool):
    """Keeps all experts, and says which sets there are."""

    @property
    def sets(self) -> list[kernels.Experts]:
        return self._sets


class OnDemand(ExpertPool):
    """Keeps no expert, and where each can be had from."""

    streams = True

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[kernels.Experts, Callable[[int], RecordSource]]] = []

    def add(self, *sizes: Any, sources: Callable[[int], RecordSource]) -> kernels.Experts:
        experts = kernels.Experts(*sizes, resident=False)
        self.found.append((experts, sources))
        return experts


def built(checkpoint: Checkpoint, pool: ExpertPool, **options: Any) -> None:
    """A model's parameters, loaded for that pool."""
    weights = Weights(checkpoint, expert_pool=pool, threads=2, **options)
    family_of(checkpoint).Model(read_config(checkpoint), weights)
    weights.finish()


def make(
    experts: kernels.Experts, expert: int, source: RecordSource, buffer: kernels.ExpertBuffer
) -> None:
    """One record in its slot, by whatever its source is."""
    experts.place(expert, buffer, expert)
    if isinstance(source, Converted):
        source.write(experts, expert)
    elif isinstance(source, Ready):
        source.extent.source.read_into(source.extent.offset, buffer.slot(expert))
    else:
        for part in ("gate", "up", "down"):
            extent = getattr(source, part)
            rows = 96 if part != "down" else 64
            raw = extent.source.read(extent.offset, extent.size)
            experts.fill(part, expert, raw.reshape(rows, -1))


def check_alike(path: Path, kind: type, **options: Any) -> None:
    """Compare all experts, made several at once, with those that loading makes."""
    resident, missing = Loaded(), OnDemand()
    built(open_checkpoint(path), resident, **options)
    built(open_checkpoint(path), missing, **options)
    assert len(resident.sets) == len(missing.found) > 0
    for whole, (experts, sources) in zip(resident.sets, missing.found, strict=True):
        buffer = kernels.ExpertBuffer(whole.count, whole.record_bytes)
        assert experts.record_bytes == whole.record_bytes
        found = [sources(expert) for expert in range(whole.count)]
        assert all(isinstance(source, kind) for source in found)
        with ThreadPoolExecutor(4) as threads:
            made = [
                threads.submit(make, experts, expert, source, buffer)
                for expert, source in enumerate(found)
            ]
        for each in made:
            each.result()
        for expert in range(whole.count):
            assert buffer.slot(expert).tobytes() == whole.record(expert).tobytes()
        if whole.columns is None:
            assert experts.columns is None
        else:
            assert experts.columns is not None
            assert np.array_equal(experts.columns, whole.columns)


SIZES = {"hidden_size": 64, "moe_intermediate_size": 96}


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if "float" not in each])
def test_an_expert_of_each_layout_is_converted_by_itself(tmp_path: Path, layout: str) -> None:
    check_alike(mixture(tmp_path / "in", layout, **SIZES), Converted)


@pytest.mark.parametrize("layout", ["bfloat16", "float32"])
def test_an_expert_of_floats_is_packed_as_it_arrives(tmp_path: Path, layout: str) -> None:
    check_alike(mixture(tmp_path / "in", layout, **SIZES), PackedOnArrival)


@pytest.mark.parametrize("layout", ["bfloat16", "fp8", "gptq desc_act"])
@pytest.mark.parametrize("quantize", ["q4", "q8"])
def test_an_expert_is_quantised_by_itself(tmp_path: Path, layout: str, quantize: str) -> None:
    check_alike(mixture(tmp_path / "in", layout, **SIZES), Converted, quantize=quantize)


@pytest.mark.parametrize("layout", ["bfloat16", "gptq desc_act", "mlx"])
def test_a_packed_expert_is_read_by_itself(tmp_path: Path, layout: str) -> None:
    pack_folder(mixture(tmp_path / "in", layout, **SIZES), tmp_path / "out.dure")
    check_alike(tmp_path / "out.dure", Ready)


def test_a_packed_gguf_is_read_by_itself(tmp_path: Path) -> None:
    pack_folder(gguf_mixture(tmp_path / "in.gguf", "Q4_0", **SIZES), tmp_path / "out.dure")
    check_alike(tmp_path / "out.dure", Ready)
    check_alike(tmp_path / "in.gguf", PackedOnArrival)


def test_an_expert_that_lies_across_is_turned_by_itself(tmp_path: Path) -> None:
    """Threads share the tensor, which keeps the last expert that one of them has read."""
    config = config_of("qwen3_moe", **SIZES, num_experts=16)
    parameters = across(fused(parameters_of(config), config["num_hidden_layers"], 16))
    check_alike(write_folder(tmp_path, config, parameters), Converted)


def test_orders_of_their_own_are_refused_before_an_expert_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(name: str, cols: int) -> np.ndarray:
        return np.random.default_rng(int(name.split(".")[-3])).permutation(cols)

    monkeypatch.setattr(packed_mixtures, "one_order", own)
    checkpoint = open_checkpoint(mixture(tmp_path / "in", "gptq desc_act"))
    with pytest.raises(UnsupportedModelError, match="an order of its own"):
        built(checkpoint, OnDemand())


def test_records_of_another_size_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_folder(gguf_mixture(tmp_path / "in.gguf", "Q4_0"), tmp_path / "out.dure")
    size = property(lambda self: self.packed.record_bytes + 4096)
    monkeypatch.setattr(kernels.Experts, "record_bytes", size)
    for pool in (Loaded(), OnDemand()):
        with pytest.raises(ModelFileError, match=r"has records of .* bytes under"):
            built(open_checkpoint(tmp_path / "out.dure"), pool)
