"""Mixtures whose experts are fused, as they lie in transformers' files or across."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def across(own: Arrays) -> Arrays:
    """The parameters with fused experts that lie as Qwen3-VL's of the hub."""
    names = ("gate_up_proj", "down_proj")
    return {
        name: np.ascontiguousarray(value.swapaxes(1, 2)) if name.endswith(names) else value
        for name, value in own.items()
    }


def fused(own: Arrays, layers: int, experts: int) -> Arrays:
    """The parameters with each layer's experts fused."""
    found = {name: value for name, value in own.items() if ".experts." not in name}
    for layer in range(layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: np.stack([own[f"{prefix}.{each}.{part}_proj.weight"] for each in range(experts)])
            for part in ("gate", "up", "down")
        }
        found[f"{prefix}.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        found[f"{prefix}.down_proj"] = parts["down"]
    return found
