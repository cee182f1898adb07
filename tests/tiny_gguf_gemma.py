"""What llama.cpp's converters write for Gemma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

Arrays = dict[str, np.ndarray]


def with_whole_norms(parameters: Arrays) -> Arrays:
    """Gemma 3's parameters with the 1 that its folders leave out of every norm."""
    return {
        name: values + np.float32(1) if name.endswith("norm.weight") else values
        for name, values in parameters.items()
    }


def as_gemma4(config: Mapping[str, Any], parameters: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Gemma 4's config with a value a layer where its converter writes so, and its names."""
    kinds, tables = config["layer_types"], config.get("per_layer_config") or {}
    shared = config["num_kv_shared_layers"]
    full = {int(index): table for index, table in tables.items()}
    usual, width = config["num_key_value_heads"], config["intermediate_size"]
    doubled = shared if config["use_double_wide_mlp"] else 0
    counts = [full.get(i, {}).get("num_key_value_heads", usual) for i in range(len(kinds))]
    own = {
        "head_dim": full[len(kinds) - 1]["head_dim"],
        "head_dim_swa": config["head_dim"],
        "num_key_value_heads": usual if len({*counts}) == 1 else counts,
        "intermediate_size": [width] * (len(kinds) - doubled) + [2 * width] * doubled
        if doubled
        else width,
    }
    return {**config, **own}, {_renamed(name): each for name, each in parameters.items()}


def _renamed(name: str) -> str:
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if name.endswith((".layer_scalar", ".experts.gate_up_proj", ".experts.down_proj")):
        return f"{name}.weight"
    if name.endswith(".router.scale"):
        return f"blk.{layer}.ffn_gate_inp.scale"
    if name.endswith(".router.per_expert_scale"):
        return f"blk.{layer}.ffn_down_exps.scale"
    return name


def _add_gemma4_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    wide, head_dim = config["head_dim"], config["head_dim_swa"]
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(config.get("hidden_size_per_layer_input") or 0)
    writer.add_key_length_swa(head_dim)
    writer.add_value_length_swa(head_dim)
    writer.add_rope_dimension_count(wide)
    writer.add_rope_dimension_count_swa(head_dim)
    turning = int(config["rope_parameters"]["full_attention"]["partial_rotary_factor"] * wide // 2)
    factors = np.full(wide // 2, 1e30, np.float32)
    factors[:turning] = 1
    writer.add_tensor("rope_freqs.weight", factors)


def add_gemma_keys(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """The windows, the base of their rotation, and the cap of logits."""
    writer.add_sliding_window(config["sliding_window"])
    kinds = config["layer_types"]
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config["model_type"].startswith("gemma4"):
        _add_gemma4_keys(writer, config)
