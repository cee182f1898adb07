"""compressed-tensors, as llm-compressor writes it."""

from __future__ import annotations

from collections.abc import Collection
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
from dure.formats.quantized.fp8 import add_fp8
from dure.formats.quantized.grouped import GroupedMatrix
from dure.formats.quantized.mxfp4 import Mxfp4Matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized.folder import QuantizedFolder
    from dure.formats.tensors import TensorInfo

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

_EIGHT = np.arange(0, 32, 4, dtype=np.uint32)


def read_compressed_tensors(folder: QuantizedFolder) -> None:
    """Put together X.weight_packed with X.weight_scale and perhaps more of int4; FP8; MXFP4."""
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
    add_fp8(folder, next((block for block in blocks if block is not None), None))


class PackedInt4(GroupedMatrix):
    """compressed-tensors' pack-quantized: weight = scale * (code - zero), of unsigned codes, whose
    zero point is 8 if none is stored."""

    stored = "INT4"

    def __init__(
        self,
        name: str,
        codes: TensorInfo,
        scales: TensorInfo,
        shape: TensorInfo,
        zeros: TensorInfo | None,
        indices: TensorInfo | None,
        sizes: Collection[Any],
    ) -> None:
        """shape: of the matrix, two numbers in a tensor; sizes: of groups, as the config knows."""
        rows, cols = _shape_in(shape)
        check_part(codes, (rows, -(-cols // 8)), "I32")
        groups = matrix_shape(scales)[1]
        group = next((g for g in sizes if _groups_of(g, cols) == groups), None)
        if group is None:
            raise ModelFileError(
                f"{scales.name} has {groups} scales for rows of {cols} columns, which are no "
                f"groups of {' or '.join(map(str, sizes)) or 'any size'}, as config.json says."
            )
        super().__init__(name, (rows, cols), group, codes, scales, shape, zeros, indices)
        self._code, self._scale, self._zero, self._index = codes, scales, zeros, indices
        check_part(scales, (rows, self.groups), *FLOAT_TYPES)
        if zeros is not None:
            check_part(zeros, (-(-rows // 8), self.groups), "I32")
        if indices is not None:
            check_part(indices, (cols,), "I32")

    @cached_property
    def columns(self) -> NDArray[np.int32] | None:
        return self._sorted(self._index)

    def _codes(self, start: int, stop: int) -> Bytes:
        return read_part_rows(self._code, start, stop)

    def _scales(self, start: int, stop: int) -> tuple[Array, Bytes]:
        scales = as_floats(read_part_rows(self._scale, start, stop), self._scale.dtype)
        if self._zero is None:
            return scales, np.full(scales.shape, 8, np.uint8)
        zeros = (
            read_array(self._zero, "<u4")[:, None] >> _EIGHT[:, None] & 15
        )  # packed along the rows
        return scales, zeros.reshape(-1, self.groups)[start:stop].astype(np.uint8)


def _groups_of(size: object, cols: int) -> int | None:
    """How many groups of that size a row has; None if it is none."""
    if type(size) is not int or size == 0 or size < -1:
        return None
    return 1 if size == -1 else -(-cols // size)


def _shape_in(tensor: TensorInfo) -> tuple[int, int]:
    """The two sizes that a tensor holds."""
    check_part(tensor, (2,), "I64", "I32")
    rows, cols = read_array(tensor, "<i8" if tensor.dtype == "I64" else "<i4").tolist()
    if rows < 1 or cols < 1:
        raise ModelFileError(f"{tensor.name} says {rows} rows and {cols} columns.")
    return rows, cols
