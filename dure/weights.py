"""Names in files -> a model's parameters: found, checked against the shape wanted, and packed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure import kernels
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import BLOCKS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint
    from dure.formats.source import SourceFile
    from dure.formats.tensors import TensorInfo

# What GGUF calls the parameters of a decoder, in config.json's language; {} is the layer.
GGUF_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "blk.{}.ffn_gate_inp": "model.layers.{}.mlp.gate",
    "blk.{}.ffn_gate_exps": "model.layers.{}.mlp.experts.gate_proj",
    "blk.{}.ffn_up_exps": "model.layers.{}.mlp.experts.up_proj",
    "blk.{}.ffn_down_exps": "model.layers.{}.mlp.experts.down_proj",
}

# Tables that old checkpoints carry and every model computes for itself.
_RECOMPUTED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")

# How often packing tells `progress` how far it is, and hears Ctrl-C.
_REPORT_SECONDS = 0.25

Part = Literal["gate", "up", "down"]
if TYPE_CHECKING:
    Reader = Callable[
        [int], tuple[TensorInfo, int]
    ]  # expert -> its tensor, and its first row there
    Finder = Callable[[str, Part, int, tuple[int, int]], Reader]


class Weights:
    """The parameters of one checkpoint. Vectors are read at once; matrices and experts are what
    they say only after `finish`, which packs all of them in the order in which they lie on disk."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        names: Mapping[str, str] = GGUF_NAMES,
        threads: int = 1,
        exact: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.threads = threads
        self.exact = exact
        self.is_gguf = checkpoint.kind == "gguf"
        self._path = checkpoint.path
        self._tensors = (
            {_renamed(name, names): t for name, t in checkpoint.tensors.items()}
            if self.is_gguf
            else dict(checkpoint.tensors)
        )
        self._unused = set(self._tensors)
        self._progress = progress
        self._total_bytes = sum(t.size_bytes for t in self._tensors.values())
        self._done_bytes = 0
        self._packers: dict[SourceFile, kernels.FilePacker] = {}

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of that name."""
        return name in self._tensors

    def skip(self, name: str) -> None:
        """Leaves a tensor unread that the model knows and does not need."""
        if name in self._unused:
            self._unused.discard(name)
            self._advance(self._tensors[name].size_bytes)

    def vector(self, name: str, size: int, *, as_row: bool = False) -> NDArray[np.float32]:
        """The float tensor `name` of `size` entries as float32 (size,); as_row: (1, size) will
        do, too."""
        row = as_row and name in self._tensors and self._tensors[name].shape == (1, size)
        tensor = self._take(name, (1, size) if row else (size,))
        values = kernels.Matrix(tensor.dtype, 1, size) if _is_float(tensor) else None
        if values is None:
            raise UnsupportedModelError(
                f"{self._path}: {name} is stored as {tensor.dtype}; vectors must be floats."
            )
        values.fill(0, tensor.read())
        self._advance(tensor.size_bytes)
        entries: NDArray[np.float32] = values.row_values(np.zeros(1, np.int32))[0]
        return entries

    def matrix(self, name: str, rows: int, cols: int) -> kernels.Matrix:
        """The tensor `name`, (rows, cols), packed for the kernels by `finish`."""
        tensor = self._take(name, (rows, cols))
        matrix = kernels.Matrix(self._runnable(tensor), rows, cols)
        self._packer(tensor).add(matrix, tensor.offset)
        return matrix

    def gated_mlp(self, name: str, hidden: int, intermediate: int) -> kernels.Experts:
        """The gate, up and down matrices under `name`: one expert, to which every row goes."""
        return self._records(name, 1, hidden, intermediate, self._dense_rows)

    def experts(self, prefix: str, count: int, hidden: int, intermediate: int) -> kernels.Experts:
        """The experts under `prefix`, stacked (GGUF, fused) or one tensor each (hub style)."""
        return self._records(prefix, count, hidden, intermediate, self._expert_rows)

    def _records(
        self, prefix: str, count: int, hidden: int, intermediate: int, rows_of: Finder
    ) -> kernels.Experts:
        shapes: dict[Part, tuple[int, int]] = {
            "gate": (intermediate, hidden),
            "up": (intermediate, hidden),
            "down": (hidden, intermediate),
        }
        readers = {part: rows_of(prefix, part, count, shapes[part]) for part in shapes}
        experts = kernels.Experts(
            count,
            hidden,
            intermediate,
            *(self._runnable(reader(0)[0]) for reader in readers.values()),
        )
        for part, reader in readers.items():
            for expert in range(count):
                tensor, first_row = reader(expert)
                offset = tensor.offset + first_row * tensor.row_bytes
                self._packer(tensor).add_part(experts, part, expert, offset)
        return experts

    def _packer(self, tensor: TensorInfo) -> kernels.FilePacker:
        """What packs the tensors of that tensor's file."""
        return self._packers.setdefault(tensor.source, kernels.FilePacker())

    def _dense_rows(self, prefix: str, part: Part, _count: int, shape: tuple[int, int]) -> Reader:
        """A dense MLP's matrix: all of one tensor."""
        tensor = self._take(f"{prefix}.{part}_proj.weight", shape)
        return lambda _expert: (tensor, 0)

    def finish(self) -> None:
        """Packs what was asked for. Raises UnsupportedModelError before if tensors remain that the
        model did not ask for, ModelFileError if a file cannot be read or changes meanwhile."""
        left = sorted(n for n in self._unused if not _RECOMPUTED.fullmatch(n))
        if left:
            some = ", ".join(left[:4]) + (", …" if len(left) > 4 else "")
            raise UnsupportedModelError(
                f"{self._path} has {len(left)} tensors that this architecture does not have "
                f"({some}), so running it would give wrong answers.",
                hint="the file may be of a newer variant of the family.",
            )
        for source, packer in self._packers.items():
            with source.reading() as descriptor:
                packer.run(
                    descriptor,
                    threads=self.threads,
                    seconds=_REPORT_SECONDS,
                    report=partial(self._advance_from, self._done_bytes),
                )
        self._packers.clear()

    def _expert_rows(self, prefix: str, part: Part, count: int, shape: tuple[int, int]) -> Reader:
        """A function from expert to the tensor that holds its rows and the first of them."""
        rows, cols = shape
        stacked = f"{prefix}.{part}_proj.weight"
        if self.has(stacked):  # GGUF: (experts, rows, cols)
            tensor = self._take(stacked, (count, rows, cols))
            return lambda expert: (tensor, expert * rows)
        if self.has(f"{prefix}.gate_up_proj"):  # fused: gate's rows, then up's
            if part == "down":
                down = self._take(f"{prefix}.down_proj", (count, rows, cols))
                return lambda expert: (down, expert * rows)
            both = self._take(f"{prefix}.gate_up_proj", (count, 2 * rows, cols))
            offset = rows if part == "up" else 0
            return lambda expert: (both, expert * 2 * rows + offset)
        each = [
            self._take(f"{prefix}.{expert}.{part}_proj.weight", shape) for expert in range(count)
        ]
        if len({t.dtype for t in each}) > 1:
            raise UnsupportedModelError(f"{self._path}: the experts under {prefix} differ in type.")
        return lambda expert: (each[expert], 0)

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFileError(
                f"{self._path} has no tensor {name}.",
                hint="the file is incomplete, or not this model.",
            )
        if tensor.shape != shape:
            raise ModelFileError(
                f"{self._path}: {name} has shape {tensor.shape}, but the config says {shape}."
            )
        self._unused.discard(name)
        return tensor

    def _runnable(self, tensor: TensorInfo) -> str:
        if not BLOCKS[tensor.dtype].supported:
            tensor.read_rows(0, 0)  # raises the error that names the types we run
        return tensor.dtype

    def _advance(self, size: int) -> None:
        self._advance_from(self._done_bytes, size)

    def _advance_from(self, before: int, size: int) -> None:
        self._done_bytes = before + size
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)


def memory_needed(checkpoint: Checkpoint) -> int:
    """Bytes that the checkpoint's weights take in memory once packed."""
    total = 0
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) < 2 or not BLOCKS[tensor.dtype].supported:
            total += tensor.size_bytes
            continue
        *stack, rows, cols = tensor.shape
        total += int(np.prod(stack, dtype=np.int64)) * kernels.packed_bytes(
            tensor.dtype, rows, cols
        )
    return total


def _is_float(tensor: TensorInfo) -> bool:
    return tensor.dtype in ("F32", "F16", "BF16")


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """A GGUF tensor's name in config.json's language; others stay, for `finish` to report."""
    if name in names:
        return names[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, kind, suffix = match.groups()
    pattern = names.get(f"blk.{{}}.{kind}")
    return f"{pattern.format(layer)}.{suffix}" if pattern else name
