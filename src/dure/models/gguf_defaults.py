"""What a GGUF that lacks a key says by that: as in llama.cpp, whatever the family.

A config.json that lacks one means the default of its family's class; a GGUF names no class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_THETA = 10000.0


def gguf_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of keys that a GGUF lacks, under config.json's names.

    values: what it has. Heads are as wide as the hidden size divided among them, keys turn whole,
    and the rotation's base is 10,000.
    """
    found: dict[str, Any] = {"rope_theta": _THETA}
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if type(hidden) is int and type(heads) is int and 0 < heads <= hidden:
        found |= {"head_dim": hidden // heads, "value_head_dim": hidden // heads}
    width = values.get("head_dim", found.get("head_dim"))
    if width is not None:
        found["rotary_dim"] = width
    return {key: value for key, value in found.items() if key not in values}
