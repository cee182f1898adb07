"""What the GGUF files of Kimi-Linear and Ling-3.0 say of their recurrent layers, and what of them
llama.cpp does not compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dure.convert.tensors import otherwise

if TYPE_CHECKING:
    from dure.models.config import Config


def delta_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make the values of layers of Kimi Delta Attention: layers without KV heads are those."""
    heads = getattr(sizes, "delta_heads", sizes.heads)
    if heads != sizes.heads:
        raise otherwise(
            f"{config.source} has {heads} heads in its recurrent layers (linear_attn_config) and "
            f"{sizes.heads} in the others, and GGUF has one number for both."
        )
    return {
        "num_key_value_heads": np.array([not each for each in sizes.recurrent], np.int32),
        "linear_conv_kernel_dim": sizes.kernel,
        "linear_head_dim": sizes.delta_dim,
        **_ling_values(config, sizes),
    }


def _limits(sizes: Any) -> dict[str, Any]:
    """Make the limits of what experts compute, one a layer; nothing where no layer has one."""
    names = ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list")
    columns = zip(names, np.array(sizes.limits, np.float32).T, strict=True)
    return {name: np.ascontiguousarray(each) for name, each in columns if each.any()}


def _ling_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Ling's values: its decays' bound, its experts' limits; nothing of Kimi."""
    if not hasattr(sizes, "bound"):
        return {}
    if sizes.rope.type not in ("default", "dynamic"):
        raise otherwise(
            f"{config.source} scales its rotation ({sizes.rope.type}), and llama.cpp does not in "
            "this family."
        )
    return {
        "kda_safe_gate": True,
        "kda_lower_bound": sizes.bound,
        **_limits(sizes),
        "shared_expert_intermediate_size": sizes.shared_experts * sizes.expert_intermediate,
    }
