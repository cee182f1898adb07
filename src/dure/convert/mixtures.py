"""Finds a model's mixtures of experts, and makes the record of one expert after another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure import kernels, models
from dure.errors import ModelFileError
from dure.formats.expert_file import ExpertLayer
from dure.formats.quantized.base import QuantizedMatrix
from dure.formats.quantized_checkpoint import is_idle_bias, parameters
from dure.formats.tensors import TensorInfo
from dure.weights.expert_origins import PARTS, ConvertedExperts, StraightExperts
from dure.weights.expert_pool import ExpertPool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint
    from dure.formats.source import SourceFile
    from dure.weights.expert_records import Extent, RecordSource
    from dure.weights.quantize import Scheme

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Mixture:
    """The experts of one layer, which are nowhere in memory, and where their records come from."""

    hidden: int
    intermediate: int
    types: tuple[str, str, str]
    experts: kernels.Experts
    origin: StraightExperts | ConvertedExperts

    def layer(self) -> ExpertLayer:
        """Return what experts.dure says of it. Its records' place and digest are not known yet."""
        stored, columns = self.types, None
        if isinstance(self.origin, ConvertedExperts):
            stored, columns = self.origin.stored, self.origin.columns()
        return ExpertLayer(
            self.origin.name,
            self.experts.count,
            self.hidden,
            self.intermediate,
            self.types,
            stored,
            self.experts.record_bytes,
            columns=columns,
        )

    def extents(self) -> Iterator[Extent]:
        """Yield what of the files the experts are made of."""
        for expert in range(self.experts.count):
            if isinstance(self.origin, ConvertedExperts):
                yield from self.origin.extents(expert)
            else:
                yield from (self.origin.extent(part, expert) for part in PARTS)

    def records(self, threads: int) -> Iterator[Bytes]:
        """Yield each expert's record, (record_bytes,), in the same memory.

        Raises ModelFileError for a weight that is NaN or infinite, or a file that cannot be read.
        """
        buffer = kernels.ExpertBuffer(1, self.experts.record_bytes)
        for expert in range(self.experts.count):
            self.experts.place(expert, buffer, 0)
            if isinstance(self.origin, ConvertedExperts):
                self.origin.write(self.experts, expert, threads=threads)
            else:
                _pack(self.experts, expert, self.origin, threads)
            yield buffer.slot(0)
            self.experts.remove(expert)


def mixtures_of(checkpoint: Checkpoint, quantize: Scheme | None) -> list[Mixture]:
    """List the mixtures that a model's family asks for, draft heads' among them.

    Raises what loading the model would, before a weight is read.
    """
    pool = _Recorder()
    models.checked_model(checkpoint, draft_heads=True, quantize=quantize, expert_pool=pool)
    return pool.found


def tensors_of(mixtures: Sequence[Mixture], checkpoint: Checkpoint) -> set[str]:
    """Return the names of the checkpoint's tensors that are the experts'.

    Biases of zeros, which some tools add to quantised matrices, go with their matrix.
    """
    extents = _Extents(extent for mixture in mixtures for extent in mixture.extents())
    found = {name for name, tensor in checkpoint.tensors.items() if extents.touch(tensor)}
    stored = parameters(checkpoint)
    for name in stored:
        matrix = stored.get(name.removesuffix("bias") + "weight")
        of_expert = isinstance(matrix, QuantizedMatrix) and any(map(extents.touch, matrix.parts))
        if name.endswith(".bias") and of_expert and is_idle_bias(name, stored):
            found.add(name)
    return found


class _Recorder(ExpertPool):
    """Takes down the mixtures that a model asks for, and keeps no expert."""

    streams = True  # so that none is packed into memory

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Mixture] = []

    def add(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate: str,
        up: str,
        down: str,
        *,
        sources: Callable[[int], RecordSource] | None = None,
    ) -> kernels.Experts:
        """Take down a mixture, of which no expert is in memory."""
        assert isinstance(sources, (StraightExperts, ConvertedExperts)), "none is packed already"
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down, resident=False)
        types = (gate, up, down)
        self.found.append(Mixture(hidden, intermediate, types, experts, sources))
        return experts


class _Extents:
    """Ranges of bytes of files, to be looked up."""

    def __init__(self, extents: Iterator[Extent]) -> None:
        self._starts: dict[SourceFile, list[int]] = {}
        self._ends: dict[SourceFile, list[int]] = {}
        for each in sorted(set(extents), key=lambda each: (each.offset, each.size)):
            self._starts.setdefault(each.source, []).append(each.offset)
            self._ends.setdefault(each.source, []).append(each.offset + each.size)

    def touch(self, tensor: TensorInfo) -> bool:
        """Check whether one of them has bytes of a tensor."""
        starts, ends = self._starts.get(tensor.source, []), self._ends.get(tensor.source, [])
        after = bisect_left(starts, tensor.offset)
        before = ends[after - 1] if after else 0
        end = tensor.offset + tensor.size_bytes
        return before > tensor.offset or (after < len(starts) and starts[after] < end)


def _pack(experts: kernels.Experts, expert: int, origin: StraightExperts, threads: int) -> None:
    """Pack an expert of source blocks straight from its files."""
    packers: dict[SourceFile, kernels.FilePacker] = {}
    for part in PARTS:
        extent = origin.extent(part, expert)
        packer = packers.setdefault(extent.source, kernels.FilePacker())
        packer.add_part(experts, part, expert, extent.offset)
    for file, packer in packers.items():
        with file.reading() as descriptor:
            try:
                packer.run(descriptor, threads=threads, report=lambda _: None)
            except kernels.NotFiniteError as error:
                raise ModelFileError(
                    f"{file.path} holds a weight at or after byte {error.offset:,} that is NaN or "
                    "infinite.",
                    hint="the file is damaged, or its conversion failed: download it again.",
                ) from None
