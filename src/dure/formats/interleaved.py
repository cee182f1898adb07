"""Experts whose gates and ups lie row by row in one tensor (gpt-oss): each seen as a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure.errors import ModelFileError
from dure.formats.blocks import FLOATS
from dure.formats.quantized.base import QuantizedMatrix, as_floats
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Parameter = TensorInfo | QuantizedMatrix
    Bytes = NDArray[np.uint8]

MODEL_TYPE = "gpt_oss"

_EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)(_bias)?")
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number


def split_interleaved(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Replace the fused tensors of gpt-oss's experts by gate_proj, up_proj and down_proj.

    Even outputs of gate_up_proj are gates, odd ones ups. Quantised, it is (experts, outputs,
    inputs); as floats, which transformers saves, (experts, inputs, outputs). Nothing is read.
    Raises ModelFileError for other shapes.
    """
    result: dict[str, Parameter] = {}
    for name, tensor in found.items():
        match = _EXPERTS.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        prefix, kind, bias = match[1], match[2], match[3]
        suffix = "bias" if bias else "weight"
        halves = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        for index, half in enumerate(halves):
            whole = f"{prefix}.{half}.{suffix}"
            result[whole] = _part(whole, tensor, index, len(halves), is_bias=bool(bias))
    return result


def _part(name: str, tensor: Parameter, index: int, step: int, *, is_bias: bool) -> Parameter:
    """Return every `step`-th output of a tensor from `index` on, as rows of their inputs."""
    if len(tensor.shape) != (2 if is_bias else 3) or 0 in tensor.shape:
        raise ModelFileError(
            f"{shown(tensor.name)} has shape {tensor.shape}; it must have one matrix an expert."
        )
    plain = isinstance(tensor, TensorInfo) and tensor.dtype in FLOATS
    if is_bias or plain:
        if step == 1 and is_bias:
            return tensor
        how: _How = "columns" if is_bias else "turned"
    elif step == 1:
        return tensor
    else:
        how = "rows"
    return _Taken(name, tensor, index, step, how)


_How = Literal["rows", "columns", "turned"]


class _Taken(QuantizedMatrix):
    """Every `step`-th row of each expert, or every such column; turned, columns as rows."""

    def __init__(self, name: str, source: Parameter, index: int, step: int, how: _How) -> None:
        *stack, rows, cols = source.shape
        if how == "columns" and source.dtype not in _SIZES:
            raise ModelFileError(f"{shown(source.name)} is {source.dtype}; it must be of floats.")
        outputs = rows if how == "rows" else cols
        if outputs % step:
            raise ModelFileError(
                f"{shown(source.name)} has {outputs:,} outputs an expert, which gates and ups do "
                "not share evenly."
            )
        each = outputs // step
        shape = {"rows": (each, cols), "columns": (rows, each), "turned": (each, rows)}[how]
        super().__init__(name, (*stack, *shape), source.dtype)
        self.stored = source.stored
        self.size_bytes = source.size_bytes // step
        self._source, self._index, self._step, self._how = source, index, step, how
        self._kept: tuple[int, Bytes] | None = None  # an expert of which rows were read, not all

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows; see `QuantizedMatrix.read_rows`."""
        if self._how == "rows":
            raw = self._source.read_rows(start * self._step, stop * self._step)
            return raw[self._index :: self._step].copy()
        size = _SIZES[self.dtype]
        if self._how == "columns":
            raw = self._source.read_rows(start, stop).reshape(stop - start, -1, size)
            return raw[:, self._index :: self._step].reshape(stop - start, -1).copy()
        return self._read_turned(start, stop, size)

    def _read_turned(self, start: int, stop: int, size: int) -> Bytes:
        """Read rows that lie in the file as columns: each expert's are read whole."""
        outputs, inputs = self.shape[-2:]
        found = []
        for expert in range(start // outputs, -(-stop // outputs)):
            kept, self._kept = self._kept, None
            if kept is not None and kept[0] == expert:
                raw = kept[1]
            else:
                raw = self._source.read_rows(expert * inputs, (expert + 1) * inputs)
                self._check_finite(raw)
            if stop < (expert + 1) * outputs:
                self._kept = expert, raw
            columns = raw.reshape(inputs, -1, size)[:, self._index :: self._step]
            first = max(start - expert * outputs, 0)
            last = min(stop - expert * outputs, outputs)
            found.append(columns[:, first:last].swapaxes(0, 1).reshape(last - first, -1))
        return np.concatenate(found)

    def _check_finite(self, raw: Bytes) -> None:
        if not np.isfinite(as_floats(raw.reshape(-1), self.dtype)).all():
            raise ModelFileError(
                f"{shown(self._source.name)} holds a weight that is NaN or infinite.",
                hint="the file is damaged, or its conversion failed: download or convert it again.",
            )
