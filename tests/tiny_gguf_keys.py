"""The keys that llama.cpp's converters write of a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from tiny_gguf_gemma import add_gemma_keys
from tiny_gguf_recurrent import add_kda_keys, add_recurrent_keys

Config = Mapping[str, Any]


# Whose converters reorder q and k, so that neighbours rotate together.
PERMUTED = ("llama", "mistral", "mixtral", "ministral3", "internlm3", "iquestcoder", "granite")
PERMUTED += ("smollm3",)
_OF_V3 = ("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_linear", "bailing_hybrid")


def head_dim_of(config: Config) -> int:
    """Dimensions of a head, which old configs leave to be computed."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def add_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if "intermediate_size" in config:
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or config["norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] in (*PERMUTED, "exaone"):
        writer.add_rope_dimension_count(head_dim_of(config))
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    theta, head_dim = rope["rope_theta"], head_dim_of(config)
    if rope.get("alpha"):  # converters stretch the base themselves
        theta *= rope["alpha"] ** (head_dim / (head_dim - 2))
    writer.add_rope_freq_base(theta)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    _add_llama_like_keys(writer, config)
    _add_expert_keys(writer, config)
    if "linear_num_key_heads" in config:
        add_recurrent_keys(writer, config)
    if config["model_type"].startswith("gemma"):
        add_gemma_keys(writer, config)
    if "linear_num_heads" in config:
        add_kda_keys(writer, config)


def _add_llama_like_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    model_type, rope = config["model_type"], config["rope_parameters"]
    if model_type == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if model_type == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if model_type in ("glm4", "phi3"):
        part = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(head_dim_of(config) * part))
    if model_type in ("exaone4", "exaone_moe") and config["sliding_window"] is not None:
        writer.add_sliding_window(config["sliding_window"])
        kinds = config["layer_types"]
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    if model_type == "olmo3":
        writer.add_sliding_window(config["sliding_window"])
        kinds = config["layer_types"]
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
        if "sliding_attention" in rope:
            writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if model_type in ("minicpm3", "phi3") and rope["rope_type"] == "longrope":
        for each in ("long", "short"):
            factors = np.array(rope[f"{each}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{each}.weight", factors)
    if model_type == "phi3":
        writer.add_sliding_window(config["sliding_window"] or 0)
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        if rope["rope_type"] == "longrope":
            scale = config["max_position_embeddings"] / original
            stretch = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
            writer.add_rope_scaling_attn_factors(stretch)


def add_mimo_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """What mimo2's converter writes of layers with a window, which have twice the KV heads."""
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    heads = config["num_key_value_heads"]
    near = config.get("swa_num_key_value_heads") or 2 * heads
    writer.add_head_count_kv([near if each else heads for each in slides])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(slides)
    ropes = config["rope_parameters"]
    part = ropes["full_attention"]["partial_rotary_factor"]
    writer.add_rope_dimension_count(int(config["head_dim"] * part))
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    scale = config["attention_value_scale"]
    writer.add_float32("mimo2.attention.value_scale", 1.0 if scale is None else scale)
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if (config["n_group"] or 1) > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config.get("num_nextn_predict_layers"):
        writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])


def _add_expert_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    def first(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    experts = first("num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts")
    if not experts:
        return
    width = first("moe_intermediate_size", "intermediate_size")
    writer.add_expert_count(experts)
    writer.add_expert_used_count(first("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"))
    writer.add_expert_feed_forward_length(width)
    if config["model_type"] == "ernie4_5_moe":
        writer.add_interleave_moe_layer_step(config["moe_layer_interval"])
        writer.add_leading_dense_block_count(config["moe_layer_start_index"])
        writer.add_expert_shared_count(config["moe_num_shared_experts"])
        # What its converter computes is no width of any part: nobody may read it.
        writer.add_expert_shared_feed_forward_length(7)
    if config["model_type"] == "lfm2_moe":
        writer.add_leading_dense_block_count(config["num_dense_layers"])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config["model_type"] == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if config["model_type"] == "hunyuan_v1_moe":
        writer.add_expert_shared_feed_forward_length(width)
    if config["model_type"] == "minimax_m2":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        factor = config["rope_parameters"]["partial_rotary_factor"]
        writer.add_rope_dimension_count(int(head_dim_of(config) * factor))

    if config["model_type"] == "gpt_oss":
        writer.add_sliding_window(config["sliding_window"])
    like_glm = ("bailing_moe_v2", "glm4_moe", "solar_open", "hy_v3", "dots1", "exaone_moe")
    if config["model_type"] in like_glm:
        _add_glm_keys(writer, config)


def _add_glm_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """What the families have whose router is DeepSeek-V3's over plain attention."""
    half = config["model_type"] in ("glm4_moe", "bailing_moe_v2")
    writer.add_rope_dimension_count(head_dim_of(config) // (2 if half else 1))
    writer.add_expert_shared_count(config.get("n_shared_experts", config.get("num_shared_experts")))
    kinds = config.get("mlp_layer_types")  # the converter counts those before the first mixture
    dense = kinds.index("sparse") if kinds else config.get("first_k_dense_replace", 0)
    writer.add_leading_dense_block_count(dense)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    scale = config.get("routed_scaling_factor", config.get("router_scaling_factor"))
    writer.add_expert_weights_scale(scale)
    writer.add_expert_weights_norm(config.get("norm_topk_prob", True))
    if config.get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config.get("num_nextn_predict_layers"):
        writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])


def add_latent_keys(writer: gguf.GGUFWriter, config: Config, *, halves: bool) -> None:
    """What deepseek2 has beside the common keys: a head of keys that all share if in halves."""
    rotated, plain = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    writer.add_head_count_kv(config.get("kv_heads", 1 if halves else config["num_attention_heads"]))
    writer.add_key_length(config["kv_lora_rank"] + rotated if halves else plain + rotated)
    writer.add_value_length(config["kv_lora_rank"] if halves else config["v_head_dim"])
    if halves:
        writer.add_key_length_mla(plain + rotated)
        writer.add_value_length_mla(config["v_head_dim"])
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_rope_dimension_count(rotated)
    if config["model_type"] == "minicpm3":
        return
    # Where the config has none (GLM-4.7-Flash as transformers saves it), the converter writes 0.
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", 0))
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config["norm_topk_prob"] and config["model_type"] != "kimi_linear":  # who needs no telling
        writer.add_expert_weights_norm(True)
    if config["model_type"] in _OF_V3:
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if "index_topk" in config:
        writer.add_indexer_head_count(config["index_n_heads"])
        writer.add_indexer_key_length(config["index_head_dim"])
        writer.add_indexer_top_k(config["index_topk"])
    if config.get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    if config["rope_parameters"].get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * config["rope_parameters"]["mscale_all_dim"])


def add_rope_factors(writer: gguf.GGUFWriter, config: Config) -> None:
    """llama3's scaling as a tensor of divisors, one a frequency."""
    rope = config["rope_parameters"]
    if rope.get("rope_type") != "llama3":
        return
    size = head_dim_of(config)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    divisors = []
    for index in range(0, size, 2):
        turns = rope["original_max_position_embeddings"] / (
            2 * math.pi * rope["rope_theta"] ** (index / size)
        )
        share = min(max((turns - low) / (high - low), 0.0), 1.0)  # of the frequency, kept as it is
        divisors.append(1 / ((1 - share) / factor + share))
    writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))
