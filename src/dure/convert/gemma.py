"""What Gemma's GGUF files say beside the common keys, and what llama.cpp takes for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dure.convert.tensors import otherwise
from dure.models.gemma3 import usual_scale

if TYPE_CHECKING:
    from dure.models.config import Config

_PERIOD = 6  # of Gemma 3's layers, the last of so many has no window


def gemma3_values(config: Config, sizes: Any) -> dict[str, Any]:
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
