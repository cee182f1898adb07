"""GGUF keys that have a value for each layer, where kinds of layers differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# What a layer without KV heads is, by the architecture.
_WITHOUT_HEADS = dict.fromkeys(("kimi-linear.", "bailingmoe3."), "linear_attention")
_WITHOUT_HEADS |= dict.fromkeys(("lfm2.", "lfm2moe."), "conv")


def layers_without_heads(
    metadata: Mapping[str, Any], prefix: str
) -> tuple[Mapping[str, Any], list[str] | None]:
    """Return a GGUF's metadata with the heads of layers that have some, and its layer_types."""
    key = f"{prefix}attention.head_count_kv"
    heads, other = metadata.get(key), _WITHOUT_HEADS.get(prefix)
    if other is None or not isinstance(heads, np.ndarray):
        return metadata, None
    return {**metadata, key: heads[heads != 0]}, [
        "full_attention" if each else other for each in heads.tolist()
    ]


_FLAGS = {
    "attention.recurrent_layers": "linear_attention",
    "attention.sliding_window_pattern": "sliding_attention",
}
"""Key -> what a layer is whose flag is set; others have full attention."""


def kinds_of_layers(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return a GGUF's layer_types, or the interval of its windows, under config.json's names."""
    found: dict[str, Any] = {}
    for key, kind in _FLAGS.items():
        flags = metadata.get(prefix + key)
        if isinstance(flags, np.ndarray):
            found["layer_types"] = [kind if each else "full_attention" for each in flags]
        elif isinstance(flags, int) and kind == "sliding_attention":
            found["sliding_window_pattern"] = flags
    return found


def heads_by_window(metadata: Mapping[str, Any], prefix: str) -> tuple[Mapping[str, Any], Any]:
    """Tell the KV heads of MiMo-V2's layers with a window from those of the others."""
    key = f"{prefix}attention.head_count_kv"
    heads, slides = metadata.get(key), metadata.get(f"{prefix}attention.sliding_window_pattern")
    if not isinstance(heads, np.ndarray) or not isinstance(slides, np.ndarray):
        return metadata, None
    if prefix != "mimo2." or len(heads) != len(slides) or not np.any(slides):
        return metadata, None
    far = heads[slides == 0]
    return {**metadata, key: far if len(far) else heads}, heads[slides != 0]
