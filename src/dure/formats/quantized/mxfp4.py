"""MXFP4: values of e2m1, 32 of them under a power of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import (
    QuantizedMatrix,
    check_not_empty,
    check_part,
    read_part_rows,
    split_nibbles,
)
from dure.formats.tensors import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]


def read_mxfp4(folder: QuantizedFolder) -> None:
    """Put together X_blocks and X_scales, as gpt-oss publishes its experts."""
    for base, codes in folder.ending("_blocks"):
        del folder.tensors[codes.name]
        folder.add(Mxfp4Matrix(base, codes, folder.take(f"{base}_scales", codes.name)))


class Mxfp4Matrix(QuantizedMatrix):
    """32 values of e2m1, two a byte and the low half first, times 2^(scale - 127)."""

    stored = "MXFP4"

    def __init__(self, name: str, codes: TensorInfo, scales: TensorInfo) -> None:
        """codes: (…, columns / 32, 16), or (…, columns / 2); scales: (…, columns / 32)."""
        split = codes.shape == (*scales.shape, 16)
        shape = (*scales.shape[:-1], 32 * scales.shape[-1]) if scales.shape else ()
        if len(shape) < 2 or not (split or codes.shape == (*shape[:-1], shape[-1] // 2)):
            raise ModelFileError(
                f"{codes.name} {codes.shape} and {scales.name} {scales.shape} are no MXFP4 matrix."
            )
        check_not_empty(scales)
        check_part(codes, codes.shape, "U8")
        check_part(scales, scales.shape, "U8", "F8_E8M0")
        super().__init__(name, shape, "MXFP4", codes, scales)
        self._code, self._scale = codes, scales

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of MXFP4; see `QuantizedMatrix.read_rows`."""
        count = self.shape[-1] // 32
        size = 16 * count
        codes = self._code.source.read(self._code.offset + start * size, (stop - start) * size)
        values = split_nibbles(codes.reshape(-1, 16))
        blocks = np.empty((stop - start, count, 17), np.uint8)
        blocks[..., 0] = read_part_rows(self._scale, start, stop)
        if (blocks[..., 0] == 255).any():
            raise ModelFileError(f"{shown(self.name)} has a scale that is NaN.")
        # In a block of GGUF's, a byte has a value of the first half and one of the second.
        blocks[..., 1:] = (values[:, :16] | values[:, 16:] << 4).reshape(stop - start, count, 16)
        return blocks.reshape(stop - start, -1)
