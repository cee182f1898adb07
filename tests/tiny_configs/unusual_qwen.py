"""Valid but unusual configs of Qwen's families, and of those whose classes are Qwen's."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import EXPERTS, LINEAR, LLAMA3, NEXT, SHARED, YARN
from tiny_configs.qwen_2026 import DEEP, DELTA, ROUTED, SECTIONS, SEEN, VISION
from tiny_configs.unusual import (
    BIAS,
    GELU,
    PART,
    ROPES,
    SIZES,
    TIE,
    WIDE,
    Changes,
    Tried,
    longrope,
    rope,
    with_names,
)

_HEAD = {"head_dim": 16}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5}
_WINDOWS: Changes = {
    "windows in all layers": {**_WINDOW, "max_window_layers": 0},
    "windows in later layers": {**_WINDOW, "max_window_layers": 2, "num_hidden_layers": 3},
    "a window in the first layer": {
        **_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "a window of one": {**_WINDOW, "sliding_window": 1, "max_window_layers": 1},
    "a window that is off": {**_WINDOW, "use_sliding_window": False},
}
# Of the mixture every layer has a window or none has: transformers passes over layer_types there.
_MOE_WINDOWS: Changes = {
    "windows": _WINDOW,
    "a window of one": {**_WINDOW, "sliding_window": 1},
    "a window that is off": {**_WINDOW, "use_sliding_window": False},
}
_LISTED_WINDOWS: Changes = {
    name: {**_WINDOW, "layer_types": kinds}
    for name, kinds in {
        "a window in the last layer": ["full_attention", "sliding_attention"],
        "windows listed in all layers": ["sliding_attention"] * 2,
    }.items()
}
_EXPERTS: Changes = {
    "seven experts of which one": {"num_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"num_experts": 5, "num_experts_per_tok": 5},
    "narrow experts": {"moe_intermediate_size": 20},
    "experts as wide as the model": {"moe_intermediate_size": 64},
}
_NORMALISED: Changes = {
    "normalised": {"norm_topk_prob": True},
    "not normalised": {"norm_topk_prob": False},
}
_DENSE: Changes = {
    "every second layer dense": {"num_hidden_layers": 3, "decoder_sparse_step": 2},
    "dense layers only": {"mlp_only_layers": [0, 1]},
}
_SHARED: Changes = {
    "a narrow shared expert": {"shared_expert_intermediate_size": 12},
    "a wide shared expert": {"shared_expert_intermediate_size": 100},
}
_DELTAS: Changes = {
    "one key head": {"linear_num_key_heads": 1},
    "as many key heads as value heads": {"linear_num_key_heads": 4},
    "three value heads a key head": {"linear_num_value_heads": 6},
    "one delta head": {"linear_num_key_heads": 1, "linear_num_value_heads": 1},
    "wide keys": {"linear_key_head_dim": 40, "linear_value_head_dim": 12},
    "wide values": {"linear_key_head_dim": 6, "linear_value_head_dim": 36},
    "two taps": {"linear_conv_kernel_dim": 2},
    "five taps": {"linear_conv_kernel_dim": 5},
    "attention first": {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "delta layers only": {"num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2},
    "attention only": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
}
_INTERVAL: Changes = {
    "every second is attention": {"num_hidden_layers": 3, "full_attention_interval": 2},
}


def _part(settings: dict[str, Any], part: float) -> dict[str, Any]:
    return {"rope_parameters": {**settings["rope_parameters"], "partial_rotary_factor": part}}


# Of a head of 32, of which a quarter turns; llama3's and YaRN's ramps then have four frequencies.
_QUARTERS: Changes = {
    **{name: _part(each, 0.25) for name, each in ROPES.items() if "longrope" not in name},
    "longrope beyond": {**longrope(4, 4), **_part(longrope(4, 4), 0.25)},
    "longrope within": {**longrope(4, 256), **_part(longrope(4, 256), 0.25)},
    "the whole head": rope(partial_rotary_factor=1.0),
    "two dims": rope(partial_rotary_factor=1 / 16),
    "llama3 of half": _part({"rope_parameters": LLAMA3}, 0.5),
    "no part is named": rope(),
}
_PROPORTIONAL: Changes = {
    "proportional": rope("proportional", partial_rotary_factor=0.5),
    "proportional and a factor": rope("proportional", partial_rotary_factor=0.25, factor=2.0),
}
_SEEN = {**SEEN, "vision_config": VISION}
_FEW: Changes = {
    name: {**SIZES, **TIE, **_DELTAS}[name]
    for name in (
        "one kv head",
        "three heads",
        "odd widths",
        "one layer",
        "large epsilon",
        "tied",
        "one key head",
        "three value heads a key head",
        "five taps",
        "attention first",
        "delta layers only",
    )
}
_FEW_ROPES: Changes = {name: _QUARTERS[name] for name in ("yarn", "linear", "no part is named")}
_SECTIONS: Changes = {
    "other sections": {"rope_parameters": {**SECTIONS, "mrope_section": [4, 2, 2]}},
    "sections that are not interleaved": {
        "rope_parameters": {**SECTIONS, "mrope_section": [4, 2, 2], "mrope_interleaved": False}
    },
    "no sections": rope(),
    "yarn": {"rope_parameters": YARN},
    "linear": {"rope_parameters": LINEAR},
}

FAMILIES: Tried = {
    "qwen2": ({}, [SIZES, TIE, WIDE, ROPES, PART, _WINDOWS, GELU]),
    "qwen3": (_HEAD, [SIZES, TIE, BIAS, WIDE, ROPES, PART, _PROPORTIONAL, _WINDOWS, GELU]),
    "qwen2_moe": (
        {**EXPERTS, **SHARED, **_HEAD},
        [
            *(SIZES, TIE, ROPES, PART, _EXPERTS, _NORMALISED, _DENSE, _SHARED, _LISTED_WINDOWS),
            {"no bias": {"qkv_bias": False}},
            GELU,
        ],
    ),
    "qwen3_moe": (
        {**EXPERTS, **_HEAD},
        [SIZES, TIE, BIAS, WIDE, ROPES, PART, _EXPERTS, _NORMALISED, _DENSE, _MOE_WINDOWS, GELU],
    ),
    "qwen3_next": (
        {**NEXT, "head_dim": 32},
        [SIZES, TIE, BIAS, _QUARTERS, _EXPERTS, _NORMALISED, _DENSE, _SHARED, _DELTAS, _INTERVAL],
    ),
    "qwen3_5_text": (DELTA, [SIZES, TIE, BIAS, WIDE, _QUARTERS, _DELTAS, _INTERVAL]),
    "qwen3_5_moe_text": (
        ROUTED,
        [SIZES, TIE, BIAS, _QUARTERS, _EXPERTS, _SHARED, _DELTAS, _INTERVAL],
    ),
    "qwen3_5": ({**DELTA, **_SEEN}, [_FEW, _FEW_ROPES, BIAS]),
    "qwen3_5_moe": ({**ROUTED, **_SEEN}, [_FEW, _FEW_ROPES, _EXPERTS]),
    "qwen3_vl": (
        {**_HEAD, **rope(), "vision_config": DEEP},
        [SIZES, TIE, BIAS, WIDE, _SECTIONS],
    ),
    "qwen3_vl_moe": (
        {**EXPERTS, **_HEAD, **rope(), "vision_config": DEEP},
        [SIZES, TIE, BIAS, _SECTIONS, _EXPERTS],
    ),
    "mimo": ({}, [SIZES, TIE, WIDE, ROPES]),
}
UNUSUAL = with_names(FAMILIES)
