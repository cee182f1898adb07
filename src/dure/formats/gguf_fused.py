"""GGUFs whose attention layers have q, k and v in one tensor: cut into three, without a copy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dure.errors import ModelFileError
from dure.formats.tensors import TensorInfo, shown

_FUSED = re.compile(r"blk\.(\d+)\.attn_qkv\.(weight|bias)")
_RECURRENT = re.compile(r"blk\.(\d+)\.ssm_")
_KIMI = re.compile(r"blk\.(\d+)\.ssm_conv1d_q\.")
_GATED = ("qwen3next", "qwen35", "qwen35moe")
"""Architectures whose q has as many rows of gates again."""


def split_fused(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    """Cut each blk.N.attn_qkv into attn_q, attn_k and attn_v: its rows, in this order.

    Layers with ssm tensors are recurrent, and keep theirs, but for those of Kimi Delta Attention:
    these have three of one height. Raises ModelFileError for a tensor whose rows are not those that
    the file's heads make.
    """
    thirds = {match[1] for name in tensors if (match := _KIMI.match(name))}
    recurrent = {match[1] for name in tensors if (match := _RECURRENT.match(name))} - thirds
    found: dict[str, TensorInfo] = {}
    for name, tensor in tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None or match[1] in recurrent:
            found[name] = tensor
            continue
        rows = tensor.shape[0] if tensor.shape else 0
        sizes = _sizes(metadata, int(match[1]))
        if match[1] in thirds:
            sizes = (rows // 3,) * 3
        if sum(sizes) != rows:
            raise ModelFileError(
                f"{shown(name)} has {rows:,} rows, and the file's heads make {sum(sizes):,}.",
                hint="the file may be of a newer variant of the family.",
            )
        start = 0
        for part, count in zip("qkv", sizes, strict=True):
            each = tensor.size_bytes // rows
            whole = f"blk.{match[1]}.attn_{part}.{match[2]}"
            found[whole] = replace(
                tensor,
                name=whole,
                shape=(count, *tensor.shape[1:]),
                offset=tensor.offset + start * each,
                size_bytes=count * each,
            )
            start += count
    return found


def _sizes(metadata: Mapping[str, Any], layer: int) -> tuple[int, int, int]:
    """Return the rows of q, k and v of a layer; zeros if the file does not give them."""
    prefix = str(metadata.get("general.architecture"))

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{prefix}.{key}", default)
        if hasattr(value, "__len__") and not isinstance(value, str):
            value = value[layer] if layer < len(value) else default
        try:
            whole: int = math.floor(value)
            return max(0, whole)
        except (TypeError, ValueError, OverflowError):
            return 0

    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    usual = number("embedding_length", 0) // heads if heads else 0
    key = number("attention.key_length", usual)
    value = number("attention.value_length", key)
    if number("attention.sliding_window_pattern", 0):  # Gemma 4 has other heads in these layers
        key = number("attention.key_length_swa", key)
        value = number("attention.value_length_swa", value)
    queries = 2 * heads if prefix in _GATED else heads
    return queries * key, kv_heads * key, kv_heads * value
