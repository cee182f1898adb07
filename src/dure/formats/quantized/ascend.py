"""Folders that msModelSlim quantises for Ascend: what is quantised stands in a file of its own.

quant_model_description.json names the type of each tensor; config.json says nothing. Definitions:
msmodelslim/core/quant_service/modelslim_v1/save/ascendv1.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.jsonfile import read_object
from dure.formats.quantized.base import FLOAT_TYPES, check_part, read_array, read_floats
from dure.formats.quantized.byte_codes import ByteMatrix, RowPairs
from dure.formats.quantized.fp8 import Fp8Matrix
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

_NAMES = "quant_model_description*.json"
_MX_GROUP = 32
# Types of tensors that are as they are, and of those that only Ascend's runtime needs.
_FLOAT, _RUNTIME = ("FLOAT", "W16A16S"), ("C8", "FAQuant")
_STATIC = ("W8A8", "W8A8_MIX")
_BYTES = {"W8A8_DYNAMIC": 8, "W8A8_MIX": 8, "W8A16": 8, "W4A16": 4, "W4A4_DYNAMIC": 4}
_FP4 = ("W4A4_MXFP4", "W4A8_MXFP")
_READ = ("W8A8", *_BYTES, "W4A8_DYNAMIC", "WFP8AFP8_DYNAMIC", "W8A8_MXFP8", *_FP4)


def ascend_description(path: Path) -> dict[str, Any] | None:
    """Read the description beside a model's files; None if there is none."""
    folder = path if path.is_dir() else path.parent
    found = sorted(folder.glob(_NAMES))
    if not found:
        return None
    if len(found) > 1:
        raise ModelFileError(f"{folder} has {len(found)} files {_NAMES}; it must be one.")
    return read_object(found[0])


def read_ascend(folder: QuantizedFolder) -> None:
    """Put together the tensors of each weight. `folder.settings` is the description."""
    metadata = folder.settings.get("metadata")
    if isinstance(metadata, dict) and metadata.get("quarot"):
        raise UnsupportedModelError(
            f"{folder.where} rotates activations while it runs (quarot), which dure does not do.",
            hint="quantise the model without online rotations.",
        )
    for name, kind in folder.settings.items():
        if kind in _RUNTIME:
            folder.optional(name)
        if not name.endswith(".weight") or not isinstance(kind, str) or kind in _FLOAT:
            continue
        if kind not in _READ:
            raise UnsupportedModelError(
                f"{folder.where} has {shown(name)} as {shown(kind)}, which dure does not read.",
                hint=f"it reads Ascend's {', '.join(_READ)}.",
            )
        base = name.removesuffix(".weight")
        codes = folder.take(name, name)
        folder.add(_matrix(folder, base, kind, codes))
        # A static layer's own bias is in `quant_bias` as integers, and once more in `bias`.
        for each in ("quant_bias", "deq_scale", "input_scale", "input_offset", "weight_scale"):
            folder.optional(f"{base}.{each}")
        for each in ("weight_offset", "scale_bias"):
            folder.optional(f"{base}.{each}")


def _matrix(folder: QuantizedFolder, base: str, kind: str, codes: TensorInfo) -> QuantizedMatrix:
    """Put one matrix together, by its type."""
    scales = folder.optional(f"{base}.weight_scale")
    if kind in _STATIC and scales is None:
        parts = (folder.take(f"{base}.{each}", codes.name) for each in ("deq_scale", "input_scale"))
        return StaticMatrix(codes, *parts)
    if scales is None:
        raise ModelFileError(f"{folder.where}: {codes.name} is quantised, but has no weight_scale.")
    if kind == "WFP8AFP8_DYNAMIC":
        return Fp8Matrix(codes.name, codes, scales, None)
    if kind == "W8A8_MXFP8":
        return Fp8Matrix(codes.name, codes, scales, (1, _MX_GROUP))
    if kind in _FP4:
        return Mxfp4Matrix(codes.name, replace(codes, dtype="U8"), scales)
    zeros = folder.optional(f"{base}.weight_offset")
    if kind == "W4A8_DYNAMIC":
        return RowPairs(codes.name, "ASCEND-INT4", codes, scales, zeros, bits=4)
    bits = _BYTES[kind]
    return ByteMatrix(codes.name, f"ASCEND-INT{bits}", codes, scales, zeros, bits=bits)


class StaticMatrix(ByteMatrix):
    """W8A8: the scale of a row is deq_scale / input_scale; deq_scale may be the bits in an I64."""

    scale_types = (*FLOAT_TYPES, "I64")

    def __init__(self, codes: TensorInfo, scales: TensorInfo, inputs: TensorInfo) -> None:
        """codes: I8 (rows, columns). scales: deq_scale (rows,). inputs: input_scale, one entry."""
        check_part(inputs, inputs.shape if inputs.shape in ((), (1,)) else (1,), *FLOAT_TYPES)
        super().__init__(codes.name, "ASCEND-INT8", codes, scales)
        self._step = inputs

    def scale_values(self) -> NDArray[np.float32]:
        """Read the scales of the rows."""
        if self._scale.dtype == "I64":
            bits = read_array(self._scale, "<i8")
            whole = np.ascontiguousarray(bits.astype(np.int32)).view(np.float32)
        else:
            whole = read_floats(self._scale)
        step = read_floats(self._step).reshape(-1)
        if not (np.isfinite(step) & (step > 0)).all():
            raise ModelFileError(f"{shown(self._step.name)} is {step[0]}; it must be above 0.")
        return whole / step
