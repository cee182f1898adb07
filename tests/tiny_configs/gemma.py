"""Tiny models of Gemma 3: windows, norms on both sides of a branch, soft-capped logits."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import LLAMA3, YARN

GEMMA3 = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 16,
    "tie_word_embeddings": True,
}


def ropes(full: dict[str, Any] | None = None, **sliding: Any) -> dict[str, Any]:
    """A table of rotations: of layers without a window, and of those with one."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return {
        "full_attention": {**plain, "rope_theta": 50000.0, **(full or {})},
        "sliding_attention": {**plain, **sliding},
    }


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_text": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": ropes(), "final_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "gemma3",
        {
            **GEMMA3,
            "rope_parameters": ropes({"rope_type": "linear", "factor": 8.0}, rope_theta=3000.0),
            "num_key_value_heads": 1,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
            },
        },
    ),
}

PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i / 2 for i in range(8)],
}
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3-untied-bias": (
        "gemma3_text",
        {
            **GEMMA3,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3-yarn": ("gemma3_text", {**GEMMA3, "rope_parameters": ropes(YARN)}),
    "gemma3-llama3": ("gemma3_text", {**GEMMA3, "rope_parameters": ropes(LLAMA3, **YARN)}),
    "gemma3-longrope": ("gemma3_text", {**GEMMA3, "rope_parameters": ropes(LONG)}),
    "gemma3-dynamic": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": ropes({"rope_type": "dynamic", "factor": 4.0})},
    ),
    "gemma3-proportional": (
        "gemma3_text",
        {
            **GEMMA3,
            "head_dim": 20,
            "rope_parameters": ropes({**PROPORTIONAL, "factor": 2.0}, **PROPORTIONAL),
        },
    ),
    "gemma3-sliding-linear": (
        "gemma3_text",
        {**GEMMA3, "rope_parameters": ropes(rope_type="linear", factor=4.0)},
    ),
    "gemma3-full": (
        "gemma3_text",
        {
            **GEMMA3,
            "layer_types": ["full_attention"] * 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "query_pre_attn_scalar": 100,
        },
    ),
    "gemma3-window-of-one": (
        "gemma3_text",
        {**GEMMA3, "layer_types": ["sliding_attention"] * 3, "sliding_window": 1},
    ),
    "gemma3-default-layers": (
        "gemma3_text",
        {**GEMMA3, "layer_types": None, "num_hidden_layers": 7, "rms_norm_eps": 1e-3},
    ),
    "gemma3-ignored": (  # what transformers reads and does not use
        "gemma3_text",
        {
            **GEMMA3,
            "attn_logit_softcapping": 0.5,
            "rope_parameters": ropes({"partial_rotary_factor": 0.5}),
        },
    ),
    "gemma3-odd": (
        "gemma3_text",
        {
            **GEMMA3,
            "hidden_size": 72,
            "intermediate_size": 88,
            "head_dim": 18,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "sliding_window": 5,
        },
    ),
}
