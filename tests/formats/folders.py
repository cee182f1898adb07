"""Small model folders for the tests of quantised layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dure.formats.checkpoint import Checkpoint, open_checkpoint
from dure.formats.quantized_checkpoint import parameters
from dure.kernels.dequantize import dequantize

Tensors = Mapping[str, torch.Tensor]


def folder(
    path: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Write a folder with these tensors and this config, and open it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, path / "model.safetensors", metadata=dict(metadata or {"format": "pt"}))
    return open_checkpoint(path)


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """What a parameter stands for, in float32."""
    matrix = parameters(checkpoint)[name]
    whole = dequantize(matrix.dtype, matrix.read()).reshape(matrix.shape)
    rows = matrix.num_rows
    pieces = [matrix.read_rows(i, min(i + 3, rows)) for i in range(0, rows, 3)]
    again = dequantize(matrix.dtype, np.concatenate(pieces)).reshape(matrix.shape)
    np.testing.assert_array_equal(again, whole)  # in pieces as at once
    return whole


def bit_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as one number of many bits each, the first code lowest: uint32 words."""
    words = []
    for row in codes.reshape(-1, codes.shape[-1]).tolist():
        number = sum(code << bits * place for place, code in enumerate(row))
        size = codes.shape[-1] * bits // 8
        words.append(np.frombuffer(number.to_bytes(size, "little"), "<u4"))
    return np.array(words).reshape(*codes.shape[:-1], -1)


def words(array: np.ndarray) -> torch.Tensor:
    """uint32 as torch has it."""
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32)).view(torch.uint32)


def bfloat16(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32)).bfloat16()
