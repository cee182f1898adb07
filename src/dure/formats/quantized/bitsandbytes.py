"""bitsandbytes as transformers saves it: int8 rows, and nf4 and fp4 in blocks.

Its definitions: bitsandbytes/functional.py (`dequantize_4bit`, `int8_vectorwise_dequant`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.jsonfile import parse_object
from dure.formats.quantized.base import (
    QuantizedMatrix,
    check_finite,
    check_part,
    read_array,
    read_floats,
)
from dure.formats.quantized.byte_codes import ByteMatrix
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

MAX_STATE_BYTES = 4096
"""The JSON that describes one matrix; bitsandbytes writes 170 bytes."""

_KINDS = ("nf4", "fp4")


def read_bitsandbytes(folder: QuantizedFolder) -> None:
    """Put together X.weight with X.SCB, or with X.weight.absmax and its quant_state."""
    for kind in _KINDS:
        for name, state in folder.ending(f".quant_state.bitsandbytes__{kind}"):
            del folder.tensors[state.name]
            codes = folder.take(name, state.name)
            folder.add(_blockwise(folder, name, kind, codes, _state(state)))
    for base, scales in folder.ending(".SCB"):
        del folder.tensors[scales.name]
        codes = folder.take(f"{base}.weight", scales.name)
        form = folder.optional(f"{base}.weight_format")
        if form is not None and read_array(form, "u1").any():
            raise UnsupportedModelError(
                f"{folder.where}: {codes.name} lies in tiles of a GPU's kernels (weight_format).",
                hint="save the model with bitsandbytes 0.44 or later, which writes rows.",
            )
        folder.add(ByteMatrix(codes.name, "BNB-INT8", codes, scales, divisor=127.0))


@dataclass(frozen=True)
class _Absmax:
    """Where the scale of each block stands: as floats, or as codes of a table with a scale each."""

    values: TensorInfo
    table: TensorInfo | None = None
    nested: TensorInfo | None = None
    nested_block: int = 0
    offset: float = 0.0

    def read(self) -> Floats:
        """Read the scales of all blocks."""
        if self.table is None or self.nested is None:
            return read_floats(self.values)
        codes = read_array(self.values, "u1")
        of = np.arange(codes.size) // self.nested_block
        found: Floats = read_floats(self.table)[codes] * read_floats(self.nested)[of]
        return found + np.float32(self.offset)


class BlockwiseMatrix(QuantizedMatrix):
    """nf4 and fp4: weight = table[code] * scale of its block; blocks go over the flat matrix.

    The tables are floats of no common step, so that memory holds float32: exact, and large.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        shape: tuple[int, int],
        block: int,
        codes: TensorInfo,
        table: TensorInfo,
        absmax: _Absmax,
    ) -> None:
        """codes: U8, two a byte and the HIGH half first. table: 16 values, (16,)."""
        parts = (codes, table, absmax.values, absmax.table, absmax.nested)
        super().__init__(name, shape, "F32", *parts)
        self.stored = f"BNB-{kind.upper()}"
        self._code, self._table, self._absmax, self._block = codes, table, absmax, block

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows as float32; see `QuantizedMatrix.read_rows`."""
        cols = self.shape[1]
        first, end = start * cols, stop * cols
        offset = self._code.offset + first // 2
        raw = self._code.source.read(offset, -(-end // 2) - first // 2)
        codes = np.stack([raw >> 4, raw & 15], axis=-1).reshape(-1)
        codes = codes[first % 2 : first % 2 + end - first]
        scales, table = self._absmax.read(), read_floats(self._table)
        check_finite(scales, self._absmax.values.name)
        check_finite(table, self._table.name)
        of = np.arange(first, end) // self._block
        values: Floats = table[codes] * scales[of]
        return values.view(np.uint8).reshape(stop - start, -1)


def _state(tensor: TensorInfo) -> dict[str, Any]:
    """Read the JSON that a tensor holds, of one matrix."""
    if tensor.dtype != "U8" or tensor.size_bytes > MAX_STATE_BYTES:
        raise ModelFileError(
            f"{shown(tensor.name)} is no description of a matrix (a JSON of at most "
            f"{MAX_STATE_BYTES:,} bytes)."
        )
    raw = read_array(tensor, "u1").tobytes()
    return parse_object(raw, shown(tensor.name), memory=1 << 20)


def _blockwise(
    folder: QuantizedFolder, name: str, kind: str, codes: TensorInfo, state: dict[str, Any]
) -> BlockwiseMatrix:
    """Put a matrix of 4 bits together; ModelFileError if its parts do not fit each other."""
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = [*shape, block] if isinstance(shape, list) else []
    if len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes):
        raise ModelFileError(f"{folder.where}: quant_state of {name} has no shape and blocksize.")
    rows, cols, block = sizes
    values = folder.take(f"{name}.absmax", name)
    table = folder.take(f"{name}.quant_map", name)
    blocks = -(-rows * cols // block)
    check_part(table, (16,), "F32")
    if codes.dtype not in ("U8", "BF16", "F16", "F32") or codes.size_bytes != -(-rows * cols // 2):
        raise ModelFileError(
            f"{shown(codes.name)} has {codes.size_bytes:,} bytes, which are no {rows} x {cols} "
            "codes of 4 bits."
        )
    nested = state.get("nested_blocksize")
    if nested is None:
        check_part(values, (blocks,), "F32")
        absmax = _Absmax(values)
    else:
        offset = state.get("nested_offset")
        if type(nested) is not int or nested < 1 or type(offset) is not float:
            raise ModelFileError(f"{folder.where}: quant_state of {name} has no nested block.")
        check_part(values, (blocks,), "U8")
        parts = (folder.take(f"{name}.nested_{each}", name) for each in ("quant_map", "absmax"))
        nested_table, nested_scale = parts
        check_part(nested_table, (256,), "F32")
        check_part(nested_scale, (-(-blocks // nested),), "F32")
        absmax = _Absmax(values, nested_table, nested_scale, nested, offset)
    return BlockwiseMatrix(name, kind, (rows, cols), block, codes, table, absmax)
