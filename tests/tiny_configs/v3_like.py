"""Tiny models of the families of 2026 whose layers or routers are DeepSeek-V3's."""

from __future__ import annotations

from typing import Any

from tiny_configs.families_2025 import GLM, LATENT, LINEAR, LLAMA3, MAGNIFIED, YARN

FLASH = {  # values wider than the unrotated part of keys
    **{key: value for key, value in LATENT.items() if key != "first_k_dense_replace"},
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "q_lora_rank": 48,
    "n_shared_experts": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}
DOTS = {
    "head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "noaux_tc",
}
LING = {**GLM, "num_hidden_layers": 3, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
HY3 = {
    "head_dim": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
}
SOLAR = {
    "head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.7,
}

EXAONE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 24,
    "sliding_window": 8,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.7,
}

# Enough heads that no score is 0 by all of them being negative: of equal scores nobody says which
# is chosen.
INDEXED = {
    **LATENT,
    "q_lora_rank": 64,
    "index_n_heads": 12,
    "index_head_dim": 16,
    "index_topk": 6,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe_lite": ("glm4_moe_lite", FLASH),
    "deepseek_v32": ("deepseek_v32", {**INDEXED, "n_group": 4, "topk_group": 2}),
    "deepseek_v32-40": (  # sequences above and below, and a number that fills no block
        "deepseek_v32",
        {**INDEXED, "n_group": 1, "topk_group": 1, "index_topk": 37, "index_head_dim": 48},
    ),
    "glm_moe_dsa": (
        "glm_moe_dsa",
        {**INDEXED, "num_hidden_layers": 5, "index_topk_freq": 3, "index_topk": 11},
    ),
    "dots1": ("dots1", DOTS),
    "dots1-sliding": (
        "dots1",
        {
            **DOTS,
            "sliding_window": 8,
            "max_window_layers": 2,
            "n_group": 4,
            "topk_group": 2,
            "attention_bias": True,
        },
    ),
    "bailing_moe_v2": ("bailing_moe_v2", LING),
    "bailing_moe_v2-groups": (
        "bailing_moe_v2",
        {**LING, "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 2},
    ),
    "hy_v3": ("hy_v3", HY3),
    "exaone_moe": ("exaone_moe", EXAONE),
    "exaone_moe-listed": (
        "exaone_moe",
        {
            **EXAONE,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "num_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
    "solar_open": ("solar_open", SOLAR),
    "solar_open-bias": (
        "solar_open",
        {**SOLAR, "attention_bias": True, "n_group": 4, "topk_group": 2, "norm_topk_prob": False},
    ),
}


def _partial(fraction: float) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    return {"rope_parameters": rope}


# What attention on plain keys and values is tried with: name -> what differs from the family's.
_PLAIN: dict[str, dict[str, Any]] = {
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_key_value_heads": 4, "head_dim": 16},
    "three heads": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 20},
    "wide heads": {"head_dim": 40},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 24},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
    "linear": {"rope_parameters": LINEAR},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "large epsilon": {"rms_norm_eps": 1e-2},
    "one layer": {"num_hidden_layers": 1},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
}
_ROUTED: dict[str, dict[str, Any]] = {
    "seven experts of which one": {"n_routed_experts": 7, "num_experts_per_tok": 1},
    "all experts": {"n_routed_experts": 5, "num_experts_per_tok": 5},
    "three shared": {"n_shared_experts": 3},
    "groups": {"n_group": 2, "topk_group": 1, "n_routed_experts": 10},
    "every group": {"n_group": 4, "topk_group": 4},
    "not normalised": {"norm_topk_prob": False, "routed_scaling_factor": 0.7},
}
_LATENTS: dict[str, dict[str, Any]] = {
    "no query latent": {"q_lora_rank": None},
    "narrow": {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 20},
    "wide values": {"v_head_dim": 80, "qk_nope_head_dim": 48, "qk_rope_head_dim": 16},
    "no multiples of 16": {"kv_lora_rank": 20, "qk_nope_head_dim": 12, "v_head_dim": 14},
    "two rotated": {"qk_rope_head_dim": 2},
    "three heads": {"num_attention_heads": 3, "num_key_value_heads": 3},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "odd widths": {"hidden_size": 72, "intermediate_size": 88, "moe_intermediate_size": 24},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "yarn": {"rope_parameters": {**MAGNIFIED, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "linear with a magnitude": {"rope_parameters": {**LINEAR, "mscale_all_dim": 0.7}},
    "dynamic with a magnitude": {
        "rope_parameters": {
            "rope_type": "dynamic",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "mscale_all_dim": 0.7,
        }
    },
    "llama3": {"rope_parameters": LLAMA3},
    "halves": {"rope_interleave": False},
    "large epsilon": {"rms_norm_eps": 1e-2},
}
_INDEXERS: dict[str, dict[str, Any]] = {
    "one token chosen": {"index_topk": 1},
    "more chosen than there are": {"index_topk": 1000},
    "all but the last chosen": {"index_topk": 39},
    "wide indexer": {"index_n_heads": 21, "index_head_dim": 64},
    "indexer rotated whole": {"qk_rope_head_dim": 16},
    "odd indexer": {"index_head_dim": 27},
}
_SHARED_CHOICES: dict[str, dict[str, Any]] = {
    "every second chooses": {"index_topk_freq": 2},
    "none is skipped": {"index_topk_freq": 2, "index_skip_topk_offset": 1},
    "a pattern": {"index_topk_pattern": "FSSF"},
    "kinds": {"indexer_types": ["full", "shared", "shared", "shared"]},
}
# The families that were there before: what they read otherwise than transformers, or not at all.
_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{family}, a part of the head is named": (family, _partial(0.5))
        for family in (
            "llama",
            "qwen2",
            "qwen3",
            "ernie4_5",
            "mistral",
            "smollm3",
            "seed_oss",
            "granite",
        )
    },
    "glm4_moe, an odd number of dims": (
        "glm4_moe",
        {**GLM, "head_dim": 18, **_partial(0.5), "n_group": 1, "topk_group": 1},
    ),
    "hunyuan_v1_moe, experts per layer": (
        "hunyuan_v1_moe",
        {"head_dim": 24, "num_experts": 6, "moe_topk": [2, 3], "intermediate_size": 48},
    ),
    "deepseek_v2, dynamic with a magnitude": (
        "deepseek_v2",
        {**LATENT, "q_lora_rank": None, **_LATENTS["dynamic with a magnitude"]},
    ),
}


def _with_experts(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes with the key that a family has for the number of its experts."""
    own = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
    same = {"hy_v3": own, "exaone_moe": own}
    names = {**same.get(name, {})}
    if name == "hy_v3":
        names |= {"routed_scaling_factor": "router_scaling_factor"}
    return {names.get(key, key): value for key, value in changes.items()}


def _grid() -> dict[str, tuple[str, dict[str, Any]]]:
    found = dict(_FAULTS)
    for family, base in (
        ("dots1", DOTS),
        ("hy_v3", HY3),
        ("exaone_moe", EXAONE),
        ("solar_open", SOLAR),
        ("bailing_moe_v2", LING),
    ):
        for name, changes in {**_PLAIN, **_ROUTED}.items():
            if family == "hy_v3" and ("n_group" in changes or "norm_topk_prob" in changes):
                continue  # it has neither
            if family == "bailing_moe_v2" and "norm_topk_prob" in changes:
                continue  # which its makers' code passes over
            found[f"{family}, {name}"] = family, {**base, **_with_experts(family, changes)}
    kinds = ["sparse", "dense", "sparse"]
    found["hy_v3, a dense layer in the middle"] = "hy_v3", {**HY3, "mlp_layer_types": kinds}
    found["hy_v3, bias in the MLP"] = "hy_v3", {**HY3, "mlp_bias": True}
    lite = {**FLASH}
    for name, changes in {**_LATENTS, **_ROUTED}.items():
        found[f"glm4_moe_lite, {name}"] = "glm4_moe_lite", {**lite, **changes}
    found["glm4_moe_lite, a dense layer last"] = (
        "glm4_moe_lite",
        {**lite, "mlp_layer_types": ["sparse", "sparse", "dense"]},
    )
    kimi = {**LATENT, "q_lora_rank": 64, "n_group": 1, "topk_group": 1}
    for name, changes in {**_LATENTS, **_ROUTED}.items():
        found[f"deepseek_v3, {name}"] = "deepseek_v3", {**kimi, **changes}
    for family in ("deepseek_v32", "glm_moe_dsa"):
        base = {**INDEXED, "index_topk": 9, "n_group": 1, "topk_group": 1}
        for name, changes in {**_LATENTS, **_INDEXERS, **_ROUTED}.items():
            if name not in ("no query latent", "halves"):  # which transformers does not have here
                found[f"{family}, {name}"] = family, {**base, **changes}
    for name, changes in _SHARED_CHOICES.items():
        changed = {**INDEXED, "num_hidden_layers": 4, **changes}
        found[f"glm_moe_dsa, {name}"] = "glm_moe_dsa", changed
    return found


UNUSUAL = _grid()
"""Valid but unusual configs: name -> (model_type, what differs from COMMON)."""
