"""Tiny models with Kimi Delta Attention: Kimi-Linear and Ling-3.0."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import LINEAR, MAGNIFIED

KIMI: dict[str, Any] = {
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 48,
    "num_experts": 8,
    "num_experts_per_token": 3,
    "moe_intermediate_size": 32,
    "linear_attn_config": {
        "head_dim": 16,
        "num_heads": 4,
        "short_conv_kernel_size": 4,
        "full_attn_layers": [4],
        "kda_layers": [1, 2, 3, 5],
    },
}


LING = {
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "layer_group_size": 3,
    "head_dim": 24,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 48,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "num_expert_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}


def _linear(**changes: Any) -> dict[str, Any]:
    return {"linear_attn_config": {**KIMI["linear_attn_config"], **changes}}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "kimi_linear": ("kimi_linear", KIMI),
    # Heads of another number and size than attention's, and groups of experts.
    "kimi_linear-groups": (
        "kimi_linear",
        {
            **KIMI,
            "num_hidden_layers": 3,
            "num_expert_group": 4,
            "topk_group": 2,
            "num_shared_experts": 2,
            "q_lora_rank": 24,
            **_linear(
                head_dim=40,
                num_heads=3,
                short_conv_kernel_size=3,
                full_attn_layers=[2],
                kda_layers=[1, 3],
            ),
        },
    ),
    "bailing_hybrid": ("bailing_hybrid", LING),
    # Decays without a bound, another group, and a query latent.
    "bailing_hybrid-free": (
        "bailing_hybrid",
        {
            **LING,
            "num_hidden_layers": 4,
            "layer_group_size": 2,
            "kda_safe_gate": False,
            "q_lora_rank": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "short_conv_kernel_size": 3,
            "num_expert_group": 1,
            "topk_group": 1,
        },
    ),
}

RECURRENT = {"kimi_linear", "bailing_hybrid"}


_THREE = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
# What both families are tried with: name -> what differs from the family's.
_BOTH: dict[str, dict[str, Any]] = {
    "query latent": {"q_lora_rank": 20},
    "narrow latents": {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16},
    "wide values": {"v_head_dim": 80, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16},
    "no multiples of 16": {"kv_lora_rank": 20, "qk_nope_head_dim": 12, "v_head_dim": 14},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 24},
    "bias": {"attention_bias": True, "q_lora_rank": 20},
    "large epsilon": {"rms_norm_eps": 1e-2},
    "seven experts of which one": {
        "num_experts": 7,
        "num_experts_per_token": 1,
        "num_expert_group": 1,
        "topk_group": 1,
    },
    "all experts": {
        "num_experts": 6,
        "num_experts_per_token": 6,
        "num_expert_group": 2,
        "topk_group": 2,
    },
    "three shared": {"num_shared_experts": 3},
    "not normalised": {"moe_renormalize": False, "routed_scaling_factor": 0.7},
    "dense layers only": {**_THREE, "mlp_layer_types": ["dense"] * 3},
    "a dense layer in the middle": {**_THREE, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    "delta layers only": {"num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2},
    "attention only": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    "attention first": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
    },
}
_KIMI_ALONE: dict[str, dict[str, Any]] = {
    "one delta head": _linear(num_heads=1, head_dim=64),
    "many narrow delta heads": _linear(num_heads=9, head_dim=4),
    # Not one channel: its norm is x / sqrt(x * x + epsilon), nearly a sign, and float32 then is up
    # to 0.0016 from float64, in transformers as in dure.
    "three channels a head": _linear(num_heads=5, head_dim=3),
    "no convolution": _linear(short_conv_kernel_size=1),
    "odd nope": {"qk_rope_head_dim": 7},
}
_LING_ALONE: dict[str, dict[str, Any]] = {
    "three heads": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 33},
    "no bound": {"kda_safe_gate": False},
    "a bound near 0": {"kda_lower_bound": -0.25},
    "a far bound": {"kda_lower_bound": -40.0},
    "two taps": {"short_conv_kernel_size": 2},
    "whole groups": {"layer_group_size": 2, "num_hidden_layers": 4},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "yarn": {"rope_parameters": {**MAGNIFIED, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "linear": {"rope_parameters": LINEAR},
    "a part of the head is named": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        }
    },
}

UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"kimi_linear, {name}": ("kimi_linear", {**KIMI, **changes})
        for name, changes in {**_BOTH, **_KIMI_ALONE}.items()
    },
    **{
        f"bailing_hybrid, {name}": ("bailing_hybrid", {**LING, **changes})
        for name, changes in {**_BOTH, **_LING_ALONE}.items()
    },
}
"""Valid but unusual configs: name -> (model_type, what differs from COMMON)."""
