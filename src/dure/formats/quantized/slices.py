"""Tensors that a file has in several slices, joined as they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure.formats.mindspore import SLICE
from dure.formats.quantized.base import QuantizedMatrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]


def join_slices(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo | QuantizedMatrix]:
    """Replace the slices of a tensor by one matrix; other tensors stay as they are."""
    later: dict[str, list[TensorInfo]] = {}
    for name, tensor in tensors.items():
        if SLICE in name:
            later.setdefault(name.partition(SLICE)[0], []).append(tensor)
    return {
        name: Joined(name, [tensor, *later[name]]) if name in later else tensor
        for name, tensor in tensors.items()
        if SLICE not in name
    }


class Joined(QuantizedMatrix):
    """Rows of a tensor whose bytes lie in several places, which need not end with a row."""

    def __init__(self, name: str, slices: list[TensorInfo]) -> None:
        """slices: in their order; all have the shape of the whole."""
        super().__init__(name, slices[0].shape, slices[0].dtype, *slices)
        self.stored = slices[0].dtype
        self._ends = np.cumsum([each.size_bytes for each in slices]).tolist()

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as they lie in the file; see `QuantizedMatrix.read_rows`."""
        first, last = start * self.row_bytes, stop * self.row_bytes
        found = []
        for part, end in zip(self.parts, self._ends, strict=True):
            begin = end - part.size_bytes
            low, high = max(first, begin), min(last, end)
            if low < high:
                found.append(part.source.read(part.offset + low - begin, high - low))
        return np.concatenate(found).reshape(stop - start, self.row_bytes)
