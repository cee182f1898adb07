"""Tiny models of Qwen3-VL, Qwen3.5 and what came after them."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import EXPERTS, LINEAR, LLAMA3, YARN

VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
DEEP = {**VISION, "deepstack_visual_indexes": [0]}
# Three sections of a text's rotation have one position.
SECTIONS = {
    "rope_type": "default",
    "rope_theta": 5000.0,
    "mrope_section": [6, 3, 3],
    "mrope_interleaved": True,
}

DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.25,
    },
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
ROUTED = {
    **DELTA,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
TWO = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
SEEN = {"rope_parameters": {**SECTIONS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}}
# Qwen3-VL's class has no such key: it always normalises.
SEEING_EXPERTS = {key: each for key, each in EXPERTS.items() if key != "norm_topk_prob"}
RECURRENT = {"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}

# name -> (config.json's model_type, what differs from COMMON)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_vl": (
        "qwen3_vl",
        {"head_dim": 24, "rope_parameters": SECTIONS, "vision_config": DEEP},
    ),
    "qwen3_vl-tied-bias": (
        "qwen3_vl",
        {
            "head_dim": 16,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "vision_config": DEEP,
        },
    ),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        {**SEEING_EXPERTS, "rope_parameters": SECTIONS, "vision_config": DEEP},
    ),
    "qwen3_vl_moe-mixed": (
        "qwen3_vl_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "num_experts": 5,
            "moe_intermediate_size": 20,
            "vision_config": DEEP,
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", DELTA),
    "qwen3_5": ("qwen3_5", {**DELTA, **SEEN, "vision_config": VISION}),
    "qwen3_5-sees-tied": (
        "qwen3_5",
        {**DELTA, **TWO, "tie_word_embeddings": True, "vision_config": VISION},
    ),
    # As many value heads as key heads, of odd sizes and unequal widths; one head of keys.
    "qwen3_5-odd": (
        "qwen3_5_text",
        {
            **DELTA,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "num_key_value_heads": 1,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 20,
            "linear_value_head_dim": 12,
            "linear_conv_kernel_dim": 3,
            "intermediate_size": 52,
            "tie_word_embeddings": True,
        },
    ),
    # Six value heads of two key heads; half of a head turns, and its size is not hidden / heads.
    "qwen3_5-thirds": (
        "qwen3_5_text",
        {
            **DELTA,
            "num_hidden_layers": 5,
            "full_attention_interval": 2,
            "head_dim": 24,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 16,
            "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3_5-one-key": (
        "qwen3_5_text",
        {
            **DELTA,
            **TWO,
            "linear_num_key_heads": 1,
            "linear_conv_kernel_dim": 2,
            "rope_parameters": {**YARN, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3_5-bias": (
        "qwen3_5_text",
        {
            **DELTA,
            **TWO,
            "attention_bias": True,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {**LLAMA3, "partial_rotary_factor": 1.0},
        },
    ),
    "qwen3_5-attention": (
        "qwen3_5_text",
        {**DELTA, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    ),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", ROUTED),
    "qwen3_5_moe": ("qwen3_5_moe", {**ROUTED, **SEEN, "vision_config": VISION}),
    "qwen3_5_moe-odd": (
        "qwen3_5_moe_text",
        {
            **ROUTED,
            **TWO,
            "num_experts": 5,
            "num_experts_per_tok": 5,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 28,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 6,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5_moe-one": (
        "qwen3_5_moe_text",
        {
            **ROUTED,
            "num_hidden_layers": 3,
            "full_attention_interval": 3,
            "num_experts": 16,
            "num_experts_per_tok": 1,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    "qwen3_5_moe-states": (
        "qwen3_5_moe_text",
        {**ROUTED, "num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2},
    ),
    # An expert is as wide as the model; in the others above, half as wide.
    "qwen3_vl_moe-wide": (
        "qwen3_vl_moe",
        {**EXPERTS, "moe_intermediate_size": 64, "vision_config": DEEP},
    ),
}
