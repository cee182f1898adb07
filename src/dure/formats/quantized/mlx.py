"""Folders that mlx-lm writes: its modes of quantisation, and its names of stacked experts.

config.json has `quantization` with bits, group_size and mode for all modules, and a table of its
own for a module that differs: https://github.com/ml-explore/mlx-lm, `mlx_lm/utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized.affine import AffineMatrix, affine_rows, unpack_bits
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    as_floats,
    check_finite,
    check_not_empty,
    check_part,
    read_part_rows,
)
from dure.formats.quantized.fp8 import Fp8Matrix
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.quantized.nvfp4 import Nvfp4Matrix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dure.formats.quantized.base import QuantizedMatrix
    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

# Names that mlx-lm's models give to parameters -> those of the checkpoint it converted.
_NAMES = {
    ".switch_mlp.": ".experts.",
    ".experts.switch_glu.": ".experts.",
    ".self_attn.embed_q.": ".self_attn.k_b_proj.",
    ".self_attn.unembed_out.": ".self_attn.v_b_proj.",
}
# Mode -> its columns that share a scale, and its bits, where config.json has null or nothing.
_DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class _Mode:
    """How one module is quantised."""

    mode: str
    group: int
    bits: int


def is_mlx(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Check whether mlx-lm wrote a folder.

    That is by `quantization`, its names of stacked experts, or a convolution that has its taps
    before its one input channel.
    """
    if isinstance(config.get("quantization"), dict):
        return any(name.endswith(".scales") for name in tensors)
    shapes = [t.shape for n, t in tensors.items() if n.endswith(".linear_attn.conv1d.weight")]
    if any(len(shape) == 3 and shape[1] > 1 and shape[2] == 1 for shape in shapes):
        return True
    return any(mark in name for mark in _NAMES for name in tensors)


def read_mlx(folder: QuantizedFolder) -> None:
    """Put together X.weight, X.scales and X.biases, and give parameters their usual names.

    `folder.settings` is config.json's `quantization`, empty for a folder that is not quantised.
    """
    for base, scales in folder.ending(".scales"):
        del folder.tensors[scales.name]
        codes = folder.take(f"{base}.weight", scales.name)
        mode = _mode_of(folder, base)
        folder.add(_matrix(folder, _usual(codes.name), mode, codes, scales))
    for name, tensor in list(folder.tensors.items()):
        if name.endswith(".conv1d.weight") and len(tensor.shape) == 3 and tensor.shape[-1] == 1:
            channels, taps, one = tensor.shape  # in memory as (channels, 1, taps)
            folder.tensors[name] = replace(tensor, shape=(channels, one, taps))
        if (usual := _usual(name)) != name:
            folder.tensors[usual] = folder.tensors.pop(name)


def _usual(name: str) -> str:
    """Return a parameter's name as the converted checkpoint has it."""
    for theirs, usual in _NAMES.items():
        name = name.replace(theirs, usual)
    return name


def _mode_of(folder: QuantizedFolder, base: str) -> _Mode:
    """Return how config.json says that a module is quantised."""
    note = folder.settings.get(base)
    table = note if isinstance(note, dict) else folder.settings
    mode = table.get("mode", "affine")
    if not isinstance(mode, str) or mode not in _DEFAULTS:
        raise UnsupportedModelError(
            f"{folder.where} quantises {base} in the mode {mode!r:.40}, which dure does not read.",
            hint=f"it reads MLX's modes {', '.join(_DEFAULTS)}.",
        )
    group, bits = _DEFAULTS[mode]
    sizes = [
        default if table.get(key) is None else table[key]
        for key, default in (("group_size", group), ("bits", bits))
    ]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ModelFileError(f"{folder.where} has no whole group_size and bits for {base}.")
    return _Mode(mode, *sizes)


def _matrix(
    folder: QuantizedFolder, name: str, mode: _Mode, codes: TensorInfo, scales: TensorInfo
) -> QuantizedMatrix:
    """Put one matrix together; ModelFileError if its tensors have other sizes than config.json."""
    check_not_empty(codes)
    cols = 32 * codes.shape[-1] // mode.bits if len(codes.shape) > 1 else 0
    allowed = _BITS if mode.mode == "affine" else (_DEFAULTS[mode.mode][1],)
    expected = (*codes.shape[:-1], cols // mode.group)
    fits = scales.shape == expected and cols % mode.group == 0
    if codes.dtype != "U32" or mode.bits not in allowed or not cols or not fits:
        raise ModelFileError(
            f"{folder.where} says {mode.mode} of {mode.bits} bits in groups of {mode.group} for "
            f"{codes.name}, which is {codes.dtype} {codes.shape} with scales {scales.shape}.",
            hint="config.json may be of another version of the model.",
        )
    if mode.mode == "affine":
        base = codes.name.removesuffix(".weight")
        adds = folder.take(f"{base}.biases", codes.name)
        return MlxMatrix(name, mode.bits, mode.group, codes, scales, adds)
    as_bytes = (*codes.shape[:-1], 4 * codes.shape[-1])
    check_part(scales, expected, "U8")
    if mode.mode == "mxfp8":
        fp8 = replace(codes, dtype="F8_E4M3", shape=as_bytes)
        return Fp8Matrix(name, fp8, scales, (1, mode.group))
    pairs = replace(codes, dtype="U8", shape=as_bytes)
    if mode.mode == "mxfp4":
        return Mxfp4Matrix(name, pairs, scales)
    return Nvfp4Matrix(name, pairs, scales, None)


class MlxMatrix(AffineMatrix):
    """MLX's affine mode: weight = scale * code + bias, codes a dense stream, low bits first."""

    def __init__(
        self,
        name: str,
        bits: int,
        group: int,
        codes: TensorInfo,
        scales: TensorInfo,
        adds: TensorInfo,
    ) -> None:
        """codes: U32 (…, rows, columns * bits / 32); scales and adds: (…, rows, groups)."""
        check_part(scales, scales.shape, *FLOAT_TYPES)
        check_part(adds, scales.shape, *FLOAT_TYPES)
        shape = (*codes.shape[:-1], 32 * codes.shape[-1] // bits)
        super().__init__(name, shape, bits, group, codes, scales, adds)
        self.stored = f"MLX-{bits}"
        self._code, self._scale, self._add = codes, scales, adds

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of an affine type, or F32; see `QuantizedMatrix.read_rows`."""
        codes = unpack_bits(read_part_rows(self._code, start, stop), self.bits)
        scales, adds = (
            as_floats(read_part_rows(part, start, stop), part.dtype)
            for part in (self._scale, self._add)
        )
        check_finite(scales, self.name)
        check_finite(adds, self.name)
        return affine_rows(codes, scales, adds, self.group, self.dtype)
