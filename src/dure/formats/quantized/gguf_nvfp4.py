"""NVFP4 as GGUF has it: its codes in another order, its scales without a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure.formats.quantized.base import QuantizedMatrix, read_part_rows
from dure.formats.quantized.nvfp4 import nvfp4_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

_BLOCK = 64
_HELD = 32


class GgufNvfp4Matrix(QuantizedMatrix):
    """Blocks of 64: four scales, then eight bytes for each 16 columns, which hold i and i + 8."""

    stored = "NVFP4"

    def __init__(self, name: str, tensor: TensorInfo) -> None:
        super().__init__(name, tensor.shape, f"NV4G{_HELD}", tensor)
        self._tensor = tensor

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of NV4G; see `QuantizedMatrix.read_rows`."""
        rows = stop - start
        raw = read_part_rows(self._tensor, start, stop).reshape(-1, 36)
        scales = raw[:, :4]  # ggml passes the sign over, and 127 counts as 0
        scales = np.where(scales == 127, np.uint8(0), scales & np.uint8(127))
        halves = raw[:, 4:].reshape(-1, 4, 8)
        codes = np.concatenate([halves & 15, halves >> 4], axis=-1).reshape(-1, _BLOCK)
        pairs = codes[:, 0::2] | codes[:, 1::2] << np.uint8(4)
        whole = np.ones(rows, np.float32)
        return nvfp4_blocks(pairs.reshape(rows, -1), scales.reshape(rows, -1), whole, _HELD)
