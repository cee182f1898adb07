"""Quantised Hugging Face checkpoints: which tensors of a folder are one matrix, and its rows.

config.json's quantization_config names the method, and each method has its own names and packing:
what `packed_layouts` reads. Everybody else sees one matrix of the name and shape that the model
asks for, in a type that the kernels have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.quantized_layouts import (
    AwqMatrix,
    Fp8Matrix,
    GptqMatrix,
    Mxfp4Matrix,
    PackedInt4,
    PackedMatrix,
)
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

    Parameter = TensorInfo | PackedMatrix

# What runtimes quantise activations and caches with: we have no use for it.
_RUNTIME = (
    ".input_scale",
    ".activation_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
)
# By what a quantised tensor is known where no config says that there are any.
_MARKS = (".qweight", ".weight_packed", "_scale_inv", "_blocks")
_FP8 = "F8_E4M3"


def parameters(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """The checkpoint's matrices and vectors by name: its tensors, but what a quantised folder
    stores in parts is one. No weight is read.

    UnsupportedModelError for a quantisation we do not read, ModelFileError if tensors and config
    contradict each other.
    """
    if checkpoint.kind == "gguf":
        return dict(checkpoint.tensors)
    settings = checkpoint.config.get("quantization_config")
    if settings is None:
        settings = checkpoint.config.get("compression_config")  # compressed-tensors' first name
    where = f"{checkpoint.path}: quantization_config"
    if settings is None:
        _check_plain(checkpoint)
        return dict(checkpoint.tensors)
    if not isinstance(settings, dict):
        raise ModelFileError(f"{where} is not a table.")
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedModelError(
            f"{where} has quant_method = {shown(str(method))}, which dure does not read.",
            hint=f"it reads {', '.join(_METHODS)}, and folders that are not quantised.",
        )
    folder = _Folder(dict(checkpoint.tensors), settings, where)
    _METHODS[method](folder)
    if not folder.found:
        raise ModelFileError(
            f"{where} says {method}, but no tensor is stored so.",
            hint="config.json may be of another version of the model.",
        )
    return folder.result()


def parameters_or_tensors(checkpoint: Checkpoint) -> dict[str, Parameter]:
    """`parameters`, or what the files hold where they are not understood: for whoever describes."""
    try:
        return parameters(checkpoint)
    except DureError:
        return dict(checkpoint.tensors)


def is_idle_bias(name: str, found: Mapping[str, Parameter]) -> bool:
    """Whether it is a bias of zeros, which tools add to what they quantise."""
    bias, matrix = found[name], found.get(name.removesuffix("bias") + "weight")
    if not isinstance(matrix, PackedMatrix) or not isinstance(bias, TensorInfo):
        return False
    return not bias.source.read(bias.offset, bias.size_bytes).any()


def _check_plain(checkpoint: Checkpoint) -> None:
    """ModelFileError if a tensor is quantised, though no config says how."""
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(_MARKS) or tensor.dtype == _FP8:
            raise ModelFileError(
                f"{checkpoint.path} has the quantised tensor {shown(name)}, but its config.json no "
                "quantization_config that says how.",
                hint="download config.json of the same version of the model.",
            )


class _Folder:
    """The tensors of a folder while parts are put together, and what its config says of them."""

    def __init__(
        self, tensors: dict[str, TensorInfo], settings: Mapping[str, Any], where: str
    ) -> None:
        self.tensors = tensors
        self.settings = settings
        self.where = where
        self.found: dict[str, PackedMatrix] = {}

    def ending(self, suffix: str) -> list[tuple[str, TensorInfo]]:
        """The tensors that are called so at the end, each with what comes before."""
        return [(n.removesuffix(suffix), t) for n, t in self.tensors.items() if n.endswith(suffix)]

    def take(self, name: str, of: str) -> TensorInfo:
        """The tensor, no longer one by itself; ModelFileError if it is missing beside `of`."""
        tensor = self.optional(name)
        if tensor is None:
            raise ModelFileError(f"{self.where}: {of} is quantised, but there is no {name}.")
        return tensor

    def optional(self, name: str) -> TensorInfo | None:
        """The same, or None."""
        return self.tensors.pop(name, None)

    def add(self, matrix: PackedMatrix) -> None:
        """Keeps a matrix that has been put together."""
        if matrix.name in self.tensors:
            raise ModelFileError(
                f"{self.where}: {matrix.name} is stored twice, quantised and as it is."
            )
        self.found[matrix.name] = matrix

    def result(self) -> dict[str, Parameter]:
        """All parameters by name."""
        left = {n: t for n, t in self.tensors.items() if not n.endswith(_RUNTIME)}
        return {**left, **self.found}

    def integer(self, key: str, default: int) -> int:
        """The whole number at `key`."""
        value = self.settings.get(key, default)
        if type(value) is not int:
            raise ModelFileError(f"{self.where} has {key} = {value!r:.60}; it must be a number.")
        return value

    def expect(self, key: str, value: Any, *allowed: Any) -> None:
        """UnsupportedModelError for a value that is not one of `allowed`."""
        if value not in allowed:
            raise UnsupportedModelError(
                f"{self.where} has {key} = {value!r:.60}, which dure does not read; "
                f"it reads {' or '.join(repr(a) for a in allowed if a is not None)}."
            )

    def block(self, key: str, value: Any) -> tuple[int, int] | None:
        """The two sizes of a block of FP8 weights that share a scale; None if none are given."""
        if value is None:
            return None
        sizes = value if isinstance(value, list) else []
        if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise ModelFileError(f"{self.where} has {key} = {value!r:.60}; it must be two sizes.")
        return sizes[0], sizes[1]

    def add_fp8(self, block: tuple[int, int] | None) -> None:
        """Every FP8 tensor with its scales, which are called as it is, and _scale_inv or _scale."""
        for name, tensor in list(self.tensors.items()):
            if tensor.dtype != _FP8:
                continue
            scale = self.optional(f"{name}_scale_inv") or self.take(f"{name}_scale", name)
            del self.tensors[name]
            self.add(Fp8Matrix(name, tensor, scale, block))


def _fp8(folder: _Folder) -> None:
    """DeepSeek's form: X.weight, and X.weight_scale_inv, which is multiplied with."""
    folder.expect("fmt", folder.settings.get("fmt", "e4m3"), "e4m3", "float8_e4m3fn")
    key = "weight_block_size"
    folder.add_fp8(folder.block(key, folder.settings.get(key)))


def _gptq(folder: _Folder) -> None:
    """X.qweight, X.qzeros, X.scales and perhaps X.g_idx; version 1 stores zero points less 1."""
    folder.expect("bits", folder.settings.get("bits"), 4)
    form = folder.settings.get("checkpoint_format", folder.settings.get("format"))
    folder.expect("checkpoint_format", form, "gptq", "gptq_v2", None)
    group = folder.integer("group_size", 128)
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scales", "qzeros"))
        groups = folder.optional(f"{base}.g_idx")
        less = 0 if form == "gptq_v2" else 1
        folder.add(GptqMatrix(f"{base}.weight", codes, scales, zeros, groups, group, less))


def _awq(folder: _Folder) -> None:
    """X.qweight, X.qzeros and X.scales, packed along the output columns in an order of its own."""
    folder.expect("bits", folder.settings.get("bits", folder.settings.get("w_bit")), 4)
    form = folder.settings.get("version", folder.settings.get("format", "gemm"))
    folder.expect("version", str(form).lower(), "gemm")
    group = folder.integer("group_size", folder.settings.get("q_group_size", 128))
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scales", "qzeros"))
        folder.add(AwqMatrix(f"{base}.weight", codes, scales, zeros, group))


def _compressed(folder: _Folder) -> None:
    """X.weight_packed with X.weight_scale and perhaps more of int4; FP8; MXFP4 of two a byte."""
    groups = folder.settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise ModelFileError(f"{folder.where} has no config_groups.")
    weights = [each["weights"] for each in groups.values() if isinstance(each.get("weights"), dict)]
    sizes, blocks = set(), set()
    for each in weights:
        kind = each.get("type", "int"), each.get("num_bits")
        folder.expect("type, num_bits of weights", kind, ("int", 4), ("float", 8), ("float", 4))
        sizes.add(each.get("group_size") if each.get("strategy", "group") == "group" else -1)
        blocks.add(folder.block("block_structure", each.get("block_structure")))
    for base, codes in folder.ending(".weight_packed"):
        del folder.tensors[codes.name]
        scales = folder.take(f"{base}.weight_scale", codes.name)
        if codes.dtype == "U8":
            if folder.optional(f"{base}.weight_global_scale") is not None:
                folder.expect("format", "nvfp4-pack-quantized", "mxfp4-pack-quantized")
            folder.add(Mxfp4Matrix(f"{base}.weight", codes, scales))
            continue
        shape = folder.take(f"{base}.weight_shape", codes.name)
        zeros, order = (folder.optional(f"{base}.weight_{e}") for e in ("zero_point", "g_idx"))
        folder.add(PackedInt4(f"{base}.weight", codes, scales, shape, zeros, order, sizes))
    folder.add_fp8(next((block for block in blocks if block is not None), None))


def _mxfp4(folder: _Folder) -> None:
    """X_blocks and X_scales, as gpt-oss publishes its experts."""
    for base, codes in folder.ending("_blocks"):
        del folder.tensors[codes.name]
        folder.add(Mxfp4Matrix(base, codes, folder.take(f"{base}_scales", codes.name)))


_METHODS: Mapping[str, Callable[[_Folder], None]] = {
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "mxfp4": _mxfp4,
}
