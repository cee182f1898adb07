"""The mixtures whose attention has sinks, gpt-oss and MiMo-V2, as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.convert.family import SECOND_NORM, Family, routed
from dure.convert.tensors import Layout, otherwise

if TYPE_CHECKING:
    from dure.models.config import Config


def _gpt_oss_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make gpt-oss's values: its window, in the first layer and every second one after it."""
    slides = [window is not None for window in sizes.windows]
    if slides != [layer % 2 == 0 for layer in range(sizes.layers)]:
        raise otherwise(
            f"{config.source} has windows in other layers (layer_types) than every second, and "
            "readers of GGUF files have them there."
        )
    return {
        "moe_intermediate_size": sizes.intermediate,
        "num_experts_per_tok": sizes.experts_per_token,
        "sliding_window": sizes.windows[0],
    }


def _mimo_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make MiMo-V2's values: what its layers with a window have otherwise than the others."""
    kinds = sizes.kinds
    full = next((kind for kind in kinds if kind.window is None), kinds[0])
    near = next((kind for kind in kinds if kind.window is not None), kinds[0])
    if full.rope.dim != near.rope.dim or near.rope.type != "default":
        raise otherwise(
            f"{config.source} rotates its layers with a window in a way (rope_parameters) that "
            "GGUF cannot say."
        )
    if not sizes.routing.normalize:
        raise otherwise(
            f"{config.source} has norm_topk_prob = False, and llama.cpp computes mimo_v2_flash "
            "only with True."
        )
    if sizes.routing.groups > 1:
        raise otherwise(f"{config.source} has groups of experts, which llama.cpp does not keep to.")
    slides = [kind.window is not None for kind in kinds]
    names = ["sliding_attention" if each else "full_attention" for each in slides]
    return {
        "num_key_value_heads": np.array([kind.kv_heads for kind in kinds], np.int32),
        "value_head_dim": sizes.value_dim,
        "attention_value_scale": sizes.value_scale,
        "sliding_window": near.window or 0,
        "layer_types": names,
        "rope_theta": full.rope.theta,
        "rotary_dim": full.rope.dim,
        "rope_local_base_freq": near.rope.theta,
        "moe_intermediate_size": sizes.expert_intermediate,
        **routed(sizes.routing),
    }


SINKS: Mapping[str, Family] = {
    "gpt_oss": Family(
        Layout(kinds=SECOND_NORM),
        needs={
            "attention_bias": (True, True),
            "tie_word_embeddings": (False, False),
            "swiglu_alpha": (1.702, 1.702),
            "swiglu_limit": (7.0, 7.0),
        },
        values=_gpt_oss_values,
        truncates=False,
    ),
    "mimo_v2_flash": Family(
        Layout(drafts="model.mtp."),
        needs={"tie_word_embeddings": (False, False)},
        values=_mimo_values,
    ),
}
