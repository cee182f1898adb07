"""NVIDIA ModelOpt's folders: FP8, int8, int4, NVFP4, MXFP4 and MXFP8 weights by their tensors.

Its definitions: modelopt/torch/export/quant_utils.py. `quant_algo` names the format of most
modules, but a folder may mix them; what tensors stand beside a weight says which it has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.jsonfile import read_object
from dure.formats.quantized.byte_codes import ByteMatrix, RowPairs
from dure.formats.quantized.fp8 import Fp8Matrix
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.quantized.nvfp4 import Nvfp4Matrix
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.quantized.folder import QuantizedFolder

_FP8_BLOCK = 128
_MX_GROUP = 32


def modelopt_settings(path: Path) -> dict[str, Any] | None:
    """Read hf_quant_config.json beside a model's files, where config.json says nothing; or None."""
    file = (path if path.is_dir() else path.parent) / "hf_quant_config.json"
    if not file.is_file():
        return None
    settings = read_object(file).get("quantization")
    return {"quant_method": "modelopt", **(settings if isinstance(settings, dict) else {})}


def read_modelopt(folder: QuantizedFolder) -> None:
    """Put together X.weight, X.weight_scale and perhaps X.weight_scale_2 and X.pre_quant_scale."""
    for base, scales in folder.ending(".weight_scale"):
        del folder.tensors[scales.name]
        codes = folder.take(f"{base}.weight", scales.name)
        whole = folder.optional(f"{base}.weight_scale_2")
        inputs = folder.optional(f"{base}.pre_quant_scale")
        folder.add(_matrix(folder, codes, scales, whole, inputs))


def _matrix(
    folder: QuantizedFolder,
    codes: TensorInfo,
    scales: TensorInfo,
    whole: TensorInfo | None,
    inputs: TensorInfo | None,
) -> QuantizedMatrix:
    """Put one matrix together, by the types of its codes and scales."""
    name, kinds = codes.name, (codes.dtype, scales.dtype)
    if kinds[0] == "I8":
        return ByteMatrix(name, "MODELOPT-INT8", codes, scales, inputs=inputs)
    if kinds == ("U8", "F32"):
        # Of W4A8 `weight_scale_2` is a scale of what its FP8 kernels get, not of the weight.
        return RowPairs(name, "MODELOPT-INT4", codes, scales, bits=4, inputs=inputs)
    if inputs is not None:
        raise UnsupportedModelError(
            f"{folder.where} scales the inputs of {shown(name)} (pre_quant_scale), which dure "
            f"does not read of {' under '.join(kinds)}.",
            hint="export the model with another format.",
        )
    if kinds[0] == "F8_E4M3":
        return _fp8(codes, scales)
    if kinds == ("U8", "U8"):
        return Mxfp4Matrix(name, codes, scales)
    if kinds == ("U8", "F8_E4M3") and whole is not None:
        return Nvfp4Matrix(name, codes, scales, whole)
    raise UnsupportedModelError(
        f"{folder.where} has {shown(name)} as {' under '.join(kinds)}, which dure does not read.",
        hint="it reads ModelOpt's FP8, int8, int4 AWQ, NVFP4, MXFP4 and MXFP8.",
    )


def _fp8(codes: TensorInfo, scales: TensorInfo) -> Fp8Matrix:
    """Put an FP8 matrix together, by the shape of its scales.

    There may be one, one a row, one for 32 columns (MXFP8), or one for 128 x 128 (4-D).
    """
    if scales.dtype == "U8":
        return Fp8Matrix(codes.name, codes, scales, (1, _MX_GROUP))
    if len(scales.shape) == 4:
        rows, one, cols, other = scales.shape
        if (one, other) != (1, 1):
            raise ModelFileError(f"{shown(scales.name)} has shape {scales.shape}.")
        flat = TensorInfo(
            scales.name,
            scales.dtype,
            (rows, cols),
            scales.source,
            scales.offset,
            scales.size_bytes,
        )
        return Fp8Matrix(codes.name, codes, flat, (_FP8_BLOCK, _FP8_BLOCK))
    return Fp8Matrix(codes.name, codes, scales, None)
