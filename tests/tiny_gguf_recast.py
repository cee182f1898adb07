"""How llama.cpp's converters recast the parameters of single families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Arrays = dict[str, np.ndarray]


def with_convolutions(config: Config, parameters: Arrays) -> tuple[Config, Arrays]:
    """LFM2's config with what its converter works out, and its convolutions as matrices."""
    wide = next(
        each for name, each in parameters.items() if name.endswith("feed_forward.w1.weight")
    )
    heads = config["num_key_value_heads"]
    found = {
        **config,
        "intermediate_size": wide.shape[0],
        "kv_heads": [0 if kind == "conv" else heads for kind in config["layer_types"]],
    }
    flat = {
        name: each[:, 0] if name.endswith(".conv.conv.weight") else each
        for name, each in parameters.items()
    }
    return found, flat


def deinterleaved(parameters: Arrays) -> Arrays:
    """gpt-oss's parameters as its converter writes them: gates and ups apart, outputs as rows."""
    out: Arrays = {}
    for name, values in parameters.items():
        before, _, kind = name.partition(".experts.")
        if kind.startswith("gate_up_proj"):
            suffix = "bias" if kind.endswith("_bias") else "weight"
            rows = values if suffix == "bias" else values.swapaxes(1, 2)
            for index, half in enumerate(("gate_proj", "up_proj")):
                out[f"{before}.experts.{half}.{suffix}"] = np.ascontiguousarray(rows[:, index::2])
        elif kind == "down_proj":
            out[f"{name}.weight"] = np.ascontiguousarray(values.swapaxes(1, 2))
        elif kind == "down_proj_bias":
            out[f"{before}.experts.down_proj.bias"] = values
        else:
            out[name] = values
    return out


def in_halves(parameters: Arrays, config: Config) -> Arrays:
    """kv_b_proj as each head's keys, turned, and values, (heads, …) each."""
    heads, plain = config["num_attention_heads"], config["qk_nope_head_dim"]
    out = {}
    for name, values in parameters.items():
        if "kv_b_proj" not in name:
            out[name] = values
            continue
        both = values.reshape(heads, -1, config["kv_lora_rank"])
        keys = np.ascontiguousarray(both[:, :plain].swapaxes(1, 2))
        out[name.replace("kv_b_proj", "k_b_proj")] = keys
        out[name.replace("kv_b_proj", "v_b_proj")] = np.ascontiguousarray(both[:, plain:])
    return out


def rejoined(values: Arrays, config: Config) -> Arrays:
    """The same with kv_b_proj made of its halves."""
    out = {name: each for name, each in values.items() if ".v_b_proj" not in name}
    for name in [name for name in out if ".k_b_proj" in name]:
        halves = out.pop(name).swapaxes(1, 2), values[name.replace(".k_b_proj", ".v_b_proj")]
        both = np.concatenate(halves, axis=1).reshape(-1, config["kv_lora_rank"])
        out[name.replace(".k_b_proj", ".kv_b_proj")] = np.ascontiguousarray(both)
    return out
