"""Fused experts: told by their shapes which way they lie, and turned where rows lie across.

transformers keeps a layer's experts as gate_up_proj (experts, 2 · width, hidden), gate's rows
before up's, and down_proj (experts, hidden, width). Some makers publish both with the last two
dimensions exchanged (Qwen3-VL). No sizes fit both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import FLOAT_TYPES, QuantizedMatrix, as_floats
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Parameter = TensorInfo | QuantizedMatrix

_BOTH, _DOWN = ".experts.gate_up_proj", ".experts.down_proj"


def turn_experts(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Replace fused experts whose rows lie across by matrices that lie as transformers' do."""
    turned = dict(found)
    for name, both in found.items():
        other = name.removesuffix(_BOTH) + _DOWN
        down = found.get(other)
        if not name.endswith(_BOTH) or not isinstance(both, TensorInfo):
            continue
        if isinstance(down, TensorInfo) and _lie_across(both, down):
            turned[name], turned[other] = TurnedExperts(both), TurnedExperts(down)
    return turned


def _lie_across(both: TensorInfo, down: TensorInfo) -> bool:
    """Check whether the tensors are (experts, hidden, 2 · width) and (experts, width, hidden)."""
    if len(both.shape) != 3 or len(down.shape) != 3 or 0 in down.shape:
        return False
    if both.dtype not in FLOAT_TYPES or down.dtype not in FLOAT_TYPES:
        return False
    (count, hidden, double), (also, width, out) = both.shape, down.shape
    return (count, hidden, double) == (also, out, 2 * width)


class TurnedExperts(QuantizedMatrix):
    """A stack of matrices as the transposes of what the file has: (…, columns, rows) of floats."""

    def __init__(self, tensor: TensorInfo) -> None:
        count, cols, rows = tensor.shape
        super().__init__(tensor.name, (count, rows, cols), tensor.dtype, tensor)
        self.stored = tensor.dtype
        self._last: tuple[int, Bytes] | None = None  # an expert, and its rows

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as they lie in memory; see `QuantizedMatrix.read_rows`."""
        rows = self.shape[1]
        found = []
        while start < stop:
            expert, first = divmod(start, rows)
            last = min(rows, first + stop - start)
            found.append(self._expert(expert)[first:last])
            start += last - first
        return np.concatenate(found) if found else np.empty((0, self.row_bytes), np.uint8)

    def _expert(self, expert: int) -> Bytes:
        """Return all rows of an expert; the last one read is kept, as its parts are asked for."""
        last = self._last  # read once: threads share the matrix
        if last is not None and last[0] == expert:
            return last[1]
        (tensor,), (_, rows, cols) = self.parts, self.shape
        size = rows * self.row_bytes
        raw = tensor.source.read(tensor.offset + expert * size, size)
        if not np.isfinite(as_floats(raw, self.dtype)).all():
            raise ModelFileError(
                f"{shown(self.name)} holds a weight that is NaN or infinite.",
                hint="the file is damaged, or its conversion failed: download or convert it again.",
            )
        each = size // (rows * cols)
        lines = np.ascontiguousarray(raw.reshape(cols, rows, each).swapaxes(0, 1))
        turned = lines.reshape(rows, self.row_bytes)
        self._last = expert, turned
        return turned
