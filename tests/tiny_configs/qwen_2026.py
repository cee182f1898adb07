"""Tiny models of Qwen3-VL, Qwen3.5 and what came after them."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import EXPERTS

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
        {**EXPERTS, "rope_parameters": SECTIONS, "vision_config": DEEP},
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
    # An expert is as wide as the model; in the others above, half as wide.
    "qwen3_vl_moe-wide": (
        "qwen3_vl_moe",
        {**EXPERTS, "moe_intermediate_size": 64, "vision_config": DEEP},
    ),
}
