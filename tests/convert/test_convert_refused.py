"""Folders that become no GGUF, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_folders import OTHER_BASE, SIX, SLIDING, write_tokenizer
from tiny_configs.families_2025 import LINEAR, LLAMA3, YARN
from tiny_configs.gemma import GEMMA3, ropes
from tiny_gguf import read_folder, write_folder
from tiny_models import loaded
from tokenizers import pre_tokenizers

from dure.convert.gguf import convert
from dure.errors import ModelFileError, TokenizerError, UnsupportedModelError

HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("qwen3_moe-unnormalised", {}, "norm_topk_prob"),
        ("qwen3_moe-mixed", {}, "attention_bias"),
        ("qwen2-sliding", {}, "use_sliding_window"),
        ("gemma3", {**SIX, "query_pre_attn_scalar": 24}, "query_pre_attn_scalar"),
        ("gemma3", {**SIX, "rope_parameters": ropes(rope_theta=3000.0)}, "rope_local_base_freq"),
        ("gemma3", {**SIX, "attention_bias": True}, "attention_bias"),
        ("gemma3", GEMMA3, "layer_types"),
        ("gemma4_text", {"rope_parameters": ropes(rope_type="linear", factor=4.0)}, "rope_param"),
        ("gemma4_text", {"rope_parameters": ropes(YARN)}, "yarn"),
        ("gemma4_text", {"attention_bias": True}, "attention_bias"),
        ("gemma4", {"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input"),
        ("bailing_moe_v2", {"attention_bias": True}, "use_qkv_bias"),
        ("kimi_linear-groups", {}, "linear_attn_config"),
        ("kimi_linear", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("kimi_linear", {"attention_bias": True}, "attention_bias"),
        ("bailing_hybrid-free", {}, "kda_safe_gate"),
        ("bailing_hybrid", {"rope_parameters": LINEAR}, "linear"),
        ("hy_v3", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ("hy_v3", {"attention_bias": True}, "attention_bias"),
        ("dots1", {"num_key_value_heads": 2}, "key-value heads"),
        ("deepseek_v2-grouped", {}, "topk_method"),
        ("deepseek_v2", {}, "q_lora_rank"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
        ("ernie4_5", {"use_bias": True}, "use_bias"),
        ("qwen2", {"rope_parameters": LLAMA3}, "llama3"),
        ("glm4_moe", {"head_dim": 18, "rope_parameters": HALF}, "partial_rotary_factor"),
        ("hunyuan_v1_moe", {"moe_topk": [2, 3]}, "moe_topk"),
        ("ernie4_5_moe", {"moe_layer_interval": 2, "num_hidden_layers": 5}, "moe_layer_interval"),
        ("ernie4_5_moe-unshared", {"moe_layer_end_index": 1}, "moe_layer_end_index"),
        ("hunyuan_v1_moe", {"attention_bias": True}, "attention_bias"),
        ("minimax_m2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("qwen3_next-mixed", {"linear_value_head_dim": 40}, "linear_value_head_dim"),
        ("qwen3_next", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3_next", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("pangu_pro_moe", {}, "pangu_pro_moe"),
        ("gpt_oss-tied", {"swiglu_limit": 7.0}, "tie_word_embeddings"),
        ("gpt_oss-unbiased", {}, "attention_bias"),
        ("gpt_oss", {"swiglu_limit": 0.3}, "swiglu_limit"),
        ("gpt_oss", {"rope_parameters": YARN}, "yarn"),
        ("gpt_oss", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("mimo_v2_flash-groups", {"tie_word_embeddings": False}, "groups"),
        ("mimo_v2_flash-unnormalised", {}, "norm_topk_prob"),
        ("deepseek_v32", {"rope_interleave": False}, "rope_interleave"),
        ("mistral-sliding", {}, "windows"),
        ("mixtral-sliding", {}, "windows"),
        ("ministral3", {"sliding_window": 8}, "windows"),
        ("ministral3-plain", {"sliding_window": None}, "yarn"),
        ("phi3-short", {}, "windows"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8}, "windows"),
        ("smollm3", {"attention_bias": True}, "attention_bias"),
        ("seed_oss-all-biased", {}, "attention_out_bias"),
        ("olmo3", {"rope_parameters": SLIDING}, "rope_parameters"),
        ("olmo3", {"rope_parameters": OTHER_BASE}, "rope_theta"),
        ("olmo3", {"attention_bias": True}, "attention_bias"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("phi3", {"head_dim": 24}, "head_dim"),
        ("exaone", {"attention_bias": True}, "attention_bias"),
        ("exaone4", {"head_dim": 16}, "sliding_window"),
        ("exaone4-full", {"head_dim": 24}, "head_dim"),
        ("lfm2-biased", {}, "conv_bias"),
        ("lfm2_moe", {"use_expert_bias": False}, "use_expert_bias"),
        ("lfm2_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("lfm2_moe", {"routed_scaling_factor": 1.7}, "routed_scaling_factor"),
        ("lfm2_moe-plain", {"use_expert_bias": True}, "norm_topk_prob"),
        ("minicpm3", {"attention_bias": True}, "attention_bias"),
        ("minicpm3", {"q_lora_rank": None}, "q_lora_rank"),
        ("minicpm3", {"scale_emb": 3}, "scale_emb"),
        ("minicpm3", {"scale_depth": 0.9}, "scale_depth"),
        ("minicpm3", {"dim_model_base": 32}, "dim_model_base"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(
    folder: Callable[..., Path], tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        convert(folder(name, **changes), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_openpangu_without_biases_is_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder("pangu_embedded")
    config, arrays = read_folder(source)
    plain = {name: array for name, array in arrays.items() if not name.endswith(".bias")}
    write_folder(source, {**config, "bias": False}, plain)
    loaded(source)
    with pytest.raises(UnsupportedModelError, match="bias = False"):
        convert(source, tmp_path / "out.gguf")


def test_a_missing_tensor_is_named(folder: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = folder("llama")
    arrays = load_file(source / "model.safetensors")
    del arrays["model.layers.1.self_attn.k_proj.weight"]
    save_file(arrays, source / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"layers\.1\.self_attn\.k_proj"):
        convert(source, tmp_path / "out.gguf")


def test_weights_that_are_quantised_already_are_refused_by_type(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    source = folder("llama")
    arrays = load_file(source / "model.safetensors")
    arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.int8)
    save_file(arrays, source / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight as I8.*F32, F16, BF16"):
        convert(source, tmp_path / "out.gguf")


def test_a_gguf_and_a_folder_without_tokenizer_are_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = folder("llama"), tmp_path / "out.gguf"
    convert(source, out)
    with pytest.raises(UnsupportedModelError, match="GGUF file already"):
        convert(out, tmp_path / "again.gguf")
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        convert(source, tmp_path / "again.gguf")


def test_words_that_no_rule_of_gguf_cuts_are_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder("llama")
    cutter = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    write_tokenizer(source, cutter)
    with pytest.raises(TokenizerError, match="rule"):
        convert(source, tmp_path / "out.gguf")
