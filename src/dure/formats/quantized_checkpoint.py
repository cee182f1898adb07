"""Quantised Hugging Face folders: finds the tensors that are one matrix, and how its rows are read.

config.json's quantization_config names the method. Each method has its own names and packing, read
by a file of `formats/quantized/`. Everybody else sees one matrix of the name and shape that the
model asks for, in a type that the kernels have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.fused_experts import turn_experts
from dure.formats.gguf_fused import split_fused
from dure.formats.interleaved import MODEL_TYPE as INTERLEAVED
from dure.formats.interleaved import split_interleaved
from dure.formats.multimodal import language_tensors, quantization_settings
from dure.formats.quantized.ascend import ascend_description, read_ascend
from dure.formats.quantized.autoround import read_autoround
from dure.formats.quantized.awq import read_awq
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.quantized.bitsandbytes import read_bitsandbytes
from dure.formats.quantized.compressed_tensors import read_compressed_tensors
from dure.formats.quantized.folder import QuantizedFolder
from dure.formats.quantized.fp8 import read_fp8
from dure.formats.quantized.gguf_grids import GRID_TYPES, GgufGridMatrix
from dure.formats.quantized.gguf_nvfp4 import GgufNvfp4Matrix
from dure.formats.quantized.gptq import read_gptq
from dure.formats.quantized.hqq import read_hqq
from dure.formats.quantized.mlx import is_mlx, read_mlx
from dure.formats.quantized.modelopt import modelopt_settings, read_modelopt
from dure.formats.quantized.mxfp4 import read_mxfp4
from dure.formats.quantized.paddle import is_paddle, read_paddle
from dure.formats.quantized.quark import read_quark
from dure.formats.quantized.slices import join_slices
from dure.formats.quantized.torchao import read_torchao
from dure.formats.sharded_qkv import cut_qkv, join_qkv
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

    Parameter = TensorInfo | QuantizedMatrix

# Puts together the matrices of a folder, by the quant_method that its config names.
_METHODS: Mapping[str, Callable[[QuantizedFolder], None]] = {
    "fp8": read_fp8,
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed_tensors,
    "mxfp4": read_mxfp4,
    "auto-round": read_autoround,
    "bitsandbytes": read_bitsandbytes,
    "torchao": read_torchao,
    "modelopt": read_modelopt,
    "hqq": read_hqq,
    "quark": read_quark,
}
# Names of quantised tensors, where no config says that there are any.
_MARKS = (".qweight", ".weight_packed", "_scale_inv", "_blocks")


def parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """List the checkpoint's matrices and vectors by name; read no weight.

    They are its tensors, but what a quantised folder stores in parts is one `QuantizedMatrix`, and
    so is what all experts of a layer are packed to. Raises UnsupportedModelError for a quantisation
    that is not read, ModelFileError if tensors and config contradict each other.
    """
    found = _gguf_parameters(checkpoint) if checkpoint.kind == "gguf" else _of_language(checkpoint)
    packed: Mapping[str, Parameter] = checkpoint.experts.parameters() if checkpoint.experts else {}
    twice = next((name for name in packed if name in found), None)
    if twice is not None:
        raise ModelFileError(f"{checkpoint.path} has {shown(twice)} packed and as it was.")
    return {**found, **packed}


def reader_of(checkpoint: Checkpoint) -> str:
    """Return how a folder's tensors are named, where config.json may not show it: "mlx" or ""."""
    if checkpoint.experts is not None:
        return checkpoint.experts.reader
    mlx = checkpoint.kind != "gguf" and is_mlx(checkpoint.config, checkpoint.tensors)
    return "mlx" if mlx else ""


def _of_language(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """List the parameters of a Hugging Face folder, of a multimodal one the language model's."""
    found = _of_folder(checkpoint)
    if checkpoint.config.get("model_type") == INTERLEAVED:
        return split_interleaved(found)
    whole = join_qkv(language_tensors(checkpoint.config, found), checkpoint.config)
    return turn_experts(whole)


def _of_folder(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """List a folder's parameters by name, those of all its parts."""
    if reader_of(checkpoint) == "mlx":
        where = f"{checkpoint.path}: quantization"
        settings = checkpoint.config.get("quantization") or {}
        if not isinstance(settings, dict):
            raise ModelFileError(f"{where} is not a table.")
        folder = QuantizedFolder(dict(checkpoint.tensors), settings, where)
        read_mlx(folder)
        return folder.result()
    if is_paddle(checkpoint.config, checkpoint.tensors):
        where = f"{checkpoint.path}: config.json"
        folder = QuantizedFolder(dict(checkpoint.tensors), checkpoint.config, where)
        read_paddle(folder)
        return folder.result()
    description = ascend_description(checkpoint.path)
    if description is not None:
        where = f"{checkpoint.path}: quant_model_description.json"
        folder = QuantizedFolder(dict(checkpoint.tensors), description, where)
        read_ascend(folder)
        return folder.result()
    settings = quantization_settings(checkpoint.config)
    if settings is None:
        settings = modelopt_settings(checkpoint.path)
    where = f"{checkpoint.path}: quantization_config"
    if settings is None:
        _check_plain(checkpoint)
        return join_slices(cut_qkv(checkpoint.tensors, checkpoint.config))
    if not isinstance(settings, dict):
        raise ModelFileError(f"{where} is not a table.")
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedModelError(
            f"{where} has quant_method = {shown(str(method))}, which dure does not read.",
            hint=f"it reads {', '.join(_METHODS)}, and folders that are not quantised.",
        )
    tensors = cut_qkv(checkpoint.tensors, checkpoint.config)
    folder = QuantizedFolder(tensors, settings, where)
    _METHODS[method](folder)
    if not folder.found and not folder.plain and checkpoint.experts is None:
        raise ModelFileError(
            f"{where} says {method}, but no tensor is stored so.",
            hint="config.json may be of another version of the model.",
        )
    return folder.result()


def _gguf_parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """List a GGUF's tensors; types that the kernels lack are held in others."""
    tensors = split_fused(checkpoint.tensors, checkpoint.metadata)
    found: dict[str, Parameter] = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype in GRID_TYPES:
            found[name] = GgufGridMatrix(name, tensor)
        elif tensor.dtype == "NVFP4":
            found[name] = GgufNvfp4Matrix(name, tensor)
    return found


def parameters_or_tensors(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """List parameters as `parameters` does, or the plain tensors where it raises."""
    try:
        return parameters(checkpoint)
    except DureError:
        pass
    try:
        return dict(language_tensors(checkpoint.config, checkpoint.tensors))
    except DureError:
        return dict(checkpoint.tensors)


def is_idle_bias(name: str, found: Mapping[str, Parameter]) -> bool:
    """Check whether a parameter is a bias of zeros, which some tools add when they quantise."""
    bias, matrix = found[name], found.get(name.removesuffix("bias") + "weight")
    if not isinstance(matrix, QuantizedMatrix) or not isinstance(bias, TensorInfo):
        return False
    return not bias.source.read(bias.offset, bias.size_bytes).any()


def _check_plain(checkpoint: Checkpoint) -> None:
    """Raise ModelFileError if a tensor is quantised, though no config says how."""
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(_MARKS) or tensor.dtype == "F8_E4M3":
            raise ModelFileError(
                f"{checkpoint.path} has the quantised tensor {shown(name)}, but its config.json no "
                "quantization_config that says how.",
                hint="download config.json of the same version of the model.",
            )
