"""What a checkpoint's weights take in memory, before any of them is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dure import kernels
from dure.formats.blocks import BLOCKS
from dure.formats.quantized.grouped import with_one_type
from dure.formats.quantized_checkpoint import parameters_or_tensors
from dure.formats.tensors import TensorInfo
from dure.weights.names import canonical_name
from dure.weights.quantize import DtypePolicy, scheme_of
from dure.weights.repack import Dequantised

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.formats.quantized_checkpoint import Parameter
    from dure.weights.quantize import Scheme

    Stored = Parameter | Dequantised

# One of a mixture's matrices, where each expert has its own.
_EXPERT = re.compile(r"(.+\.experts\.)\d+\.((?:gate|up|down)_proj\.weight)")


@dataclass(frozen=True)
class WeightBytes:
    """What a checkpoint's weights take in memory once packed."""

    total: int
    experts: int  # of them, those of mixtures


def memory_needed(
    checkpoint: Checkpoint,
    *,
    exact: bool = False,
    quantize: Scheme | None = None,
    tensor_aliases: Mapping[str, str] | None = None,
) -> WeightBytes:
    """Return the bytes that the checkpoint's weights take in memory once packed, as `Weights` does.

    What loading plans with and what `dure show` says are both this.
    """
    is_gguf = checkpoint.kind == "gguf"
    tensors = {
        canonical_name(name, is_gguf, tensor_aliases or {}): tensor
        for name, tensor in parameters_or_tensors(checkpoint).items()
    }
    types = DtypePolicy(tensors, scheme_of(checkpoint, quantize), exact=exact)
    total = experts = 0
    for name, tensor in _in_memory(tensors):
        *stack, rows, cols = tensor.shape if len(tensor.shape) > 1 else (0, 0)
        if rows == 0 or 0 in tensor.shape or not BLOCKS[tensor.dtype].supported:
            size = tensor.size_bytes
        else:
            dtype = types.of(name, cast("Parameter", tensor))
            size = math.prod(stack) * kernels.packed_bytes(dtype, rows, cols)
        total += size
        experts += size if ".experts." in name else 0
    return WeightBytes(total, experts)


def _in_memory(tensors: Mapping[str, Parameter]) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors by name, but the experts of a mixture in one type."""
    experts: dict[str, list[Parameter]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            yield name, tensor
        else:
            experts.setdefault(match[1] + match[2], []).append(tensor)
    for name, each in experts.items():
        for stored in of_one_type(each):
            yield name, stored


def of_one_type(experts: Sequence[Parameter]) -> Sequence[Stored]:
    """Return the experts of a mixture as they are in memory: all in one type, if need be floats.

    Tensors that a file has in types of its own stay as they are.
    """
    if len({each.dtype for each in experts}) == 1:
        return experts
    if all(isinstance(each, TensorInfo) for each in experts):
        return experts
    return with_one_type(experts) or [Dequantised(each) for each in experts]
