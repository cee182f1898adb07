"""Writes a GGUF file anew with its matrices in other types; everything else stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import machine
from dure.convert.checked import Converted, Progress, converted, write_checked
from dure.convert.copies import PIECE_BYTES, gguf_metadata
from dure.convert.encode import Target, importance_of, requantised
from dure.convert.recipes import Types
from dure.errors import InvalidRequestError, UnsupportedModelError
from dure.formats.blocks import BLOCKS, FLOATS
from dure.formats.checkpoint import open_checkpoint
from dure.formats.gguf_writer import TensorPlan, check_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.convert.recipes import Recipe
    from dure.formats.checkpoint import Checkpoint
    from dure.formats.imatrix import ImportanceMatrix
    from dure.formats.tensors import TensorInfo

    Bytes = NDArray[np.uint8]

_WEIGHTS_AT_ONCE = 1 << 21
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Requantised:
    """What `requantize` wrote, and what to know of it."""

    written: Converted
    again: int  # tensors that were quantised already, and are so anew
    weighed: int  # tensors whose columns' importance was known


def requantize(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    importance: ImportanceMatrix | None = None,
    threads: int | None = None,
    force: bool = False,
    tell_size: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> Requantised:
    """Write the GGUF file at `source` as `out`, its matrices in the types of `recipe`.

    A matrix whose type has no more bits than the one that it would get keeps it. importance: of the
    matrices' columns. The rest is as of `write_checked`. Raises UnsupportedModelError for a source
    that is no whole GGUF file, and InvalidRequestError where nothing would change.
    """
    check_target(out, force=force)
    checkpoint = open_checkpoint(source)
    if checkpoint.kind != "gguf" or checkpoint.experts is not None:
        raise UnsupportedModelError(f"{source} is not a GGUF file.")
    workers = machine.usable_threads() if threads is None else threads
    types = Types(recipe, checkpoint.tensors)
    plans: list[TensorPlan] = []
    again = weighed = 0
    for name, tensor in checkpoint.tensors.items():
        dtype = _type(tensor, types)
        weights = None
        if dtype != tensor.dtype:
            again += tensor.dtype not in FLOATS
            weights = importance_of(importance, name, tensor.shape)
            weighed += weights is not None
        height = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        target = Target(name, dtype, height, workers, weights)
        plans.append(TensorPlan(name, dtype, tensor.shape, partial(_pieces, tensor, target)))
    if all(plan.dtype == checkpoint.tensors[plan.name].dtype for plan in plans):
        raise InvalidRequestError(
            f"{source} has no matrix that {recipe.name} would make smaller.",
            hint="it is quantised to as few bits already.",
        )
    if importance is not None and not weighed:
        raise InvalidRequestError(
            "The importance matrix knows none of the matrices that are quantised.",
            hint="give the importance matrix of this model.",
        )
    size = write_checked(
        out,
        _metadata(checkpoint, recipe, plans, importance),
        plans,
        force=force,
        tell_size=tell_size,
        progress=progress,
        checking=checking,
    )
    architecture = str(checkpoint.metadata.get("general.architecture", ""))
    return Requantised(converted(out, size, architecture, plans), again, weighed)


def _type(tensor: TensorInfo, types: Types) -> str:
    """Choose a tensor's type; its own, if that has as few bits."""
    cols = tensor.shape[-1] if tensor.shape else 1
    wanted = types.of(tensor.name, len(tensor.shape), cols)
    if wanted is None or not BLOCKS[tensor.dtype].supported:
        return tensor.dtype
    return wanted if _bits(wanted) < _bits(tensor.dtype) else tensor.dtype


def _bits(dtype: str) -> float:
    block = BLOCKS[dtype]
    return 8 * block.block_bytes / block.block_size


def _pieces(tensor: TensorInfo, target: Target) -> Iterator[Bytes]:
    """Read and convert a tensor, a few rows at a time."""
    if target.dtype == tensor.dtype:
        for start in range(0, tensor.size_bytes, PIECE_BYTES):
            size = min(PIECE_BYTES, tensor.size_bytes - start)
            yield tensor.source.read(tensor.offset + start, size)
        return
    step = max(1, _WEIGHTS_AT_ONCE // tensor.shape[-1])
    for start in range(0, tensor.num_rows, step):
        raw = tensor.read_rows(start, min(tensor.num_rows, start + step))
        yield requantised(raw, tensor.dtype, start, target).reshape(-1)


def _metadata(
    checkpoint: Checkpoint,
    recipe: Recipe,
    plans: list[TensorPlan],
    importance: ImportanceMatrix | None,
) -> dict[str, Any]:
    """Return the source's metadata, with what has changed."""
    found = {
        key: value
        for key, value in gguf_metadata(checkpoint).items()
        if not key.startswith("quantize.imatrix.")
    }
    found["general.file_type"] = file_type(recipe, plans)
    found["general.quantization_version"] = _QUANTIZATION_VERSION
    return found | imatrix_metadata(importance)


def imatrix_metadata(importance: ImportanceMatrix | None) -> dict[str, Any]:
    """Return llama.cpp's keys of the importance matrix that a file was made with."""
    if importance is None:
        return {}
    found: dict[str, Any] = {
        "quantize.imatrix.entries_count": len(importance.entries),
        "quantize.imatrix.chunks_count": importance.chunks,
    }
    if importance.datasets:
        found["quantize.imatrix.dataset"] = ", ".join(importance.datasets)
    return found


_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25},
    **{"IQ4_XS": 30, "BF16": 32, "MXFP4": 38},
}


def file_type(recipe: Recipe | None, plans: list[TensorPlan]) -> int:
    """Return general.file_type: the recipe's, or that of the type of most weights."""
    if recipe is not None and recipe.file_type is not None:
        return recipe.file_type
    weights: Counter[str] = Counter()
    for plan in plans:
        weights[plan.dtype] += int(np.prod(plan.shape, dtype=np.int64))
    named = {dtype: count for dtype, count in weights.items() if dtype in _FILE_TYPES}
    return _FILE_TYPES[max(named, key=lambda dtype: named[dtype], default="F32")]
