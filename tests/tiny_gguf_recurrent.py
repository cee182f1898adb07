"""How llama.cpp's converters recast recurrent layers: the Gated DeltaNets of Qwen3-Next and
Qwen3.5, and the Kimi Delta Attention of Kimi-Linear and Ling-3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

Config = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


def add_recurrent_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """The keys that their converters write beside the common ones."""
    newer = config["model_type"].startswith("qwen3_5")
    factor = config["rope_parameters"].get("partial_rotary_factor", 0.25)
    writer.add_rope_dimension_count(int(config["head_dim"] * factor))
    if newer:
        writer.add_rope_dimension_sections([11, 11, 10, 0])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    heads = config["linear_num_value_heads"]
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * heads)
    drafts = config.get("num_nextn_predict_layers", 0)
    if drafts:
        writer.add_nextn_predict_layers(drafts)
    kinds = config.get("layer_types") or []  # without: by the interval
    by_interval = [(i + 1) % 4 != 0 for i in range(len(kinds))]
    recurrent = [kind == "linear_attention" for kind in kinds]
    if recurrent == by_interval:  # as older files have it
        writer.add_full_attention_interval(4)
    else:
        recurrent += [False] * drafts
        writer.add_array(f"{writer.arch}.attention.recurrent_layers", recurrent)


def recast(config: Config, parameters: Arrays) -> Arrays:
    """qwen3_next's and qwen3_5's parameters as llama.cpp's converter recasts them: norms without
    their offset, the decay without its logarithm, q k v of all heads and then z (in older_form, by
    key head); qwen3_5's with value heads in another order.
    """
    heads, size = config["linear_num_key_heads"], config["linear_key_head_dim"]
    each = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    out: Arrays = {}
    if config["model_type"].startswith("qwen3_5"):
        parameters = {name: _tiled(name, values, config) for name, values in parameters.items()}
    for name, values in parameters.items():
        before, _, kind = name.partition(".linear_attn.")
        if name.endswith("norm.weight") and kind != "norm.weight":
            out[name] = values + np.float32(1)
        elif kind == "A_log":
            out[name] = (-np.exp(values.astype(np.float64))).astype(np.float32)
        elif kind == "dt_bias":
            out[f"{before}.linear_attn.dt_proj.bias"] = values
        elif kind == "conv1d.weight":
            out[name] = values[:, 0]
        elif name.endswith("shared_expert_gate.weight") and config.get("older_form"):
            out[name] = values[0]
        elif kind == "in_proj_qkvz.weight" and not config.get("older_form"):
            rows = values.reshape(heads, -1, values.shape[1])
            parts = np.split(rows, [size, 2 * size, 2 * size + each], axis=1)
            q, k, v, z = (part.reshape(-1, values.shape[1]) for part in parts)
            out[f"{before}.linear_attn.in_proj_qkv.weight"] = np.concatenate([q, k, v])
            out[f"{before}.linear_attn.in_proj_z.weight"] = z
        else:
            out[name] = values
    return out


def _tiled(name: str, values: np.ndarray, config: Config) -> np.ndarray:
    """A parameter of a Gated DeltaNet with the first value head of each key head, then the second
    of each, and so on, along whichever dimension has them.
    """
    kind = name.partition(".linear_attn.")[2].removesuffix(".weight")
    keys, size = config["linear_num_key_heads"], config["linear_value_head_dim"]
    start = 2 * keys * config["linear_key_head_dim"] if kind in ("in_proj_qkv", "conv1d") else 0
    if kind == "out_proj":
        return np.ascontiguousarray(
            _tiled(name.replace("out_proj", "in_proj_z"), values.T, config).T
        )
    if kind in ("in_proj_b", "in_proj_a", "A_log", "dt_bias"):
        size = 1
    elif kind not in ("in_proj_qkv", "in_proj_z", "conv1d"):
        return values
    heads = values[start:].reshape(keys, -1, size, *values.shape[1:])
    turned = heads.swapaxes(0, 1).reshape(values[start:].shape)
    return np.concatenate([values[:start], turned])


def has_moved_heads(sizes: Any) -> bool:
    """Whether the converter gives the value heads of a Gated DeltaNet another order.

    A sum is then in another order, too, whose rounding states carry on.
    """
    return hasattr(sizes, "tiled") and sizes.key_heads not in (1, sizes.value_heads)


# What Kimi's and Ling's configs call the keys that other families have, too.
_KDA_KEYS = {
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}
_KDA_NAMES = {
    ".word_embeddings.": ".embed_tokens.",
    ".attention.": ".self_attn.",
    ".self_attn.dense.": ".self_attn.o_proj.",
    ".self_attn.f_proj.": ".self_attn.f_a_proj.",
    ".mlp.gate.expert_bias": ".mlp.gate.e_score_correction_bias",
    ".dt_bias": ".dt_proj.bias",
    ".block_sparse_moe.gate_proj.": ".mlp.gate_proj.",
    ".block_sparse_moe.up_proj.": ".mlp.up_proj.",
    ".block_sparse_moe.down_proj.": ".mlp.down_proj.",
    ".w1.": ".gate_proj.",
    ".w2.": ".down_proj.",
    ".w3.": ".up_proj.",
    ".block_sparse_moe.": ".mlp.",
}


def delta_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of a Kimi Delta Attention's parameters, under Kimi's names."""
    hidden, heads = config["hidden_size"], config["linear_num_heads"]
    size, kernel = config["linear_head_dim"], config["linear_conv_kernel_dim"]
    width = heads * size
    shapes: dict[str, tuple[int, ...]] = {
        "A_log": (1, 1, heads, 1),
        "b_proj.weight": (heads, hidden),
        "dt_bias": (width,),
        "o_norm.weight": (size,),
        "o_proj.weight": (hidden, width),
    }
    for part in "qkv":
        shapes[f"{part}_proj.weight"] = (width, hidden)
        shapes[f"{part}_conv1d.weight"] = (width, 1, kernel)
    for part in "fg":
        shapes[f"{part}_a_proj.weight"] = (size, hidden)
        shapes[f"{part}_b_proj.weight"] = (width, size)
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}


def recast_kda(config: Config, parameters: Arrays) -> tuple[Config, Arrays]:
    """A config with the keys that most families have, and the parameters as the converters recast
    them: decays without their logarithm (of Kimi below 0, of Ling above), tensors of four
    dimensions, and Ling's gates of heads and of delta layers under two names.
    """
    ling = config["model_type"] == "bailing_hybrid"
    found = {_KDA_KEYS.get(key, key): value for key, value in config.items()}
    found.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    found["kv_heads"] = [int(kind == "full_attention") for kind in config["layer_types"]]
    found["first_k_dense_replace"] = config["mlp_layer_types"].index("sparse")
    if not any("eh_proj" in name for name in parameters):
        found["num_nextn_predict_layers"] = 0
    out: Arrays = {}
    for name, values in parameters.items():
        key = name
        for theirs, ours in _KDA_NAMES.items():
            key = key.replace(theirs, ours)
        if ling and ".g_proj." in key:
            delta = len(values) != config["num_attention_heads"]
            key = (
                key.replace(".g_proj.", ".g_a_proj.")
                if delta
                else f"blk.{key.split('.')[2]}.attn_gate.weight"
            )
        if key.endswith(".A_log"):
            rates = np.exp(values.astype(np.float64)).astype(np.float32)
            out[key] = rates.reshape(-1, 1) if ling else -rates
        elif key.endswith("_conv1d.weight"):
            out[key] = values.reshape(1, len(values), 1, -1)
        else:
            out[key] = values
    return found, out


def add_kda_keys(writer: gguf.GGUFWriter, config: Config) -> None:
    """The keys of the delta layers that the converters write."""
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_kda_head_dim(config["linear_head_dim"])
    if config["model_type"] == "bailing_hybrid":
        writer.add_bool("bailingmoe3.kda.safe_gate", config["kda_safe_gate"])
        writer.add_float32("bailingmoe3.kda.gate_lower_bound", config["kda_lower_bound"])
        width = config["n_shared_experts"] * config["moe_intermediate_size"]
        writer.add_expert_shared_feed_forward_length(width)
        for key, add in (
            ("expert_swiglu_limit_list", writer.add_swiglu_clamp_exp),
            ("share_expert_swiglu_limit_list", writer.add_swiglu_clamp_shexp),
        ):
            limits = [float(each or 0) for each in config.get(key) or ()]
            if limits:
                add([*limits, *[0.0] * config["num_hidden_layers"]][: config["num_hidden_layers"]])
        if config["num_nextn_predict_layers"]:
            writer.add_nextn_predict_layers(config["num_nextn_predict_layers"])
