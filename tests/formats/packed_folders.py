"""Folders with one packed matrix, for the tests of quantised layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packings
import torch

from dure.formats.checkpoint import Checkpoint, open_checkpoint

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP4 = {"quant_method": "mxfp4"}
AUTOROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "int"}
NAME = "model.layers.0.mlp.up_proj.weight"


def compressed(format: str = "pack-quantized", **weights: Any) -> dict[str, Any]:  # noqa: A002
    """The config of compressed-tensors with these arguments of weights."""
    known = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": known}},
    }


FP8_CHANNEL = compressed(num_bits=8, type="float", strategy="channel", group_size=None)


def weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Rows of mixed size, with a few zeros."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 0.05, (rows, cols)) * np.exp(rng.normal(0, 1, (rows, 1)))
    drawn[rng.random((rows, cols)) < 0.01] = 0
    return drawn.astype(np.float32)


def folder_with(
    path: Path, settings: Any, packed: packings.Packed, name: str = NAME, **extra: torch.Tensor
) -> Checkpoint:
    """A folder with one packed matrix, and what else it is given."""
    packings.write_packed(path, {}, {name: np.zeros(1)}, settings, lambda _n, _w: packed)
    if extra:
        from safetensors.torch import load_file, save_file  # noqa: PLC0415

        tensors = load_file(path / "model.safetensors")
        save_file({**tensors, **extra}, path / "model.safetensors")
    return open_checkpoint(path)
