"""Floats become rows of a GGUF tensor's type, with the importance of its columns where known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.errors import ModelFileError
from dure.kernels.dequantize import FLOAT_TYPES, dequantize
from dure.weights.quantize import quantize_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dure.formats.imatrix import ImportanceMatrix

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_LEAST = 1e-3
"""What a column counts at least, in shares of the mean: other texts may use what these did not."""

_FUSED: Mapping[str, Sequence[str]] = {
    # A tensor that holds several matrices of the same inputs -> what an importance may be under.
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
    "ffn_gate_exps": ("ffn_gate_up_exps",),
    "ffn_up_exps": ("ffn_gate_up_exps",),
    "ffn_up": ("ffn_gate",),
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "attn_q": ("attn_qkv",),
    "attn_k": ("attn_qkv",),
    "attn_v": ("attn_qkv",),
}


@dataclass(frozen=True)
class Target:
    """What a tensor becomes: its type, and how to compute it."""

    name: str
    dtype: str
    height: int  # the rows of one matrix of a stack
    threads: int
    importance: Floats | None = None  # (matrices or 1, cols), 1 on average over a row


def importance_of(
    matrix: ImportanceMatrix | None, name: str, shape: tuple[int, ...]
) -> Floats | None:
    """Return what errors in the columns of a tensor count, (matrices or 1, cols); None if unknown.

    Raises ModelFileError for an importance of other columns or another number of matrices.
    """
    if matrix is None:
        return None
    prefix, _, kind = name.removesuffix(".weight").rpartition(".")
    names = [name, *(f"{prefix}.{other}.weight" for other in _FUSED.get(kind, ()))]
    entry = next((matrix.entries[each] for each in names if each in matrix.entries), None)
    if entry is None:
        return None
    means, cols = entry.means(), shape[-1]
    stack = int(np.prod(shape[:-2], dtype=np.int64))
    if means.size not in (cols, stack * cols):
        raise ModelFileError(
            f"The importance matrix has {means.size:,} values for {name}, which has {stack:,} "
            f"matrices of {cols:,} columns.",
            hint="give the importance matrix of this model.",
        )
    means = means.reshape(-1, cols)
    average = means.mean(axis=1, keepdims=True, dtype=np.float64)
    shares = np.divide(means, average, out=np.ones_like(means), where=average > 0)
    floored: Floats = np.maximum(shares, np.float32(_LEAST))
    return floored


def encoded(values: Floats, first_row: int, target: Target) -> Bytes:
    """Encode values (n, cols), rows of the whole tensor from `first_row` on: (n, row bytes).

    Raises ModelFileError, which names the tensor, for weights that its type cannot hold.
    """
    if target.dtype in FLOAT_TYPES:
        return _as_floats(values, target)
    values = np.ascontiguousarray(values)
    several = target.importance is not None and len(target.importance) > 1
    parts: list[Bytes] = []
    start = 0
    while start < len(values):
        which = (first_row + start) // target.height
        stop = min(len(values), (which + 1) * target.height - first_row) if several else len(values)
        weights = None
        if target.importance is not None:
            weights = np.ascontiguousarray(target.importance[which if several else 0])
        try:
            parts.append(
                quantize_rows(
                    values[start:stop], target.dtype, importance=weights, threads=target.threads
                )
            )
        except ModelFileError as error:
            raise ModelFileError(f"{target.name}: {error.message}") from None
        start = stop
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_floats(values: Floats, target: Target) -> Bytes:
    """Encode to a type of floats; only from float32 to itself, which needs no rounding."""
    if target.dtype != "F32":
        raise ModelFileError(f"{target.name} cannot become {target.dtype}.")
    return np.ascontiguousarray(values).view(np.uint8)


def requantised(raw: Bytes, dtype: str, first_row: int, target: Target) -> Bytes:
    """Encode rows of a file, uint8 (n, row bytes) of `dtype`, in the target's type."""
    if dtype == target.dtype:
        return raw
    return encoded(dequantize(dtype, raw), first_row, target)
