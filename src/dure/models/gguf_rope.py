"""The scaling of a GGUF's rotation, under config.json's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dure.errors import UnsupportedModelError
from dure.layers.rope import magnitude_scale

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

# The keys under {architecture}.rope.scaling. -> those of config.json's rope_scaling.
ROPE_KEYS = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def gguf_scaling(
    metadata: Mapping[str, Any], prefix: str, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Read a GGUF's RoPE scaling under config.json's names; empty if it has none."""
    scaling = {
        theirs: metadata[f"{prefix}rope.scaling.{ours}"]
        for ours, theirs in ROPE_KEYS.items()
        if f"{prefix}rope.scaling.{ours}" in metadata
    }
    # Before there were types, converters wrote only a factor: it means linear scaling.
    factor = scaling.get("factor", metadata.get(f"{prefix}rope.scale_linear"))
    if factor in (None, 0):  # which llama.cpp reads as none
        scaling.pop("factor", None)
    else:
        scaling |= {"rope_type": scaling.get("rope_type", "linear"), "factor": factor}
    logarithmic = metadata.get(f"{prefix}rope.scaling.yarn_log_multiplier")
    if isinstance(logarithmic, float):  # 0.1 mscale_all_dim, which is mscale in every release
        scaling["mscale"] = scaling["mscale_all_dim"] = 10 * logarithmic
    times = metadata.get(f"{prefix}rope.scaling.attn_factor", 1.0)
    if "rope_factors_long.weight" in checkpoint.tensors:  # Phi-3's, whole
        return {**scaling, "rope_type": "longrope", "attention_factor": times}
    if times not in (0.0, 1.0):  # multiplies YaRN's own magnitude
        kind, whole = scaling.get("rope_type"), scaling.get("attention_factor")
        if kind != "yarn" or isinstance(logarithmic, float) or not isinstance(times, float):
            raise UnsupportedModelError(
                f"{checkpoint.path} has {prefix}rope.scaling.attn_factor = {repr(times)[:60]}, "
                "which dure runs only with plain YaRN."
            )
        own = magnitude_scale(float(factor or 1)) if whole is None else whole
        scaling["attention_factor"] = own * times
    return scaling
