"""Tiny models of the families whose block is Llama's but for a detail."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import LINEAR, LLAMA3, YARN

MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.2, 3.0, 5.0, 9.0, 14.0, 20.0],
}
# All of the sequences that tests run are longer than this.
LONG_SOON = {**LONG, "original_max_position_embeddings": 4}
# As MiniCPM3 has it, of a head's 8 dimensions that rotate.
LONG_AT_ONCE = {
    **LONG,
    "original_max_position_embeddings": 256,
    "short_factor": LONG["short_factor"][3:7],
    "long_factor": LONG["long_factor"][:4],
}
GLM_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.5,
}
OLMO_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    "full_attention": YARN,
}

MINICPM = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 48,
    "tie_word_embeddings": True,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "mixtral": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "head_dim": 24}),
    "mixtral-sliding": (
        "mixtral",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 1,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    ),
    "mistral-sliding": ("mistral", {"sliding_window": 8, "tie_word_embeddings": True}),
    "ministral3": (
        "ministral3",
        {"head_dim": 24, "rope_parameters": MINISTRAL_ROPE, "sliding_window": None},
    ),
    "ministral3-plain": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                **MINISTRAL_ROPE,
                "llama_4_scaling_beta": 0.7,
                "mscale": 0.9,
                "mscale_all_dim": 0.5,
            },
            "sliding_window": 12,
            "num_key_value_heads": 1,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": 24}),
    "seed_oss-all-biased": (
        "seed_oss",
        {"head_dim": 16, "attention_out_bias": True, "tie_word_embeddings": True},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "smollm3-listed": (
        "smollm3",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [0, 1, 1],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "rope_parameters": LLAMA3,
        },
    ),
    "granite": ("granite", GRANITE),
    "granite-tied-bias": (
        "granite",
        {**GRANITE, "tie_word_embeddings": True, "attention_bias": True, "rope_parameters": YARN},
    ),
    "glm4": ("glm4", {"head_dim": 24, "rope_parameters": GLM_HALF}),
    "glm4-unbiased": (
        "glm4",
        {
            "head_dim": 16,
            "attention_bias": False,
            "rope_parameters": GLM_HALF,
            "rms_norm_eps": 1e-5,
        },
    ),
    "olmo3": (
        "olmo3",
        {"num_hidden_layers": 4, "sliding_window": 8, "rope_parameters": OLMO_ROPES},
    ),
    "olmo3-full": (
        "olmo3",
        {
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "num_key_value_heads": 4,
            "attention_bias": True,
        },
    ),
    "exaone4": (
        "exaone4",
        {"num_hidden_layers": 5, "sliding_window": 8, "head_dim": 24, "rope_parameters": LLAMA3},
    ),
    "exaone4-full": (
        "exaone4",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", {"num_key_value_heads": 1, "rope_parameters": LINEAR}),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40}),
    "olmoe-biased": (
        "olmoe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": YARN,
        },
    ),
    "phi3": ("phi3", {"num_key_value_heads": 4}),
    "phi3-long": ("phi3", {"rope_parameters": LONG_SOON, "original_max_position_embeddings": 4}),
    "phi3-short": (
        "phi3",
        {
            "rope_parameters": {**LONG, "original_max_position_embeddings": 256},
            "original_max_position_embeddings": 256,
            "sliding_window": 9,
        },
    ),
    "phi3-partial": (
        "phi3",
        {
            "rope_parameters": {
                **LONG_SOON,
                "partial_rotary_factor": 0.75,
                "short_factor": LONG["short_factor"][:6],
                "long_factor": LONG["long_factor"][:6],
            },
            "original_max_position_embeddings": 4,
            "tie_word_embeddings": True,
        },
    ),
    "minicpm3": ("minicpm3", MINICPM),
    "minicpm3-long": ("minicpm3", {**MINICPM, "rope_parameters": LONG_AT_ONCE}),
    "minicpm3-odd": (  # widths that are no multiples of 16
        "minicpm3",
        {
            **MINICPM,
            "q_lora_rank": None,
            "kv_lora_rank": 20,
            "qk_nope_head_dim": 12,
            "v_head_dim": 18,
            "tie_word_embeddings": False,
            "scale_emb": 3,
            "scale_depth": 0.9,
            "dim_model_base": 32,
            "num_hidden_layers": 3,
        },
    ),
    "internlm3": ("internlm3", {"head_dim": 16}),
    "iquestcoder": ("iquestcoder", {"head_dim": 24, "rope_parameters": LLAMA3}),
    "exaone": ("exaone", {"rope_parameters": LLAMA3}),
}
