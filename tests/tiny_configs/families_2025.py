"""Tiny models of the families up to 2025."""

from __future__ import annotations

from typing import Any

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
NTK_ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "head_dim": 24,
    "norm_topk_prob": True,
}
SHARED = {"shared_expert_intermediate_size": 48, "norm_topk_prob": False}
ERNIE_MOE = {
    "moe_num_experts": 8,
    "moe_k": 3,
    "moe_intermediate_size": 32,
    "moe_num_shared_experts": 2,
}
GLM = {
    "head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.7,
    "rms_norm_eps": 1e-5,
}
NEXT = {
    **EXPERTS,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "shared_expert_intermediate_size": 48,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
LATENT = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
PANGU = {
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "rope_theta": 1.6e7,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
MAGNIFIED = {
    **YARN,
    "original_max_position_embeddings": 16,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}

# name -> (config.json's model_type, what differs from COMMON)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-bias-llama3": ("llama", {"attention_bias": True, "rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"head_dim": 24, "rope_parameters": YARN}),
    # DeepSeek-Prover-V2-7B's form: as many kv heads as heads, and yarn with both of its scales.
    "llama-prover": (
        "llama",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {
                **YARN,
                "factor": 16.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 0.707,
            },
        },
    ),
    "llama-linear": ("llama", {"rope_parameters": LINEAR, "rms_norm_eps": 1e-2}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("qwen2", SLIDING),
    # R1-Distill-Qwen's: a window that is written and switched off.
    "qwen2-distill": ("qwen2", {**SLIDING, "use_sliding_window": False, "rms_norm_eps": 1e-5}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "qwen3-tied-bias": (
        "qwen3",
        {"head_dim": 24, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3-sliding": ("qwen3", {"head_dim": 16, **SLIDING}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "qwen3_moe-unnormalised": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": False}),
    "qwen3_moe-mixed": (
        "qwen3_moe",
        {
            **EXPERTS,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "attention_bias": True,
        },
    ),
    "qwen3_moe-sliding": ("qwen3_moe", {**EXPERTS, **SLIDING}),
    "qwen3_next": ("qwen3_next", NEXT),
    "qwen3_next-mixed": (
        "qwen3_next",
        {
            **NEXT,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "num_hidden_layers": 3,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 20,
            "linear_value_head_dim": 40,
            "linear_conv_kernel_dim": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_next-dense": (
        "qwen3_next",
        {**NEXT, "mlp_only_layers": [1], "norm_topk_prob": False, "attention_bias": True},
    ),
    "ernie4_5": ("ernie4_5", {"head_dim": 24, "tie_word_embeddings": True}),
    "ernie4_5-untied": ("ernie4_5", {"head_dim": 16, "rope_parameters": LINEAR}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 24, "rope_parameters": NTK_ALPHA}),
    "hunyuan_v1_dense-tied-bias": (
        "hunyuan_v1_dense",
        {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "pangu_embedded": ("pangu_embedded", {}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, **SHARED}),
    "qwen2_moe-mixed": (
        "qwen2_moe",
        {**EXPERTS, **SHARED, "num_hidden_layers": 3, "mlp_only_layers": [1]},
    ),
    # As the press describes Qwen2.5-Max: 64 experts, of which a token goes to 12.
    "qwen2_moe-64-12": (
        "qwen2_moe",
        {
            **EXPERTS,
            **SHARED,
            "norm_topk_prob": True,
            "num_experts": 64,
            "num_experts_per_tok": 12,
        },
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {**ERNIE_MOE, "num_hidden_layers": 5, "moe_layer_interval": 2, "moe_layer_start_index": 2},
    ),
    "ernie4_5_moe-unshared": (
        "ernie4_5_moe",
        {
            **ERNIE_MOE,
            "num_hidden_layers": 3,
            "moe_layer_end_index": 1,
            "moe_num_shared_experts": 0,
            "tie_word_embeddings": True,
        },
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        {
            "head_dim": 24,
            "num_experts": 6,
            "moe_topk": 2,
            "intermediate_size": 48,
            "rope_parameters": NTK_ALPHA,
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {**GLM, "attention_bias": True, "use_qk_norm": True, "n_group": 4, "topk_group": 2},
    ),
    "glm4_moe-air": (  # neither norms of heads nor groups, and experts' weights as they are
        "glm4_moe",
        {**GLM, "num_hidden_layers": 3, "first_k_dense_replace": 2, "norm_topk_prob": False},
    ),
    "mimo": ("mimo", {"rms_norm_eps": 1e-5}),
    "pangu_pro_moe": ("pangu_pro_moe", PANGU),
    "minimax_m2": (
        "minimax_m2",
        {
            "head_dim": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "intermediate_size": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "partial_rotary_factor": 1 / 3,
            },
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "rope_parameters": MAGNIFIED},
    ),
    "deepseek_v2-queries": (
        "deepseek_v2",
        {**LATENT, "q_lora_rank": 64, "n_shared_experts": 2, "rope_parameters": MAGNIFIED},
    ),
    "deepseek_v2-grouped": (
        "deepseek_v2",
        {
            **LATENT,
            "q_lora_rank": 64,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **LATENT,
            "q_lora_rank": 64,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": {**MAGNIFIED, "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3-bias": (
        "deepseek_v3",
        {
            **LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "attention_bias": True,
            "rope_interleave": False,
        },
    ),
}

RECURRENT = {"qwen3_next"}
