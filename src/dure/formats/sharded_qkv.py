"""Projections of q, k and v in one tensor, in slices of several devices (MiMo-V2.5).

Each slice has the rows of its heads' q, then k, then v, and blocks of scales of its own. There are
as many as layers without a window have KV heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.tensors import TensorInfo, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Parameter = TensorInfo | QuantizedMatrix
    Bytes = NDArray[np.uint8]

_MODEL_TYPES = ("mimo_v2", "mimo_v2_flash")
_WHOLE = re.compile(r"(model\.(?:mtp\.)?layers\.\d+\.self_attn\.)qkv_proj\.(weight(?:_scale_inv)?)")
_SLICE = re.compile(r"(model\.(mtp\.)?layers\.(\d+)\.self_attn\.)qkv_proj\.slice\.(\d+)\.weight")


def cut_qkv(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Replace each qkv_proj by its slices, with their scales, under names of their own.

    Tensors of other families are returned as they are. Raises ModelFileError for rows that no such
    slices make.
    """
    if config.get("model_type") not in _MODEL_TYPES:
        return dict(tensors)
    found: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        match = _WHOLE.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        count = _number(config, "num_key_value_heads")
        if not tensor.shape or tensor.shape[0] % count:
            raise ModelFileError(
                f"{shown(name)} has shape {tensor.shape}, which is no {count} slices of "
                "q, k and v (num_key_value_heads)."
            )
        rows, size = tensor.shape[0] // count, tensor.size_bytes // count
        for index in range(count):
            each = f"{match[1]}qkv_proj.slice.{index}.{match[2]}"
            found[each] = replace(
                tensor,
                name=each,
                shape=(rows, *tensor.shape[1:]),
                offset=tensor.offset + index * size,
                size_bytes=size,
            )
    return found


def join_qkv(found: Mapping[str, Parameter], config: Mapping[str, Any]) -> dict[str, Parameter]:
    """Make q_proj, k_proj and v_proj of the slices that `cut_qkv` made."""
    result: dict[str, Parameter] = {}
    slices: dict[tuple[str, int | None], dict[int, Parameter]] = {}
    for name, each in found.items():
        match = _SLICE.fullmatch(name)
        if match is None:
            result[name] = each
        else:
            layer = None if match[2] else int(match[3])  # None: one that drafts, with a window
            slices.setdefault((match[1], layer), {})[int(match[4])] = each
    for (prefix, layer), parts in slices.items():
        ordered = [parts[index] for index in sorted(parts)]
        sizes = _rows(config, layer)
        if any(each.shape[0] != sum(sizes) for each in ordered):
            raise ModelFileError(
                f"{shown(prefix)}qkv_proj has slices of {ordered[0].shape[0]:,} rows, and the "
                f"config's heads make {sum(sizes):,}."
            )
        start = 0
        for part, size in zip("qkv", sizes, strict=True):
            whole = f"{prefix}{part}_proj.weight"
            result[whole] = _Gathered(whole, ordered, start, size)
            start += size
    return result


def _rows(config: Mapping[str, Any], layer: int | None) -> tuple[int, int, int]:
    """Return the rows of q, k and v in a slice of a layer."""
    pattern, kinds = config.get("hybrid_layer_pattern"), config.get("layer_types")
    if layer is None:
        near = True
    elif isinstance(pattern, list):
        near = layer < len(pattern) and pattern[layer] == 1
    elif isinstance(kinds, list):
        near = layer < len(kinds) and kinds[layer] == "sliding_attention"
    else:
        near = layer > 0 and (layer + 1) % 6 != 0
    count = _number(config, "num_key_value_heads")
    kv_heads = _number(config, "swa_num_key_value_heads", 2 * count) if near else count
    head, value = _number(config, "head_dim", 192), _number(config, "v_head_dim", 128)
    return (
        _number(config, "num_attention_heads") // count * head,
        kv_heads // count * head,
        kv_heads // count * value,
    )


def _number(config: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    value = config.get(key)
    value = usual if value is None else value
    if type(value) is not int or not 1 <= value < 1 << 24:
        raise ModelFileError(f"config.json has {key} = {str(value)[:40]}, which sizes q, k and v.")
    return value


class _Gathered(QuantizedMatrix):
    """The same rows of each slice, one slice after the other."""

    def __init__(self, name: str, slices: list[Parameter], start: int, size: int) -> None:
        first = slices[0]
        super().__init__(name, (size * len(slices), *first.shape[1:]), first.dtype)
        self.stored = first.stored
        self.size_bytes = sum(each.size_bytes * size // each.shape[0] for each in slices)
        self._slices, self._start, self._size = slices, start, size

    def read_rows(self, start: int, stop: int) -> Bytes:
        """Read rows; see `QuantizedMatrix.read_rows`."""
        found = []
        while start < stop:
            index, row = divmod(start, self._size)
            count = min(self._size - row, stop - start)
            first = self._start + row
            found.append(self._slices[index].read_rows(first, first + count))
            start += count
        return np.concatenate(found)
