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
    YARN,
)
from tiny_configs.lfm2 import CONV
from tiny_configs.lfm2 import MOE as CONV_MOE
from tiny_configs.llama_likes import GRANITE, MINISTRAL_ROPE
from tiny_configs.sinks import CLAMPED, RAMP

Changes = dict[str, dict[str, Any]]


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

# family -> (what it is by itself, what it is tried with)
FAMILIES: dict[str, tuple[dict[str, Any], Iterable[Changes]]] = {
    "llama": ({}, [SIZES, TIE, BIAS, WIDE, ROPES]),
    "mistral": ({"sliding_window": None}, [SIZES, TIE, WIDE, ROPES, WINDOW]),
    "ministral3": (
        {**_HEAD, "sliding_window": None, "rope_parameters": MINISTRAL_ROPE},
        [SIZES, TIE, WIDE, WINDOW, _MINISTRAL],
    ),
    "phi3": ({}, [SIZES, TIE, _PHI, WINDOW, PART]),
    "smollm3": ({}, [SIZES, TIE, BIAS, ROPES, _SMOL]),
    "seed_oss": (_HEAD, [SIZES, TIE, BIAS, WIDE, ROPES]),
    "glm4": (_HEAD, [SIZES, TIE, BIAS, WIDE, SCALED, PART]),
    "granite": (GRANITE, [SIZES, TIE, BIAS, ROPES, _GRANITE]),
    "olmo2": ({}, [SIZES, TIE, BIAS, ROPES, PART]),
    "internlm3": (_HEAD, [SIZES, TIE, ROPES]),
    "iquestcoder": (_HEAD, [SIZES, TIE, WIDE, ROPES]),
    "exaone": ({}, [SIZES, TIE, ROPES, PART]),
    "ernie4_5": (_HEAD, [SIZES, TIE, WIDE, ROPES]),
    "ernie4_5_moe": (ERNIE_MOE, [SIZES, TIE, ROPES, PART, _ERNIE_EXPERTS]),
    "hunyuan_v1_dense": (_HEAD, [SIZES, TIE, BIAS, WIDE, ROPES]),
    "hunyuan_v1_moe": (
        {**_HEAD, "num_experts": 6, "moe_topk": 2, "intermediate_size": 48},
        [SIZES, TIE, BIAS, ROPES, _HUNYUAN_EXPERTS],
    ),
    "glm4_moe": (GLM, [SIZES, TIE, BIAS, WIDE, SCALED, PART, _GLM_MOE]),
    "deepseek_v2": (_LATENT2, [TIE, _LATENTS, PART]),
    "gpt_oss": ({**CLAMPED, "rope_parameters": RAMP}, [_SINKS]),
    "lfm2": (CONV, [_CONV_SIZES, _CONVS, PART]),
    "lfm2_moe": (CONV_MOE, [_CONV_SIZES, _CONVS, _CONV_EXPERTS, PART]),
}


def _grid() -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for family, (base, tried) in FAMILIES.items():
        for changes in tried:
            for name, each in changes.items():
                found[f"{family}, {name}"] = family, {**base, **each}
    return found


UNUSUAL = _grid()
