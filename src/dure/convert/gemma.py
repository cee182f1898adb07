"""What Gemma's GGUF files say beside the common keys, and what llama.cpp takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.convert.family import WITHOUT_BIAS, Family
from dure.convert.tensors import Layout, otherwise
from dure.models.gemma3 import usual_scale

if TYPE_CHECKING:
    from dure.models.config import Config

_PERIOD = 6  # of Gemma 3's layers, the last of so many has no window


def _gemma3_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Gemma 3's values; llama.cpp knows its windows' order and the scale of its scores."""
    window = max(each or 0 for each in sizes.windows)
    usual = tuple(window if (i + 1) % _PERIOD else None for i in range(sizes.layers))
    if window and sizes.windows != usual:
        raise otherwise(
            f"{config.source} has windows in another order (layer_types), and llama.cpp computes "
            f"Gemma 3 only with none in every {_PERIOD}th layer."
        )
    local = sizes.sliding_rope
    if window and (local.type not in ("default", "dynamic") or local.theta != 10000.0):
        raise otherwise(
            f"{config.source} rotates layers with a window by another base or scaling than "
            "llama.cpp does (rope_local_base_freq)."
        )
    if sizes.scale != usual_scale(sizes.layers, sizes.hidden, sizes.heads, sizes.head_dim):
        raise otherwise(
            f"{config.source} has a query_pre_attn_scalar that llama.cpp does not know of a model "
            f"with {sizes.layers} layers."
        )
    return {
        "sliding_window": window or None,
        "rope_local_base_freq": local.theta if window else None,
        "final_logit_softcapping": sizes.logit_cap,
    }


def _gemma4_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Gemma 4's values: a number a layer where layers differ."""
    kinds = sizes.kinds
    near = next((kind for kind in kinds if kind.window is not None), None)
    full = kinds[-1]  # the last layer has no window
    if sizes.rope.type not in ("default", "dynamic", *_BY_FACTORS):
        raise otherwise(
            f"{config.source} scales its rotation by {sizes.rope.type}, which GGUF cannot say of "
            "single layers."
        )
    if near is not None and near.rope.type not in ("default", "dynamic"):
        raise otherwise(
            f"{config.source} scales the rotation of its layers with a window (rope_parameters), "
            "which GGUF cannot say."
        )
    if len({kind.head_dim for kind in kinds if kind.window is not None}) > 1:
        raise otherwise(
            f"{config.source} has heads of several sizes in its layers with a window "
            "(per_layer_config), and llama.cpp has one."
        )
    if sizes.own_width and sizes.own_rows != sizes.vocab_size:
        raise otherwise(
            f"{config.source} has vocab_size_per_layer_input = {sizes.own_rows:,}, and llama.cpp "
            f"has as many as the {sizes.vocab_size:,} tokens."
        )
    head_dim = full.head_dim if near is None else near.head_dim
    widths = [kind.intermediate for kind in kinds]
    routed: dict[str, Any] = {"num_experts": None, "moe_intermediate_size": None}
    if sizes.routing is not None:
        routed = {"num_experts_per_tok": sizes.routing.top_k}
    return {
        "head_dim": full.head_dim,
        "value_head_dim": full.head_dim,
        "rotary_dim": full.head_dim,
        "head_dim_swa": head_dim,
        "value_head_dim_swa": head_dim,
        "rotary_dim_swa": head_dim,
        "num_key_value_heads": np.array([kind.kv_heads for kind in kinds], np.int32),
        "intermediate_size": widths[0] if len({*widths}) == 1 else np.array(widths, np.int32),
        "num_kv_shared_layers": sum(kind.source != index for index, kind in enumerate(kinds)),
        "hidden_size_per_layer_input": sizes.own_width,
        "layer_types": [
            "full_attention" if kind.window is None else "sliding_attention" for kind in kinds
        ],
        "sliding_window": _WINDOW if near is None else near.window,
        "rope_local_base_freq": None if near is None else near.rope.theta,
        # Where the key is missing, llama.cpp caps them by 30.
        "final_logit_softcapping": sizes.logit_cap or 0.0,
        **routed,
    }


_BY_FACTORS = ("proportional", "linear", "llama3")  # scalings that divide frequencies
_WINDOW = 512  # of no layer; llama.cpp asks for the key
GEMMA: Mapping[str, Family] = {
    "gemma3": Family(needs=WITHOUT_BIAS, values=_gemma3_values),
    "gemma4": Family(
        Layout(fused=True),
        needs=WITHOUT_BIAS,
        values=_gemma4_values,
        ropes=_BY_FACTORS,
        factors=True,
        lists_merges=True,
    ),
}
