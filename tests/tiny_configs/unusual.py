"""Valid but unusual configs of the families that are Llama's block but for a detail, or older.

What every family is tried with is written once; what a family lacks is left out for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tiny_configs.families_2025 import (
    ERNIE_MOE,
    GLM,
    LATENT,
    LINEAR,
    LLAMA3,
    MAGNIFIED,
    NTK_ALPHA,
    PANGU,
    YARN,
)
from tiny_configs.lfm2 import CONV
from tiny_configs.lfm2 import MOE as CONV_MOE
from tiny_configs.llama_likes import GRANITE, MINICPM, MINISTRAL_ROPE, OLMO_ROPES
from tiny_configs.sinks import CLAMPED, RAMP, SHORT, mimo_ropes

Changes = dict[str, dict[str, Any]]
Tried = dict[str, tuple[dict[str, Any], Iterable[Changes]]]
"""family -> (what it is by itself, what it is tried with)"""


def with_names(families: Tried) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return every config of the families, named by its family and what is unusual in it."""
    return {
        f"{family}, {name}": (family, {**base, **each})
        for family, (base, tried) in families.items()
        for changes in tried
        for name, each in changes.items()
    }


def rope(kind: str = "default", **changes: Any) -> dict[str, Any]:
    """A rotation's settings."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **changes}}


def longrope(pairs: int, original: int) -> dict[str, Any]:
    """LongRoPE of `pairs` frequencies, whose factors change beyond `original` tokens."""
    short, long = ([1 + rise * i for i in range(pairs)] for rise in (0.1, 0.7))
    found = rope(
        "longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
    )
    return {**found, "original_max_position_embeddings": original}


# Without head_dim a head has hidden_size / num_attention_heads = 16 numbers.
SIZES: Changes = {
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_key_value_heads": 4},
    "three heads": {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88},
    "five layers": {"num_hidden_layers": 5},
    "one layer": {"num_hidden_layers": 1},
    "large epsilon": {"rms_norm_eps": 1e-2},
}
TIE: Changes = {"tied": {"tie_word_embeddings": True}}
BIAS: Changes = {"bias": {"attention_bias": True}}
GELU: Changes = {"gelu": {"hidden_act": "gelu_pytorch_tanh"}}
_MLP_BIAS: Changes = {"bias in the MLP": {"mlp_bias": True}}
_ALL_BIASES: Changes = {"bias": {"attention_bias": True, "mlp_bias": True}}
_ERNIE_BIAS: Changes = {
    "bias": {"use_bias": True},
    "bias, untied": {"use_bias": True, "tie_word_embeddings": False},
}
WIDE: Changes = {"wide heads": {"head_dim": 40}, "narrow heads": {"head_dim": 6}}
ROPES: Changes = {
    "theta": rope(rope_theta=500.0),
    "linear": {"rope_parameters": LINEAR},
    "dynamic": rope("dynamic", factor=2.0),
    "yarn": {"rope_parameters": YARN},
    "yarn with a magnitude": {"rope_parameters": {**MAGNIFIED, "attention_factor": 1.3}},
    "llama3": {"rope_parameters": LLAMA3},
    "longrope beyond": longrope(8, 4),
    "longrope within": longrope(8, 256),
}
SCALED: Changes = {name: each for name, each in ROPES.items() if "longrope" not in name}
PART: Changes = {"a part of the head": rope(partial_rotary_factor=0.5)}
WINDOW: Changes = {
    "a window": {"sliding_window": 5},
    "a window of one": {"sliding_window": 1},
    "a wide window": {"sliding_window": 100},
}
_HEAD = {"head_dim": 16}
_EXPERTS: Changes = {
    "seven experts of which one": {"num_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"num_experts": 5, "num_experts_per_tok": 5},
    "narrow experts": {"moe_intermediate_size": 20},
}
_GRANITE: Changes = {
    "scales of one": dict.fromkeys(GRANITE, 1.0),
    "large scales": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22},
}
_SMOL: Changes = {
    "rotation everywhere": {"no_rope_layers": [1, 1]},
    "rotation nowhere": {"no_rope_layers": [0, 0]},
    "every second without": {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
}
_EXAONE: Changes = {
    "full attention only": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "no rotation at all": {"layer_types": ["full_attention"] * 2},
    "windows only": {"layer_types": ["sliding_attention"] * 2},
    "every second without": {"num_hidden_layers": 4, "sliding_window_pattern": 2},
    "a window of one": {"sliding_window": 1},
}
_CONVS: Changes = {
    "attention only": {"layer_types": ["full_attention"] * 4},
    "convolutions only": {"layer_types": ["conv"] * 4},
    "one tap more": {"conv_L_cache": 5},
    "biased convolutions": {"conv_bias": True},
    "untied": {"tie_word_embeddings": False},
    "norm's epsilon": {"norm_eps": 1e-2},
}
# Their layers are listed.
_CONV_SIZES: Changes = {name: each for name, each in SIZES.items() if "layer" not in name}
_CONV_EXPERTS: Changes = {
    **_EXPERTS,
    "not normalised": {"norm_topk_prob": False, "routed_scaling_factor": 0.7},
    "dense layers only": {"num_dense_layers": 4},
}


_SINKS: Changes = {
    "one kv head": {"num_key_value_heads": 1},
    "odd widths": {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 10},
    "windows only": {"layer_types": ["sliding_attention"] * 2},
    "no windows": {"layer_types": ["full_attention"] * 2},
    "a window of two": {"sliding_window": 2},
    "llama3": {"rope_parameters": LLAMA3},
}
_LATENT2 = {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "rope_parameters": MAGNIFIED}
_LATENTS: Changes = {
    "narrow": {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 20},
    "two rotated": {"qk_rope_head_dim": 2},
    "wide values": {"v_head_dim": 80, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16},
    "three heads": {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 3},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 24},
    "one shared": {"n_shared_experts": 1},
    "all experts": {"n_routed_experts": 5, "num_experts_per_tok": 5},
    "no dense layer": {"first_k_dense_replace": 0},
    "no multiples of 16": {"kv_lora_rank": 20, "qk_nope_head_dim": 12, "v_head_dim": 14},
    "smaller than 16": {"kv_lora_rank": 6, "qk_nope_head_dim": 4, "v_head_dim": 5},
    "more experts than groups hold": {
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 1,
        "num_experts_per_tok": 5,
    },
}
_MINICPM: Changes = {
    **{
        name: _LATENTS[name]
        for name in ("narrow", "two rotated", "no multiples of 16", "smaller than 16")
    },
    "no query latent": {"q_lora_rank": None},
    "values as wide as heads": {"v_head_dim": None},
    "no scales": {"scale_depth": None, "dim_model_base": None, "scale_emb": 1},
    "large scales": {"scale_emb": 30.5, "scale_depth": 9, "dim_model_base": 16},
    "untied": {"tie_word_embeddings": False},
    "longrope beyond": longrope(4, 4),
    "longrope within": longrope(4, 256),
}
_ERNIE_EXPERTS: Changes = {
    "seven experts of which one": {"moe_num_experts": 7, "moe_k": 1},
    "all experts": {"moe_num_experts": 5, "moe_k": 5},
    "narrow experts": {"moe_intermediate_size": 20},
}
_HUNYUAN_EXPERTS: Changes = {
    "seven experts of which one": {"num_experts": 7, "moe_topk": 1},
    "all experts": {"num_experts": 5, "moe_topk": 5},
    "alpha": {"rope_parameters": NTK_ALPHA},
}
_GLM_MOE: Changes = {
    "seven experts of which one": {"n_routed_experts": 7, "num_experts_per_tok": 1},
    "three shared": {"n_shared_experts": 3},
    "no dense layer": {"first_k_dense_replace": 0},
    "norms of heads": {"use_qk_norm": True, **rope(partial_rotary_factor=0.5)},
}

# Its class takes no rotation without these two.
_MINISTRAL: Changes = {
    name: {
        **each,
        "rope_parameters": {
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.3,
            **each["rope_parameters"],
        },
    }
    for name, each in {**ROPES, **PART}.items()
}

# Its class takes no other scaling.
_PHI: Changes = {
    "theta": ROPES["theta"],
    "longrope beyond": longrope(8, 4),
    "longrope within": longrope(8, 256),
    "longrope with a factor": {
        **longrope(8, 4),
        "rope_parameters": {**longrope(8, 4)["rope_parameters"], "factor": 3.0},
    },
    "longrope of a part": {
        **longrope(4, 4),
        "rope_parameters": {**longrope(4, 4)["rope_parameters"], "partial_rotary_factor": 0.5},
    },
}

# Each kind of layer has its own rotation.
_OLMO: Changes = {
    **{
        f"{name} without windows": {
            "rope_parameters": {**OLMO_ROPES, "full_attention": each["rope_parameters"]}
        }
        for name, each in ROPES.items()
    },
    "llama3 in windows": {"rope_parameters": {**OLMO_ROPES, "sliding_attention": LLAMA3}},
    "a window of one": {"sliding_window": 1},
    "windows only": {"layer_types": ["sliding_attention"] * 2},
    "no windows": {"layer_types": ["full_attention"] * 2},
    "full attention first": {"layer_types": ["full_attention", "sliding_attention"]},
}
# Its layers are listed, too.
_MIMO_SIZES: Changes = {
    "one kv head": {"num_key_value_heads": 1},
    "two kv heads": {"num_key_value_heads": 2},
    "three heads": {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 20},
    "large epsilon": {"rms_norm_eps": 1e-2},
    "narrow values": {"v_head_dim": 6},
    "wide values": {"v_head_dim": 40},
    "narrow keys": {"head_dim": 12, "rope_parameters": mimo_ropes(0.5)},
    "values as they are": {"attention_value_scale": 1.0},
    "windows only": {"layer_types": ["sliding_attention"] * 3},
    "no windows": {"layer_types": ["full_attention"] * 3},
    "a window of two": {"sliding_window": 2},
    "dense layers only": {"mlp_layer_types": ["dense"] * 3},
    "mixtures only": {"mlp_layer_types": ["sparse"] * 3},
    "seven experts of which one": {"n_routed_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"n_routed_experts": 5, "num_experts_per_tok": 5},
    "bias": {"attention_bias": True},
    "yarn": {"rope_parameters": mimo_ropes(0.5, **YARN)},
    "linear": {"rope_parameters": mimo_ropes(1.0, **LINEAR)},
}
_MINIMAX: Changes = {
    "seven experts of which one": {"num_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"num_experts": 5, "num_experts_per_tok": 5},
    "narrow experts": {"intermediate_size": 20},
    "three quarters of the head": rope(partial_rotary_factor=0.75),
}
_MIXTRAL: Changes = {
    "seven experts of which one": {"num_local_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"num_local_experts": 5, "num_experts_per_tok": 5},
    "narrow experts": {"intermediate_size": 20},
}
_OLMOE: Changes = {
    "seven experts of which one": {"num_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"num_experts": 5, "num_experts_per_tok": 5},
    "normalised": {"norm_topk_prob": True},
}
_PANGU_EXPERTS: Changes = {
    "one of each of two": {"num_experts": 8, "num_experts_per_tok": 4},
    "one of all": {"num_experts": 6, "num_experts_per_tok": 1},
    "all experts": {"num_experts": 3, "num_experts_per_tok": 3},
    "narrow experts": {"moe_intermediate_size": 20},
    "a narrow shared expert": {"shared_expert_intermediate_size": 12},
    "theta": {"rope_theta": 500.0},
}

FAMILIES: Tried = {
    "llama": ({}, [SIZES, TIE, BIAS, _MLP_BIAS, WIDE, ROPES, GELU]),
    "mistral": ({"sliding_window": None}, [SIZES, TIE, WIDE, ROPES, WINDOW, GELU]),
    "ministral3": (
        {**_HEAD, "sliding_window": None, "rope_parameters": MINISTRAL_ROPE},
        [SIZES, TIE, WIDE, WINDOW, _MINISTRAL, GELU],
    ),
    "phi3": ({}, [SIZES, TIE, _PHI, WINDOW, PART, GELU]),
    "smollm3": ({}, [SIZES, TIE, BIAS, _MLP_BIAS, ROPES, _SMOL, GELU]),
    "seed_oss": (_HEAD, [SIZES, TIE, BIAS, _MLP_BIAS, WIDE, ROPES, GELU]),
    "glm4": (_HEAD, [SIZES, TIE, BIAS, WIDE, SCALED, PART, GELU]),
    "granite": (GRANITE, [SIZES, TIE, BIAS, _MLP_BIAS, ROPES, _GRANITE, GELU]),
    "olmo2": ({}, [SIZES, TIE, BIAS, ROPES, PART, GELU]),
    "internlm3": (_HEAD, [SIZES, TIE, _ALL_BIASES, ROPES, GELU]),
    "iquestcoder": (_HEAD, [SIZES, TIE, BIAS, _MLP_BIAS, WIDE, ROPES, GELU]),
    "exaone4": ({"sliding_window": 8}, [SIZES, TIE, WIDE, ROPES, PART, _EXAONE, GELU]),
    "exaone": ({}, [SIZES, TIE, BIAS, _MLP_BIAS, ROPES, PART, GELU]),
    "ernie4_5": (_HEAD, [SIZES, TIE, _ERNIE_BIAS, WIDE, ROPES, GELU]),
    "ernie4_5_moe": (ERNIE_MOE, [SIZES, TIE, _ERNIE_BIAS, ROPES, PART, _ERNIE_EXPERTS, GELU]),
    "hunyuan_v1_dense": (_HEAD, [SIZES, TIE, BIAS, WIDE, ROPES, GELU]),
    "hunyuan_v1_moe": (
        {**_HEAD, "num_experts": 6, "moe_topk": 2, "intermediate_size": 48},
        [SIZES, TIE, BIAS, ROPES, _HUNYUAN_EXPERTS, GELU],
    ),
    "glm4_moe": (GLM, [SIZES, TIE, BIAS, WIDE, SCALED, PART, _GLM_MOE, GELU]),
    "deepseek_v2": (_LATENT2, [TIE, _MLP_BIAS, _LATENTS, PART, GELU]),
    "minicpm3": (MINICPM, [_MINICPM, BIAS, _MLP_BIAS, SCALED, GELU]),
    "gpt_oss": ({**CLAMPED, "rope_parameters": RAMP}, [_SINKS]),
    "olmo3": ({"sliding_window": 8}, [SIZES, TIE, BIAS, _OLMO, GELU]),
    "mixtral": (
        {**_HEAD, "num_local_experts": 8, "num_experts_per_tok": 3},
        [SIZES, TIE, WIDE, ROPES, WINDOW, GELU, _MIXTRAL],
    ),
    "olmoe": (
        {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40},
        [SIZES, TIE, BIAS, ROPES, PART, _OLMOE, GELU],
    ),
    "minimax_m2": (
        {**_HEAD, "num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 32},
        [SIZES, TIE, WIDE, SCALED, PART, _MINIMAX, GELU],
    ),
    "mimo_v2_flash": (SHORT, [TIE, _MIMO_SIZES, GELU]),
    "pangu_embedded": ({}, [SIZES, TIE, ROPES]),
    "pangu_pro_moe": (PANGU, [SIZES, _PANGU_EXPERTS]),
    "lfm2": (CONV, [_CONV_SIZES, _CONVS, PART]),
    "lfm2_moe": (CONV_MOE, [_CONV_SIZES, _CONVS, _CONV_EXPERTS, PART]),
}


UNUSUAL = with_names(FAMILIES)
