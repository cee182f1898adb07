"""The families with short convolutions, LFM2 and its mixtures, as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.convert.family import Family, routed, whole_heads
from dure.convert.tensors import Layout, otherwise

if TYPE_CHECKING:
    from dure.models.config import Config


def _lfm_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make LFM2's values: layers without KV heads are convolutions."""
    whole_heads(config, sizes)
    if sizes.conv_bias:
        raise otherwise(
            f"{config.source} has conv_bias = True, and llama.cpp's convolutions have no biases."
        )
    heads = [0 if each else sizes.kv_heads for each in sizes.convolutions]
    return {"num_key_value_heads": np.array(heads, np.int32), "conv_L_cache": sizes.kernel}


def _lfm_moe_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make the values of LFM2's mixtures; llama.cpp has one router for all of them."""
    routing = sizes.routing
    for key, value, needed in (
        ("use_expert_bias", sizes.expert_bias, True),
        ("norm_topk_prob", routing.normalize, True),
        ("routed_scaling_factor", routing.scale, 1.0),
    ):
        if value != needed:
            raise otherwise(
                f"{config.source} has {key} = {value!r}, and llama.cpp computes lfm2_moe only with "
                f"{needed!r}."
            )
    return {
        **_lfm_values(config, sizes),
        "first_k_dense_replace": sizes.dense_layers,
        **routed(routing),
    }


_LAYOUT = Layout(kinds={"output_norm": "token_embd_norm"})
CONVOLUTIONS: Mapping[str, Family] = {
    "lfm2": Family(_LAYOUT, values=_lfm_values),
    "lfm2_moe": Family(_LAYOUT, values=_lfm_moe_values),
}
