"""Tiny models of LFM2: short convolutions beside attention."""

from __future__ import annotations

from typing import Any

CONV = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "block_auto_adjust_ff_dim": False,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "norm_eps": 1e-5,
}
MOE = {
    **CONV,
    "num_dense_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("lfm2", CONV),
    "lfm2-adjusted": (
        "lfm2",
        {
            **CONV,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.3,
            "block_multiple_of": 16,
            "conv_L_cache": 4,
            "layer_types": ["full_attention", "conv", "conv", "full_attention"],
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2-biased": ("lfm2", {**CONV, "conv_bias": True, "conv_L_cache": 2}),
    "lfm2_moe": ("lfm2_moe", MOE),
    "lfm2_moe-plain": (
        "lfm2_moe",
        {
            **MOE,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
            "num_dense_layers": 0,
            "num_experts": 5,
            "num_experts_per_tok": 3,
        },
    ),
}
