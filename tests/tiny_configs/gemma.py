"""Tiny models of Gemma 3 and 4: windows, norms on both sides of a branch, shared caches."""

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


VISION3 = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
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
            "vision_config": VISION3,
        },
    ),
}

PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 4,  # less than any sequence that tests run
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

GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": [*["sliding_attention"] * 2, "full_attention", "full_attention"],
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
E4 = {  # as E2B and E4B are
    **GEMMA4,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_key_value_heads": 1,
    "vocab_size_per_layer_input": 256,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
EXPERTS4 = {  # as 26B-A4B is
    **GEMMA4,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}
VISION4 = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "position_embedding_size": 64,
}
MODELS |= {
    "gemma4": ("gemma4", {**E4, "vision_config": VISION4}),
    "gemma4_text": ("gemma4_text", EXPERTS4),
    "gemma4_unified_text": ("gemma4_unified_text", {**GEMMA4, "num_global_key_value_heads": 1}),
}
UNUSUAL |= {
    "gemma4-untied-bias": (
        "gemma4_text",
        {**E4, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma4-uncapped": ("gemma4_text", {**EXPERTS4, "final_logit_softcapping": None}),
    "gemma4-yarn": ("gemma4_text", {**GEMMA4, "rope_parameters": ropes(YARN, **LLAMA3)}),
    "gemma4-linear": (
        "gemma4_text",
        {**GEMMA4, "rope_parameters": ropes(rope_type="linear", factor=4.0)},
    ),
    "gemma4-half": (
        "gemma4_text",
        {
            **GEMMA4,
            "head_dim": 18,
            "global_head_dim": 20,
            "rope_parameters": ropes(
                {**PROPORTIONAL, "partial_rotary_factor": 0.5, "factor": 2.0}, **PROPORTIONAL
            ),
        },
    ),
    "gemma4-unturned": (
        "gemma4_text",
        {**GEMMA4, "rope_parameters": ropes({**PROPORTIONAL, "partial_rotary_factor": 0.0})},
    ),
    "gemma4-full": (
        "gemma4_text",
        {**GEMMA4, "layer_types": ["full_attention"] * 4, "num_key_value_heads": 4},
    ),
    "gemma4-default-layers": (
        "gemma4_text",
        {**GEMMA4, "layer_types": None, "num_hidden_layers": 8, "global_head_dim": 16},
    ),
    "gemma4-last-is-full": (
        "gemma4_text",
        {
            **GEMMA4,
            "layer_types": ["sliding_attention"] * 4,
            "sliding_window": 1,
            "rms_norm_eps": 1e-3,
        },
    ),
    "gemma4-mostly-shared": (
        "gemma4_text",
        {
            **E4,
            "layer_types": ["full_attention", *["sliding_attention"] * 4, "full_attention"],
            "num_kv_shared_layers": 4,
            "use_double_wide_mlp": False,
            "num_key_value_heads": 2,
        },
    ),
    "gemma4-values-are-keys": (
        "gemma4_text",
        {**GEMMA4, "attention_k_eq_v": True, "attention_bias": True, "num_attention_heads": 6},
    ),
    "gemma4-everything": (
        "gemma4_text",
        {
            **E4,
            "num_key_value_heads": 4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 2,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 5,
            "moe_intermediate_size": 24,
            "vocab_size_per_layer_input": 300,
        },
    ),
    "gemma4-one-expert": (
        "gemma4_text",
        {**EXPERTS4, "num_experts": 3, "top_k_experts": 1, "moe_intermediate_size": 40},
    ),
    "gemma4-unified-shared": (
        "gemma4_unified_text",
        {
            **{key: each for key, each in E4.items() if "per_layer" not in key},
            "hidden_size": 72,
            "intermediate_size": 88,
        },
    ),
}
# The same, of wrappers that also see, and of Gemma 4's form without embeddings of layers. The
# class of Gemma 3's wrapper passes over the cap of logits, which its text's class heeds; no release
# has one.
_NOT_UNIFIED = ("per_layer", "expert", "moe")
UNUSUAL |= {
    f"{name}, seen": (family, {**settings, **changes, "vision_config": vision})
    for wrapped, family, vision, changes in (
        ("gemma3_text", "gemma3", VISION3, {"final_logit_softcapping": None}),
        ("gemma4_text", "gemma4", VISION4, {}),
    )
    for name, (text, settings) in UNUSUAL.items()
    if text == wrapped
} | {
    f"{name}, unified": (
        "gemma4_unified_text",
        {key: each for key, each in settings.items() if not any(x in key for x in _NOT_UNIFIED)},
    )
    for name, (text, settings) in UNUSUAL.items()
    if text == "gemma4_text"
}
