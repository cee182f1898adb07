"""A part of `make_moe.py`: tensors of noise, as blocks of GGUF's types."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

SPREAD = 0.02  # the standard deviation of quantised weights
_SCALES = {  # where a block has its float16 scale and minimum, and the code that both make zero
    Kind.Q4_K: (0, 2, 7.5),
    Kind.Q6_K: (208, None, 0.0),
    Kind.Q4_0: (0, None, 0.0),
    Kind.Q5_0: (0, None, 0.0),
    Kind.Q8_0: (0, None, 0.0),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its name, its shape as numpy has it, its type, and how it is drawn."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    draw: Callable[[np.random.Generator, Tensor], np.ndarray]


def ones(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    """A norm that changes nothing."""
    del rng
    return np.ones(tensor.shape, np.float32)


def noise(
    rng: np.random.Generator,
    tensor: Tensor,
    *,
    spread: float = SPREAD,
    rows_from: int = 0,
    columns: slice = slice(None),
) -> np.ndarray:
    """A router, or random blocks as uint8 (..., row bytes).

    spread: the standard deviation; rows_from and columns: all other rows of a matrix, and all other
    columns, are zeros.
    """
    shape, kind = tensor.shape, tensor.kind
    if kind == Kind.F32:
        return rng.standard_normal(shape, np.float32) * np.float32(4 / math.sqrt(shape[-1]))
    size, size_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind == Kind.MXFP4:  # whose scale is a power of two: codes spread by 2.93 / 128
        blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // size, size_bytes), np.uint8)
        blocks[..., 0] = 127 - 7
        return blocks.reshape(*shape[:-1], -1)
    blocks = rng.integers(0, 256, (math.prod(shape) // size, size_bytes), np.uint8)
    scale_at, minimum_at, middle = _SCALES[kind]

    def set_scale(scale: float, which: np.ndarray) -> None:
        which[..., scale_at : scale_at + 2] = np.float16([scale]).view(np.uint8)
        if minimum_at is not None:
            which[..., minimum_at : minimum_at + 2] = np.float16([scale * middle]).view(np.uint8)

    set_scale(1.0, blocks)
    set_scale(spread / float(gguf.quants.dequantize(blocks[:256], kind).std()), blocks)
    by_row = blocks.reshape(*shape[:-1], shape[-1] // size, size_bytes)
    set_scale(0.0, by_row[..., :rows_from, :, :])
    first, last, _ = columns.indices(shape[-1])
    set_scale(0.0, by_row[..., : first // size, :])
    set_scale(0.0, by_row[..., last // size :, :])
    return blocks.reshape(*shape[:-1], -1)
