"""MXFP6: values of e2m3 or e3m2, 32 of them under a power of two."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from dure.formats.quantized.affine import unpack_bits
from dure.formats.quantized.base import (
    QuantizedMatrix,
    as_floats,
    check_finite,
    check_part,
    matrix_shape,
    read_part_rows,
)
from dure.formats.quantized.fp8 import E4M3

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

# Form -> bits of the exponent, of the fraction, and the exponent's bias (OCP MX 1.0, 5.3.2).
_FORMS = {"e2m3": (2, 3, 1), "e3m2": (3, 2, 3)}


class Mxfp6Matrix(QuantizedMatrix):
    """32 values of 6 bits times 2^(scale - 127). All are values of e4m3, in which memory has them.

    Four codes lie in three bytes, the first in the lowest bits.
    """

    def __init__(self, name: str, codes: TensorInfo, scales: TensorInfo, form: str) -> None:
        """codes: U8 (rows, columns / 4 * 3). scales: U8 (rows, columns / 32). form: e2m3 or e3m2.

        Raises ModelFileError for parts that do not fit each other.
        """
        rows, groups = matrix_shape(scales)
        check_part(scales, scales.shape, "U8", "F8_E8M0")
        check_part(codes, (rows, 24 * groups), "U8")
        super().__init__(name, (rows, 32 * groups), "F8G32", codes, scales)
        self.stored = f"MXFP6-{form.upper()}"
        self._code, self._scale, self._form = codes, scales, form

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as blocks of F8G32; see `QuantizedMatrix.read_rows`."""
        codes = unpack_bits(read_part_rows(self._code, start, stop), 6)
        scales = as_floats(read_part_rows(self._scale, start, stop), self._scale.dtype)
        check_finite(scales, self.name)
        blocks = np.empty(scales.shape, [("codes", "u1", 32), ("scale", "<f4")])
        blocks["codes"] = _as_e4m3(self._form)[codes].reshape(*scales.shape, 32)
        blocks["scale"] = scales
        return blocks.view(np.uint8).reshape(stop - start, -1)


@cache
def _as_e4m3(form: str) -> Bytes:
    """Return the code of e4m3 for each of the 64 codes of a form."""
    exponent_bits, fraction_bits, bias = _FORMS[form]
    codes = np.arange(64)
    exponent = codes >> fraction_bits & (1 << exponent_bits) - 1
    fraction = codes & (1 << fraction_bits) - 1
    whole = fraction + (1 << fraction_bits) * (exponent > 0)
    sizes = np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - fraction_bits)
    order = np.argsort(E4M3[:127], kind="stable")
    found = order[np.searchsorted(E4M3[:127][order], sizes)]
    table: Bytes = np.where(codes < 32, found, found + 128).astype(np.uint8)
    return table
