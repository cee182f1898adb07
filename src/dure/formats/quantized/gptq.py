"""GPTQ, as AutoGPTQ, GPTQModel and AutoRound write it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    FLOAT_TYPES,
    check_part,
    matrix_shape,
    read_array,
    read_floats,
)
from dure.formats.quantized.grouped import (
    GroupedMatrix,
    group_size,
    unpack_stream,
    unpack_words,
)
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

# What version 1 takes from every word of zero points before it is stored: 1 from each code, with a
# borrow from the next where a code is 0. Of 3 bits it lowers each code by itself, modulo 8.
_LOWERED = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
# The widths of the bit planes of a code in GPTQModel's planar form, the low bits first.
_PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


def read_gptq(folder: QuantizedFolder) -> None:
    """Put together X.qweight, X.qzeros, X.scales and perhaps X.g_idx of every module.

    Version 1 stores zero points less 1, version 2 as they are. Bits and group sizes of a module,
    which `dynamic` may change, are those of its tensors.
    """
    form = folder.settings.get("checkpoint_format", folder.settings.get("format"))
    folder.expect("checkpoint_format", form, "gptq", "gptq_v2", "gptq_p", None)
    add_gptq(folder, "dynamic", lowered=form in ("gptq", None), planar=form == "gptq_p")


def add_gptq(
    folder: QuantizedFolder, overrides: str, *, lowered: bool, planar: bool = False
) -> None:
    """Put together every module of GPTQ's names.

    overrides: the key of other bits and group sizes for some modules. lowered: whether zero points
    are stored less 1, as version 1 does. planar: whether codes of 3, 5, 6 and 7 bits are cut into
    bit planes.
    """
    known = folder.bits(overrides, 2, 3, 4, 5, 6, 7, 8), folder.group_sizes(overrides)
    for base, codes in folder.ending(".qweight"):
        del folder.tensors[codes.name]
        scales, zeros = (folder.take(f"{base}.{each}", codes.name) for each in ("scales", "qzeros"))
        parts = codes, scales, zeros, folder.optional(f"{base}.g_idx")
        folder.add(GptqMatrix(f"{base}.weight", parts, known, lowered=lowered, planar=planar))


class GptqMatrix(GroupedMatrix):
    """weight[row, col] = scales[g, row] * (code[col, row] - zero[g, row]).

    g is the column's group: by g_idx, else col // group. Codes are a bit stream along the columns
    of the matrix, zero points one along its rows.
    """

    whole = True

    def __init__(
        self,
        name: str,
        parts: tuple[TensorInfo, TensorInfo, TensorInfo, TensorInfo | None],
        known: tuple[list[int], list[int]],
        *,
        lowered: bool,
        planar: bool,
    ) -> None:
        """parts: codes, scales, zero points and g_idx. known: the config's bits and group sizes.

        The others are as `add_gptq` has them.
        """
        codes, scales, zeros, indices = parts
        words, rows = matrix_shape(codes)
        groups = matrix_shape(scales)[0]
        bits, cols = _bits_and_columns(codes, zeros, indices, known[0])
        group = group_size(scales, groups, cols, known[1], shown(name))
        super().__init__(name, (rows, cols), group, bits, *parts)
        self.stored = f"GPTQ-{bits}"
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        self._lowered, self._planar = lowered, planar and bits in _PLANES
        check_part(codes, (words, rows), "I32")
        check_part(scales, (self.groups, rows), *FLOAT_TYPES)
        check_part(zeros, (self.groups, -(-rows * bits // 32)), "I32")
        if indices is not None:
            check_part(indices, (cols,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        """The columns group by group, as g_idx says; None if they are in order."""
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        words = np.ascontiguousarray(read_array(self._code, "<u4")[:, start:stop].T)
        return self._unpacked(words, self.shape[1])

    def _scales(self, start: int, stop: int) -> tuple[Floats, Bytes]:
        words = read_array(self._zero, "<u4")
        if self._lowered and self.bits in _LOWERED:
            words = words + np.uint32(_LOWERED[self.bits])  # modulo 2^32: borrows are undone
        zeros = self._unpacked(words, self.shape[0])[:, start:stop]
        if self._lowered and self.bits not in _LOWERED:
            zeros = (zeros + np.uint8(1)) & np.uint8((1 << self.bits) - 1)
        return read_floats(self._scale)[:, start:stop].T, zeros.T

    def _unpacked(self, words: Array, count: int) -> Bytes:
        unpack = _unpack_planes if self._planar else unpack_stream
        return unpack(words, self.bits, count)


def _unpack_planes(words: Array, bits: int, count: int) -> Bytes:
    """Unpack GPTQModel's planar form: of 32 codes all low bits come first, then all higher ones.

    words: uint32 (…, n * bits). Returns the first `count` codes, uint8 (…, count).
    """
    blocks = words.reshape(*words.shape[:-1], -1, bits)
    codes, first = np.zeros((*blocks.shape[:-1], 32), np.uint8), 0
    for width in _PLANES[bits]:
        plane = unpack_words(blocks[..., first : first + width], width, 32)
        codes |= plane << np.uint8(first)
        first += width
    return codes.reshape(*words.shape[:-1], -1)[..., :count]


def _bits_and_columns(
    codes: TensorInfo, zeros: TensorInfo, indices: TensorInfo | None, known: list[int]
) -> tuple[int, int]:
    """Find the bits of a code, among those of the config, and the columns of the matrix."""
    words, rows = matrix_shape(codes)
    width = matrix_shape(zeros)[1]
    for bits in known:
        cols = 32 * words // bits if indices is None else max(indices.shape[:1], default=0)
        if cols and -(-cols * bits // 32) == words and -(-rows * bits // 32) == width:
            return bits, cols
    raise ModelFileError(
        f"{shown(codes.name)} {codes.shape} and {shown(zeros.name)} {zeros.shape} are no codes and "
        f"zero points of {' or '.join(map(str, known))} bits, as config.json says."
    )
