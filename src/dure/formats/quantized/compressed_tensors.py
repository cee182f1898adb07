"""compressed-tensors, as llm-compressor writes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    as_floats,
    check_part,
    matrix_shape,
    read_array,
    read_part_rows,
)
from dure.formats.quantized.byte_codes import ByteMatrix
from dure.formats.quantized.fp8 import add_fp8
from dure.formats.quantized.grouped import (
    GroupedMatrix,
    group_size,
    unpack_stream,
    unpack_words,
)
from dure.formats.quantized.mxfp4 import Mxfp4Matrix
from dure.formats.quantized.nvfp4 import Nvfp4Matrix
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp8-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
)
_KINDS = (*(("int", bits) for bits in range(2, 9)), ("float", 8), ("float", 4))


@dataclass(frozen=True)
class _Scheme:
    """What one of the config's groups says of weights. size: columns of a group, -1 for a row."""

    kind: str
    bits: int
    size: int
    block: tuple[int, int] | None


def read_compressed_tensors(folder: QuantizedFolder) -> None:
    """Put together every module that llm-compressor quantised.

    Which of its forms a module has is seen by its tensors' names, types and shapes; the config's
    groups say which bits and group sizes there are.
    """
    for form in (folder.settings.get("format"), *_listed(folder, "format")):
        if form is not None:
            folder.expect("format", form, *_FORMATS)
    schemes = [_scheme(folder, each) for each in _listed(folder, "weights") if each is not None]
    add_float_forms(folder, next((s.block for s in schemes if s.block is not None), None))
    integers = [scheme for scheme in schemes if scheme.kind == "int"]
    for base, codes in folder.ending(".weight_packed"):
        del folder.tensors[codes.name]
        scales = folder.take(f"{base}.weight_scale", codes.name)
        shape = folder.take(f"{base}.weight_shape", codes.name)
        zeros, order = (folder.optional(f"{base}.weight_{e}") for e in ("zero_point", "g_idx"))
        parts = codes, scales, shape, zeros, order
        folder.add(WordMatrix(f"{base}.weight", parts, integers))
    sizes = [scheme.size for scheme in integers]
    bits = max((scheme.bits for scheme in integers), default=8)
    for base, codes in folder.ending(".weight"):
        if codes.dtype == "I8":
            del folder.tensors[codes.name]
            scales = folder.take(f"{base}.weight_scale", codes.name)
            zeros = folder.optional(f"{base}.weight_zero_point")
            made = ByteMatrix(
                codes.name, f"INT{bits}", codes, scales, zeros, bits=bits, sizes=sizes
            )
            folder.add(made)


def add_float_forms(folder: QuantizedFolder, block: tuple[int, int] | None) -> None:
    """Put together every module of MXFP4, NVFP4, FP8 and MXFP8, by the names of these tools.

    block: of weights that share a scale of FP8, if they lie in blocks.
    """
    for base, codes in folder.ending(".weight_packed"):
        if codes.dtype != "U8":
            continue
        del folder.tensors[codes.name]
        scales = folder.take(f"{base}.weight_scale", codes.name)
        if scales.dtype == "F8_E4M3":
            whole = folder.take(f"{base}.weight_global_scale", codes.name)
            folder.add(Nvfp4Matrix(f"{base}.weight", codes, scales, whole, divides=True))
        else:
            folder.add(Mxfp4Matrix(f"{base}.weight", codes, scales))
    add_fp8(folder, block)


def _listed(folder: QuantizedFolder, key: str) -> list[Any]:
    """Return the values at `key` of all config_groups. Raises ModelFileError if there are none."""
    groups = folder.settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise ModelFileError(f"{folder.where} has no config_groups.")
    return [each.get(key) for each in groups.values()]


def _scheme(folder: QuantizedFolder, weights: object) -> _Scheme:
    if not isinstance(weights, dict):
        raise ModelFileError(f"{folder.where} has weights = {weights!r:.60}; it must be a table.")
    kind: Any = weights.get("type", "int")
    bits: Any = weights.get("num_bits")
    folder.expect("type, num_bits of weights", (kind, bits), *_KINDS)
    strategy, size = weights.get("strategy", "group"), weights.get("group_size")
    folder.expect(
        "strategy", strategy, "group", "tensor_group", "channel", "tensor", "block", "token", None
    )
    if size is not None and (type(size) is not int or (size != -1 and size < 1)):
        raise ModelFileError(
            f"{folder.where} has group_size = {size!r:.60}; it must be -1 or a number above 0."
        )
    block = folder.block("block_structure", weights.get("block_structure"))
    if size is None or strategy not in ("group", None):
        size = -1
    return _Scheme(kind, bits, size, block)


class WordMatrix(GroupedMatrix):
    """pack-quantized: weight = scale * (code - zero) of unsigned codes, packed into 32-bit words.

    The zero point is half of the codes' range if none is stored. Codes of a row are a dense bit
    stream; versions before 0.15 wrote 3, 5, 6 and 7 bits as 32 // bits codes a word.
    """

    def __init__(
        self,
        name: str,
        parts: tuple[TensorInfo, TensorInfo, TensorInfo, TensorInfo | None, TensorInfo | None],
        schemes: Iterable[_Scheme],
    ) -> None:
        """parts: codes, scales, the shape in a tensor, zero points and g_idx."""
        codes, scales, shape, zeros, indices = parts
        rows, cols = _shape_in(shape)
        words, groups = matrix_shape(codes)[1], matrix_shape(scales)[1]
        fitting = [s for s in schemes if words in _widths(s.bits, cols)]
        if not fitting:
            raise ModelFileError(
                f"{shown(codes.name)} has {words} words for rows of {cols} columns, which are no "
                "codes of the bits that config.json says."
            )
        group = group_size(scales, groups, cols, [s.size for s in fitting], shown(name))
        bits = next(s.bits for s in fitting if _groups(s.size, cols) == groups)
        zero = 1 << (bits - 1) if zeros is None else None
        super().__init__(name, (rows, cols), group, bits, *parts, zero=zero)
        self.stored = f"INT{bits}"
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        self._dense = words == _widths(bits, cols)[0]
        check_part(codes, (rows, words), "I32")
        check_part(scales, (rows, self.groups), *FLOAT_TYPES)
        if zeros is not None:
            check_part(zeros, (_widths(bits, rows)[not self._dense], self.groups), "I32")
        if indices is not None:
            check_part(indices, (cols,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        """The columns group by group, as weight_g_idx says; None if they are in order."""
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        words = read_part_rows(self._code, start, stop).view("<u4")
        return self._unpacked(words, self.shape[1])

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes | None]:
        scales = as_floats(read_part_rows(self._scale, start, stop), self._scale.dtype)
        if self._zero is None:
            return scales, None
        words = np.ascontiguousarray(read_array(self._zero, "<u4").T)  # packed along the rows
        return scales, self._unpacked(words, self.shape[0])[:, start:stop].T

    def _unpacked(self, words: Array, count: int) -> Bytes:
        unpack = unpack_stream if self._dense else unpack_words
        return unpack(words, self.bits, count)


def _widths(bits: int, count: int) -> tuple[int, int]:
    """Return the words that `count` codes take: as a dense stream, and with 32 // bits a word."""
    return -(-count * bits // 32), -(-count // (32 // bits))


def _groups(size: int, cols: int) -> int:
    return 1 if size == -1 else -(-cols // size)


def _shape_in(tensor: TensorInfo) -> tuple[int, int]:
    """Read the two sizes that a tensor holds. Raises ModelFileError unless both are above 0."""
    check_part(tensor, (2,), "I64", "I32")
    rows, cols = read_array(tensor, "<i8" if tensor.dtype == "I64" else "<i4").tolist()
    if rows < 1 or cols < 1:
        raise ModelFileError(f"{tensor.name} says {rows} rows and {cols} columns.")
    return rows, cols
