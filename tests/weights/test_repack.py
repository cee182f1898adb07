"""Weights that memory keeps otherwise than the file: in pieces, and never all of them twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import config_of, parameters_of, write_folder

from dure import kernels
from dure.errors import InvalidRequestError, ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.kernels.dequantize import dequantize
from dure.llm import LLM
from dure.loading.load import load
from dure.models import load_model, memory_needed
from dure.weights import repack
from dure.weights.loader import Weights
from dure.weights.quantize import DtypePolicy, part_of, quantize_rows

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}

# Loads the folder named, and prints by how much its peak of memory was above what it had before.
PEAK = """
import sys
from dure.formats.checkpoint import open_checkpoint
from dure.models import families, load_model
def status(key):
    fields = open("/proc/self/status").read().split()
    return int(fields[fields.index(key) + 1]) << 10
families()
before = status("VmRSS:")
model = load_model(open_checkpoint(sys.argv[1]), threads=1, quantize=sys.argv[2])
print(status("VmHWM:") - before)
"""


def bfloat_folder(folder: Path, name: str, **changes: Any) -> Path:
    """A tiny model in bfloat16, as makers publish theirs."""
    import ml_dtypes  # noqa: PLC0415  # safetensors' own way to bfloat16

    config = config_of(name, **changes)
    arrays = {n: v.astype(ml_dtypes.bfloat16) for n, v in parameters_of(config).items()}
    return write_folder(folder, config, arrays)


@pytest.mark.parametrize("quantize", [pytest.param("q8", marks=pytest.mark.long), "q4"])
def test_the_peak_is_the_result_and_one_layer(tmp_path: Path, quantize: str) -> None:
    """101 MB of bfloat16: two copies, one of them in 8 bits, would be 155 MB, in floats 257 MB."""
    folder = bfloat_folder(tmp_path, "llama", **LARGE)
    checkpoint = open_checkpoint(folder)
    layer = sum(t.size_bytes for n, t in checkpoint.tensors.items() if ".layers.0." in n)
    result = memory_needed(checkpoint, quantize="q8" if quantize == "q8" else "q4")
    command = [sys.executable, "-c", PEAK, str(folder), quantize]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # What a process grows by whatever it loads (threads, allocator) is some 10 MB.
    assert result * 0.9 < int(done.stdout) < result + 2 * layer


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("quantize", ["q8", "q6", "q4"])
def test_the_memory_needed_is_that_of_the_quantised_weights(
    tmp_path: Path, name: str, quantize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def recorded(kind: type) -> Any:
        def make(*arguments: Any) -> Any:
            made.append(kind(*arguments))
            return made[-1]

        return make

    wide = {"hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256}
    checkpoint = open_checkpoint(bfloat_folder(tmp_path, name, **wide))
    monkeypatch.setattr(kernels, "Matrix", recorded(kernels.Matrix))
    monkeypatch.setattr(kernels, "Experts", recorded(kernels.Experts))
    load_model(checkpoint, quantize=quantize)
    needed = memory_needed(checkpoint, quantize=quantize)
    packed = sum(each.nbytes for each in made)
    # Vectors are kept as floats, and each expert starts on a page of 4 KiB, which nobody counts.
    assert abs(packed - needed) < 4096 * sum(getattr(each, "count", 2) for each in made)
    assert needed < memory_needed(checkpoint)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_quantised_on_load_is_quantised_from_the_file(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).normal(0, 1, (3011, 768)).astype(np.float32)
    values = values.astype("<f2" if dtype == "F16" else "<f4")
    folder = write_folder(tmp_path, {}, {"lm_head.weight": values})
    weights = Weights(open_checkpoint(folder), threads=2, quantize="q6")
    matrix = weights.matrix("lm_head.weight", 3011, 768)
    weights.finish()
    assert matrix.dtype == "Q6_K"
    expected = dequantize("Q6_K", quantize_rows(values.astype(np.float32), "Q6_K"))
    np.testing.assert_array_equal(matrix.row_values(np.arange(3011, dtype=np.int32)), expected)


def test_weights_are_converted_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(values: np.ndarray, dtype: str, *, threads: int) -> np.ndarray:
        sizes.append(values.size)
        return quantize_rows(values, dtype, threads=threads)

    monkeypatch.setattr(repack, "quantize_rows", counted)
    seen: list[tuple[int, int]] = []
    checkpoint = open_checkpoint(bfloat_folder(tmp_path, "llama", **LARGE | {"vocab_size": 5000}))
    load_model(checkpoint, quantize="q8", progress=lambda done, total: seen.append((done, total)))
    assert max(sizes) <= repack.PIECE_WEIGHTS
    assert len(sizes) > len(checkpoint.tensors) // 2
    assert seen[-1][0] == seen[-1][1] == sum(t.size_bytes for t in checkpoint.tensors.values())


def test_what_progress_raises_ends_the_load(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(bfloat_folder(tmp_path, "qwen3_moe"))

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(checkpoint, quantize="q8", progress=stop)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config = config_of("llama")
    arrays = parameters_of(config)
    arrays["lm_head.weight"][3, 5] = np.nan
    checkpoint = open_checkpoint(write_folder(tmp_path, config, arrays))
    with pytest.raises(ModelFileError, match="cannot be quantised"):
        load_model(checkpoint, quantize="q8")


def test_experts_get_four_bits_and_the_rest_six(tmp_path: Path) -> None:
    folder = bfloat_folder(tmp_path, "qwen3_moe", hidden_size=256, moe_intermediate_size=256)
    tensors = open_checkpoint(folder).tensors
    types = DtypePolicy(tensors, "q4")
    found = {part_of(n, len(t.shape)): types.of(n, t) for n, t in tensors.items()}
    assert found == {
        "attention": "Q6_K",
        "embedding": "Q6_K",
        "experts": "Q4_K",
        "head": "Q6_K",
        "router": "BF16",
        "vector": "BF16",
    }


def test_a_scheme_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    folder = bfloat_folder(tmp_path, "llama")
    with pytest.raises(InvalidRequestError, match="'q5'"):
        load(folder, quantize="q5", with_tokenizer=False)
    with pytest.raises(InvalidRequestError, match="'q5'"):
        LLM(folder, quantize="q5")  # type: ignore[arg-type]
