"""Plans the tensors of a GGUF file from the rows of a folder's, in llama.cpp's order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.convert.encode import encoded, requantised
from dure.errors import UnsupportedModelError
from dure.formats.blocks import BLOCKS
from dure.formats.gguf_writer import TensorPlan
from dure.formats.quantized.base import QuantizedMatrix, is_quantized
from dure.formats.quantized_checkpoint import is_idle_bias, parameters
from dure.formats.tensors import TensorInfo, same_content
from dure.kernels.dequantize import dequantize
from dure.weights.names import gguf_name, plain_name
from dure.weights.repack import Dequantised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.convert.encode import Target
    from dure.formats.checkpoint import Checkpoint

    Source = TensorInfo | QuantizedMatrix | Dequantised
    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

_CHUNK_WEIGHTS = 1 << 21  # read, converted and written at once

KEPT = ("MXFP4",)
"""Types that folders and GGUF files share, block by block."""

_LAYER = re.compile(r"model\.layers\.(\d+)\..+")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.((?:gate|up|down)_proj)\.weight")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


def otherwise(what: str) -> UnsupportedModelError:
    """Make the error for what llama.cpp would compute differently, or not load."""
    return UnsupportedModelError(what, hint="run the folder as it is.")


@dataclass(frozen=True)
class Layout:
    """How a family's GGUF files differ from its folders, beyond what all families do."""

    pairs: bool = False
    """Whether neighbours (2i, 2i + 1) rotate together, so that rows of q and k are reordered."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """The usual name of a kind of tensor -> the name in this architecture."""
    drafts: str | None = None
    """The prefix of a layer that only drafts, which is left out."""
    fused: bool = False
    """Whether gate and up of a layer's experts are one tensor, gate's rows before up's."""
    tiled: bool = False
    """Whether value heads change places: the first of each key head, then the second of each."""
    whole: bool = False
    """Whether latent attention's matrix of keys and values stays one."""


@dataclass(frozen=True)
class Rows:
    """A range of rows of a folder's tensor, counted over all leading dimensions."""

    tensor: Source
    start: int
    stop: int
    turned: bool = False  # the columns are the GGUF's rows
    change: Callable[[Floats], Floats] | None = None  # of values that the GGUF has in float32
    columns: NDArray[np.int32] | None = None  # in their order in the GGUF


@dataclass
class Tensor:
    """A tensor of the GGUF and the rows that make it."""

    shape: tuple[int, ...]
    rows: list[Rows]
    heads: int = 0  # whose rows change places; 0: none


def gguf_tensors(
    checkpoint: Checkpoint,
    sizes: Any,
    layout: Layout,
    tensor_aliases: Mapping[str, str],
    *,
    keep: bool,
) -> dict[str, Tensor]:
    """Plan the tensors of the GGUF, by name and in the order in which a model reads them.

    sizes: the family's config. keep: whether quantised types that GGUF has stay. Raises
    UnsupportedModelError for a tensor without a GGUF name.
    """
    moving = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads} if layout.pairs else {}
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    stored = parameters(checkpoint)
    head, embedding = (stored.get(n) for n in ("lm_head.weight", "model.embed_tokens.weight"))
    repeated = sizes.tied and same_content(head, embedding)
    for theirs, tensor in sorted(stored.items(), key=_natural):
        name = plain_name(theirs, tensor_aliases)
        if name is None or (repeated and tensor is head):
            continue
        if _only_drafts(name, sizes.layers, layout) or is_idle_bias(theirs, stored):
            continue
        kept = not is_quantized(tensor) or (keep and tensor.dtype in KEPT)
        source = tensor if kept else Dequantised(tensor)
        for part, shape, rows in _parts(name, source, sizes, layout):
            written = _written(part, layout, tensor_aliases)
            if written is None:
                raise UnsupportedModelError(
                    f"{checkpoint.path} has the tensor {theirs}, which GGUF has no name for."
                )
            counts[written] = counts.get(written, 0) + 1
            if written in found:  # the next expert of a stack
                found[written].rows.extend(rows)
            else:
                heads = moving.get(written.split(".")[-2], 0)
                found[written] = Tensor(shape, rows, heads)
    for written, each in found.items():
        if ".ffn_gate_up_exps." in written:
            height, width = each.shape
            each.shape = (counts[written] // 2, 2 * height, width)
        elif counts[written] > 1:
            each.shape = (counts[written], *each.shape)
    return found


def tensor_plan(tensor: Tensor, target: Target) -> TensorPlan:
    """Plan how the writer gets a tensor as the target's type, a few rows at a time."""

    def pieces() -> Iterator[Bytes]:
        first = 0  # row of the whole tensor
        for rows in tensor.rows:
            if rows.turned:
                yield _turned(rows, first, target)
                first += rows.tensor.shape[-1]
            else:
                yield from _converted(rows, first, tensor.heads, target)
                first += rows.stop - rows.start

    return TensorPlan(target.name, target.dtype, tensor.shape, pieces)


def _only_drafts(name: str, layers: int, layout: Layout) -> bool:
    """Check whether a tensor is of a multi-token prediction layer, which we leave out."""
    if layout.drafts is not None and name.startswith(layout.drafts):
        return True
    match = _LAYER.fullmatch(name)
    return match is not None and int(match[1]) >= layers


def _written(name: str, layout: Layout, tensor_aliases: Mapping[str, str]) -> str | None:
    """Translate a name to the GGUF's; None if GGUF has none."""
    written = gguf_name(name, tensor_aliases)
    if written is None or not layout.kinds:
        return written
    return ".".join(layout.kinds.get(part, part) for part in written.split("."))


def _parts(
    name: str, tensor: Source, sizes: Any, layout: Layout
) -> Iterator[tuple[str, tuple[int, ...], list[Rows]]]:
    """Cut one tensor of the folder into parts of GGUF tensors: names, shapes, rows.

    Parts of one name make a stack: the experts of a layer, stored one by one or fused.
    """
    if name.endswith(".kv_b_proj.weight") and not layout.whole:
        yield from _latent_parts(name, tensor, sizes)
        return
    if name.endswith(".in_proj_qkvz.weight"):
        yield from _recurrent_parts(name, tensor, sizes)
        return
    if name.endswith(".self_attn.g_proj.weight") and not sizes.recurrent[int(name.split(".")[2])]:
        name = name.replace(".self_attn.g_proj.", ".linear_attn.in_proj_z.")  # GGUF's attn_gate
    if layout.tiled and ".linear_attn." in name and not name.endswith(".norm.weight"):
        rows = tiled_rows(name, tensor, sizes)
        yield name.replace(".A_log", ".A"), _shape(name, tensor), rows
        return
    fused = _FUSED.fullmatch(name)
    if fused is None or len(tensor.shape) != 3:
        match = _EXPERT.fullmatch(name)
        stack = name if match is None else _stack(match[1], match[3], layout)
        all_rows = Rows(tensor, 0, tensor.num_rows, change=_change(name, sizes))
        yield stack.replace(".A_log", ".A"), _shape(name, tensor), [all_rows]
        return
    count, height, cols = tensor.shape
    halves = ("gate_proj", "up_proj") if fused[2] == "gate_up_proj" else ("down_proj",)
    each = height // len(halves)
    for expert in range(count):
        for index, half in enumerate(halves):
            first = expert * height + index * each
            part = [Rows(tensor, first, first + each)]
            yield _stack(fused[1], half, layout), (each, cols), part


def _stack(prefix: str, part: str, layout: Layout) -> str:
    """Return the name of the tensor that has this part of all experts of a layer."""
    if layout.fused and part != "down_proj":
        part = "gate_up_proj"  # whose parts come expert by expert, gate before up
    return f"{prefix}.{part}.weight"


def _latent_parts(
    name: str, tensor: Source, sizes: Any
) -> Iterator[tuple[str, tuple[int, ...], list[Rows]]]:
    """Cut kv_b_proj into one matrix a head for keys, transposed, and one for values."""
    for head in range(sizes.heads):
        first = head * (sizes.plain + sizes.value)
        keys = Rows(tensor, first, first + sizes.plain, turned=True)
        values = Rows(tensor, keys.stop, keys.stop + sizes.value)
        yield name.replace("kv_b", "k_b"), (sizes.latent, sizes.plain), [keys]
        yield name.replace("kv_b", "v_b"), (sizes.value, sizes.latent), [values]


def _recurrent_parts(
    name: str, tensor: Source, sizes: Any
) -> Iterator[tuple[str, tuple[int, ...], list[Rows]]]:
    """Cut in_proj_qkvz, which is grouped by key head, into one matrix of q, k, v and one of z."""
    heads, key = sizes.key_heads, sizes.key_dim
    value = sizes.value_heads // heads * sizes.value_dim
    height = 2 * (key + value)

    def part(start: int, size: int) -> list[Rows]:
        firsts = (head * height + start for head in range(heads))
        return [Rows(tensor, first, first + size) for first in firsts]

    qkv = [*part(0, key), *part(key, key), *part(2 * key, value)]
    cols = tensor.shape[1]
    yield name.replace("qkvz", "qkv"), (heads * (2 * key + value), cols), qkv
    yield name.replace("qkvz", "z"), (heads * value, cols), part(2 * key + value, value)


def tiled_rows(name: str, tensor: Source, sizes: Any) -> list[Rows]:
    """List a Gated DeltaNet tensor's rows with its value heads in llama.cpp's order.

    That is the first value head of each key head, then the second of each: ggml repeats key heads
    so. The output's columns change places, and of the others what has a row a value head.
    """
    kind = name.partition(".linear_attn.")[2].removesuffix(".weight")
    heads = np.arange(sizes.value_heads, dtype=np.int32).reshape(sizes.key_heads, -1).T.ravel()
    width = sizes.value_dim
    whole = Rows(tensor, 0, tensor.num_rows)
    if kind == "out_proj":
        columns = width * heads[:, None] + np.arange(width, dtype=np.int32)
        return [replace(whole, columns=columns.ravel())]
    if len(tensor.shape) == 1:
        return [replace(whole, columns=heads, change=_change(name, sizes))]
    first = tensor.num_rows - sizes.value_heads * width
    if kind in ("in_proj_a", "in_proj_b"):
        first, width = 0, 1
    starts = (first + width * head for head in heads.tolist())
    values = [Rows(tensor, start, start + width) for start in starts]
    return [Rows(tensor, 0, first), *values] if first else values


def _shape(name: str, tensor: Source) -> tuple[int, ...]:
    """Drop the dimension of 1 that only folders have."""
    if name.endswith((".conv1d.weight", ".conv.conv.weight")):  # (channels, 1, tokens)
        return tensor.shape[0], tensor.shape[-1]
    if name.endswith("_conv1d.weight"):  # of Kimi Delta Attention, which llama.cpp wants so
        return tensor.shape[0], 1, tensor.shape[-1]
    if name.endswith(".self_attn.A_log"):
        return math.prod(tensor.shape), 1
    if name.endswith("bias") and tensor.shape[0] == 1:  # ERNIE's of its experts is (1, experts)
        return tensor.shape[-1:]
    return tensor.shape


def _change(name: str, sizes: Any) -> Callable[[Floats], Floats] | None:
    """Choose the change of values: norms that folders store less 1, decays stored as logarithms."""
    if name.endswith(".A_log"):
        # Ling-3.0's files have the amounts of what other families' have below 0.
        sign = 1.0 if hasattr(sizes, "bound") else -1.0
        return lambda log: (sign * np.exp(log.astype(np.float64))).astype(np.float32)
    offset = np.float32(getattr(sizes, "norm_offset", 0.0))
    if offset and name.endswith("norm.weight") and not name.endswith(".linear_attn.norm.weight"):
        return lambda norm: norm + offset
    return None


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sort key by which layer 10 comes after layer 9."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", item[0])]


def _converted(rows: Rows, first: int, heads: int, target: Target) -> Iterator[Bytes]:
    """Convert rows, of the whole tensor from `first` on, to another type, a few at a time."""
    source = rows.tensor
    is_vector = len(source.shape) == 1  # which lies in its file as one row
    height = source.shape[0] if is_vector else rows.stop - rows.start
    head_dim = height // heads if heads else 1  # a head's rows are moved together
    chunk = head_dim * max(1, _CHUNK_WEIGHTS // (head_dim * source.shape[-1]))
    for start in range(rows.start, rows.stop, chunk):
        raw = source.read_rows(start, min(rows.stop, start + chunk))
        if rows.columns is not None:
            raw = _reordered(raw, source.dtype, rows.columns)
        if heads:
            each = BLOCKS[source.dtype].block_bytes if is_vector else source.row_bytes
            raw = _interleaved(raw.reshape(-1, each), head_dim).reshape(raw.shape)
        at = first + start - rows.start
        if rows.change is not None:
            raw = encoded(rows.change(dequantize(source.dtype, raw)), at, target)
        else:
            raw = requantised(raw, source.dtype, at, target)
        yield raw.reshape(-1)


def _reordered(raw: Bytes, dtype: str, columns: NDArray[np.int32]) -> Bytes:
    """Return rows of floats (n, row bytes) with their columns in another order."""
    numbers = raw.view(np.uint32 if dtype == "F32" else np.uint16)
    return np.take(numbers, columns, axis=1).view(np.uint8)


def _turned(rows: Rows, first: int, target: Target) -> Bytes:
    """Convert the transpose of some rows, of the whole tensor from `first` on, to another type."""
    source = rows.tensor
    raw = source.read_rows(rows.start, rows.stop)
    numbers = raw.view(np.uint32 if source.dtype == "F32" else np.uint16)
    turned = np.ascontiguousarray(numbers.T).view(np.uint8)
    return requantised(turned, source.dtype, first, target).reshape(-1)


def _interleaved(lines: Bytes, head_dim: int) -> Bytes:
    """Interleave the two halves of each head's rows, as llama.cpp rotates neighbours."""
    halves = lines.reshape(-1, 2, head_dim // 2, lines.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(lines.shape)
