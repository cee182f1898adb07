"""A GGUF file of a model computes what its safetensors do, in every type that GGUF stores."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import is_plain, matrices_as, read_folder, write_folder, write_gguf
from tiny_gguf_recurrent import has_moved_heads
from tiny_models import (
    MODELS,
    PagedRun,
    furthest,
    loaded,
    oracle,
    oracle_logits,
    prefill_logits,
    random_sequences,
    reopened,
)

# What has no architecture in GGUF, and what converters write no key for: (un)normalised experts,
# dense layers among sparse, windows.
_ONLY_SAFETENSORS = {
    "kimi_linear-groups",  # delta layers have as many heads as attention
    "llama-prover",
    "lfm2-biased",
    "lfm2_moe-plain",
    "minicpm3-odd",
    "ministral3-plain",
    "mistral-sliding",
    "mixtral-sliding",
    "smollm3-listed",
    "mimo",
    "pangu_pro_moe",
    "qwen2-sliding",
    "dots1-sliding",
    "exaone_moe-listed",  # a dense layer between mixtures
    "olmoe-biased",
    "qwen3-sliding",
    "qwen3_moe-unnormalised",
    "qwen3_moe-mixed",
    "qwen3_moe-sliding",
    "qwen2_moe-mixed",
    "qwen2_moe-64-12",
    "ernie4_5_moe-unshared",
    "qwen3_5-bias",
    "qwen3_next-dense",
    "qwen3_vl_moe-mixed",
    "deepseek_v3-bias",  # pairs that turn together lie apart
}
# … and of gpt-oss's, all but the released values of its clamp, ramp and windows.
_ONLY_SAFETENSORS |= {name for name in MODELS if name.startswith("gpt_oss-")}
_ONLY_SAFETENSORS -= {"gpt_oss-unbiased"}
IN_GGUF = [name for name in MODELS if name not in _ONLY_SAFETENSORS]

BLOCKS_OF_32 = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
K_QUANTS = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS)

# Rows of 256, the size of a K-quant's block.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
WIDE_MOE = {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64, "num_experts": 16}

TOGETHER = [(35, 5), (1, 32), (1, 1), (1, 0), (1, 2), (1, 0)]
SEQUENCES = random_sequences(40, 40, seed=3)


@pytest.mark.parametrize("name", IN_GGUF)
def test_f32_gguf_gives_the_logits_of_its_safetensors(
    tiny: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    small = tiny(name)
    path = tmp_path / "model.gguf"
    write_gguf(path, *read_folder(small.folder))
    model = loaded(path)
    expected = prefill_logits(small.model, small.sequences[0])
    # Value heads in another order make a sum in another order, whose rounding states carry on.
    limit = 1e-4 if has_moved_heads(small.model.config) else 1e-5
    assert furthest(expected, prefill_logits(model, small.sequences[0])) <= limit
    assert (model.context_length, model.vocab_size) == (256, 256)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, *BLOCKS_OF_32])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_a_gguf_is_the_model_of_its_dequantised_weights(
    tiny: Callable[[str], Any], tmp_path: Path, name: str, kind: Kind
) -> None:
    config, parameters = read_folder(tiny(name).folder)
    values = write_gguf(tmp_path / "model.gguf", config, parameters, matrices_as(kind))
    folder = write_folder(tmp_path / "dequantised", config, values)
    tokens = tiny(name).sequences[0]
    expected = prefill_logits(loaded(folder), tokens)
    assert furthest(tiny(name).expected[0], expected) > 1e-4  # the rounding is there to be seen
    assert furthest(expected, prefill_logits(loaded(tmp_path / "model.gguf"), tokens)) <= 1e-5


def mixed_types() -> Callable[[str], Kind]:
    """Every type in turn, a matrix at a time; always the same for one name."""
    turn = cycle((*K_QUANTS, *BLOCKS_OF_32))
    kinds: dict[str, Kind] = {}
    return lambda name: Kind.F32 if is_plain(name) else kinds.setdefault(name, next(turn))


@pytest.mark.parametrize("name", ["llama-bias-llama3", "qwen2", "qwen3"])
def test_every_type_in_one_file_against_transformers(tmp_path: Path, name: str) -> None:
    oracle(name, **WIDE).save_pretrained(tmp_path / "source")
    config, parameters = read_folder(tmp_path / "source")
    path = tmp_path / "model.gguf"
    values = write_gguf(path, config, parameters, mixed_types())
    reference = reopened(write_folder(tmp_path / "dequantised", config, values))
    expected = [oracle_logits(reference, tokens) for tokens in SEQUENCES]
    exact = PagedRun(loaded(path), SEQUENCES).finish(TOGETHER)
    assert max(map(furthest, expected, exact)) <= 1e-4
    fast = PagedRun(loaded(path, exact=False), SEQUENCES).finish(TOGETHER)
    for reference_rows, rows in zip(expected, fast, strict=True):
        errors = relative_errors(reference_rows, rows)
        # Activations in int8 have a step of about 1/60 of their spread: 0.5 % a product.
        assert 1e-5 < np.median(errors) < 0.03
        assert errors.max() < 0.1


def relative_errors(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """The length of each row's error over that of the row: (rows,)."""
    return np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)


def moe_types(name: str) -> Kind:
    """Q4_K with Q6_K where llama.cpp's Q4_K_M has it: the head, and some v and down projections."""
    if is_plain(name):
        return Kind.F32
    sensitive = name == "lm_head.weight" or any(
        part in name for part in ("layers.1.self_attn.v_proj", "layers.1.mlp.experts")
    )
    return Kind.Q6_K if sensitive and "up_proj" not in name else Kind.Q4_K


LATENT = ["deepseek_v2", "deepseek_v2-grouped", "deepseek_v3"]
WIDE_LATENT = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "kv_lora_rank": 256,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_in_both_spellings(tmp_path: Path, name: str, halves: bool) -> None:
    """Keys and values in one matrix, as files had it, and in halves of which one is turned."""
    queries = 256 if MODELS[name][1]["q_lora_rank"] else None
    oracle(name, **WIDE_LATENT, q_lora_rank=queries).save_pretrained(tmp_path / "source")
    config, parameters = read_folder(tmp_path / "source")

    def types(parameter: str) -> Kind:
        if is_plain(parameter) or ".k_b_proj" in parameter:  # rows of 32, which Q4_K cannot store
            return Kind.F32 if is_plain(parameter) else Kind.Q8_0
        return Kind.Q5_0 if ".o_proj" in parameter else Kind.Q4_K

    path = tmp_path / "model.gguf"
    values = write_gguf(path, config, parameters, types, halves=halves)
    reference = reopened(write_folder(tmp_path / "dequantised", config, values))
    expected = [oracle_logits(reference, tokens) for tokens in SEQUENCES]
    exact = PagedRun(loaded(path), SEQUENCES).finish(TOGETHER)
    assert max(map(furthest, expected, exact)) <= 1e-4
    fast = PagedRun(loaded(path, threads=2, exact=False), SEQUENCES).finish(TOGETHER)
    errors = relative_errors(np.concatenate(expected), np.concatenate(fast))
    # A layer has up to ten products in a row, and a token may choose another expert.
    assert 1e-5 < np.median(errors) < 0.04
    assert np.quantile(errors, 0.9) < 0.1


def test_a_mixture_of_experts_in_q4_k_and_q6_k_against_transformers(tmp_path: Path) -> None:
    oracle("qwen3_moe", **WIDE_MOE).save_pretrained(tmp_path / "source")
    config, parameters = read_folder(tmp_path / "source")
    path = tmp_path / "model.gguf"
    values = write_gguf(path, config, parameters, moe_types)
    reference = reopened(write_folder(tmp_path / "dequantised", config, values))
    expected = [oracle_logits(reference, tokens) for tokens in SEQUENCES]
    exact = PagedRun(loaded(path), SEQUENCES).finish(TOGETHER)
    assert max(map(furthest, expected, exact)) <= 1e-4
    fast = PagedRun(loaded(path, threads=2, exact=False), SEQUENCES).finish(TOGETHER)
    errors = relative_errors(np.concatenate(expected), np.concatenate(fast))
    # Rounding can make a token choose another expert, so few rows may be further off.
    assert 1e-5 < np.median(errors) < 0.03
    assert np.quantile(errors, 0.9) < 0.1
