"""HQQ as transformers saves it: codes packed over groups, and all settings as tensors beside them.

Its definitions: hqq/core/bitpack.py and quantize.py. The matrix is cut into groups of consecutive
weights, one a row (axis 1); packing puts the first half of these rows into the high bits of a byte
and the second half into the low ones, and so on for other widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.quantized.affine import AffineMatrix, affine_rows
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_finite,
    check_part,
    read_array,
    read_floats,
)
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

# Bits -> numpy's type of a packed word, the codes in it; the first is in the highest bits in use.
_WORDS = {8: ("u1", 1), 4: ("u1", 2), 3: ("<u4", 10), 2: ("u1", 4), 1: ("u1", 8)}
_TYPES = {"u1": "U8", "<u4": "I32"}
# What the file has beside codes, scales, zero points and what `_settings` reads.
_IDLE = (
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "offload_meta",
    "optimize",
    "packing",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
)
MAX_SETTING_BYTES = 16


@dataclass(frozen=True)
class _Settings:
    """How one matrix is packed."""

    shape: tuple[int, int]
    bits: int
    group: int
    axis: int


def read_hqq(folder: QuantizedFolder) -> None:
    """Put together X.W_q, X.scale and X.zero, by the settings that stand beside them."""
    for base, codes in folder.ending(".W_q"):
        del folder.tensors[codes.name]
        settings = _settings(folder, base, codes.name)
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scale", "zero"))
        for each in _IDLE:
            folder.optional(f"{base}.{each}")
        folder.add(HqqMatrix(f"{base}.weight", settings, codes, scales, zeros))


def _settings(folder: QuantizedFolder, base: str, of: str) -> _Settings:
    """Read the settings of one matrix; UnsupportedModelError for what is not read."""
    for each in ("quant_scale", "quant_zero", "view_as_float"):
        flag = folder.optional(f"{base}.{each}")
        if flag is not None and any(_numbers(flag)):
            raise UnsupportedModelError(
                f"{folder.where} packs {shown(base)} with HQQ's {each}, which dure does not read.",
                hint="quantise the model without it: HQQ itself no longer writes it.",
            )
    found = {
        key: _numbers(folder.take(f"{base}.{key}", of))
        for key in ("shape", "nbits", "group_size", "axis")
    }
    if [len(each) for each in found.values()] != [2, 1, 1, 1]:
        raise ModelFileError(f"{folder.where}: the settings beside {shown(of)} have other sizes.")
    rows, cols = found["shape"]
    (bits,), (group,), (axis,) = found["nbits"], found["group_size"], found["axis"]
    fits = rows > 0 and cols > 0 and group > 0 and rows * cols % group == 0
    if bits not in _WORDS or axis not in (0, 1) or not fits:
        raise UnsupportedModelError(
            f"{folder.where} packs {shown(base)} {(rows, cols)} with {bits} bits in groups of "
            f"{group} along axis {axis}, which dure does not read."
        )
    return _Settings((rows, cols), bits, group, axis)


def _numbers(part: TensorInfo) -> list[int]:
    """Read a small part of whole numbers."""
    kinds = {"U8": "u1", "BOOL": "u1", "I32": "<i4", "I64": "<i8"}
    if part.dtype not in kinds or part.size_bytes > MAX_SETTING_BYTES:
        raise ModelFileError(f"{shown(part.name)} is no setting of HQQ.")
    numbers: list[int] = read_array(part, kinds[part.dtype]).reshape(-1).tolist()
    return numbers


class HqqMatrix(AffineMatrix):
    """weight = (code - zero) * scale, of a zero point that is a float."""

    whole = True

    def __init__(
        self,
        name: str,
        settings: _Settings,
        codes: TensorInfo,
        scales: TensorInfo,
        zeros: TensorInfo,
    ) -> None:
        """codes: (words, columns) as packed; scales, zeros: one for each group."""
        rows, cols = settings.shape
        groups = rows * cols // settings.group
        over = settings.axis == 0  # weights that share a scale lie apart
        kind, count = _WORDS[settings.bits]
        lines, width = (settings.group, groups) if over else (groups, settings.group)
        check_part(codes, (-(-lines // count), width), _TYPES[kind])
        check_part(scales, (1, groups) if over else (groups, 1), *FLOAT_TYPES)
        check_part(zeros, scales.shape, *FLOAT_TYPES)
        # Groups that lie apart, or go over a row's end, are no groups of columns: float32.
        size = 1 if over or cols % settings.group else settings.group
        super().__init__(name, (rows, cols), settings.bits, size, codes, scales, zeros)
        self.stored = f"HQQ-{settings.bits}"
        self._settings, self._lines = settings, lines
        self._code, self._scale, self._zero = codes, scales, zeros

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of an affine type, or F32; see `QuantizedMatrix.read_rows`."""
        rows, cols = self.shape
        codes = self._all_codes()
        scales, zeros = (read_floats(part).reshape(-1) for part in (self._scale, self._zero))
        check_finite(scales, self.name)
        check_finite(zeros, self.name)
        if self.dtype == "F32":
            lines = (codes.astype(np.float32), zeros, scales)
            if self._settings.axis == 1:
                lines = lines[0], zeros[:, None], scales[:, None]
            values = ((lines[0] - lines[1]) * lines[2]).reshape(rows, cols)[start:stop]
            return values.view(np.uint8)
        each = cols // self.group
        part = slice(start * each, stop * each)
        scale, zero = scales[part].reshape(-1, each), zeros[part].reshape(-1, each)
        chosen = codes[part].reshape(stop - start, cols)
        return affine_rows(chosen, scale, -zero * scale, self.group, self.dtype)

    def _all_codes(self) -> Bytes:
        """Read the codes, (lines, weights of a line), a byte each."""
        kind, count = _WORDS[self._settings.bits]
        words, bits = read_array(self._code, kind), self._settings.bits
        mask = (1 << bits) - 1
        parts = [words >> bits * (count - 1 - each) & mask for each in range(count)]
        return np.concatenate(parts).astype(np.uint8)[: self._lines]
