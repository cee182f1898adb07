"""Tiny models whose attention has sinks: gpt-oss and MiMo-V2."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import LINEAR, LLAMA3, YARN

GPT_OSS = {
    "intermediate_size": 64,
    "head_dim": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
}
CLAMPED = {**GPT_OSS, "swiglu_limit": 0.3}  # so low that it cuts the numbers of a tiny model
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# The class's own, over a context that tests go beyond.
RAMP = {**YARN, "truncate": False, "original_max_position_embeddings": 32, "factor": 8.0}

MIMO = {
    "num_hidden_layers": 6,
    "head_dim": 24,
    "v_head_dim": 16,
    "num_key_value_heads": 1,
    "sliding_window": 9,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
# Both kinds of layers in three.
SHORT = {
    **MIMO,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}


def mimo_ropes(part: float, **scaling: Any) -> dict[str, Any]:
    """Both kinds of layers' rotations of a part of each head; `scaling` is of those without
    windows.
    """
    both = {"rope_type": "default", **scaling, "partial_rotary_factor": part}
    return {
        "full_attention": {**both, "rope_theta": 50000.0},
        "sliding_attention": {
            "rope_type": "default",
            "partial_rotary_factor": part,
            "rope_theta": 3000.0,
        },
    }


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("gpt_oss", {**GPT_OSS, "rope_parameters": RAMP}),
    "gpt_oss-tied": (
        "gpt_oss",
        {
            **CLAMPED,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": RAMP,
        },
    ),
    "gpt_oss-square": (  # experts as wide as the hidden states: shapes do not tell which is which
        "gpt_oss",
        {
            **CLAMPED,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "rope_parameters": {**RAMP, "truncate": True},
            "num_experts_per_tok": 5,
            "swiglu_alpha": 0.9,
        },
    ),
    "gpt_oss-full": (
        "gpt_oss",
        {
            **CLAMPED,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 40,
            "rope_parameters": PLAIN,
            "rms_norm_eps": 1e-3,
        },
    ),
    "gpt_oss-unbiased": (
        "gpt_oss",
        {
            **GPT_OSS,
            "attention_bias": False,
            "rope_parameters": LINEAR,
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
        },
    ),
    "gpt_oss-narrow": (
        "gpt_oss",
        {
            **CLAMPED,
            "intermediate_size": 32,
            "head_dim": 10,
            "num_local_experts": 5,
            "num_experts_per_tok": 5,
            "rope_parameters": LLAMA3,
            "sliding_window": 1,
        },
    ),
    "gpt_oss-defaults": (
        "gpt_oss",
        {**CLAMPED, "num_hidden_layers": 1, "rope_parameters": None},
    ),
    "gpt_oss-factor": (
        "gpt_oss",
        {
            **CLAMPED,
            "rope_parameters": {**RAMP, "attention_factor": 1.3, "beta_fast": 16.0},
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 96,
        },
    ),
    "mimo_v2_flash": ("mimo_v2_flash", MIMO),
    "mimo_v2_flash-wide": (  # values wider than keys, and no multiple of 16
        "mimo_v2_flash",
        {**SHORT, "head_dim": 16, "v_head_dim": 20, "rope_parameters": mimo_ropes(0.5)},
    ),
    "mimo_v2_flash-equal": (
        "mimo_v2_flash",
        {
            **SHORT,
            "v_head_dim": 24,
            "num_key_value_heads": 2,
            "attention_value_scale": None,
            "rope_parameters": mimo_ropes(1.0),
            "rms_norm_eps": 1e-3,
        },
    ),
    "mimo_v2_flash-groups": (
        "mimo_v2_flash",
        {
            **SHORT,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 2.5,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "mimo_v2_flash-unnormalised": (
        "mimo_v2_flash",
        {**SHORT, "norm_topk_prob": False, "n_routed_experts": 3, "sliding_window": 1},
    ),
    "mimo_v2_flash-dense": (
        "mimo_v2_flash",
        {
            **SHORT,
            "mlp_layer_types": ["sparse", "dense", "dense"],
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "v_head_dim": 8,
            "attention_value_scale": 1.5,
        },
    ),
}
