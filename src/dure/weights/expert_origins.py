"""How the experts of one mixture come from a file to their records in memory.

Straight, if the file has blocks of the types in memory; converted by Python, if it has another
layout; or as the records themselves, if `dure convert` wrote them. Each expert can be made by
itself, so loading makes all of them, a pool that reads on demand those that are missing, and
`dure convert` one after another. Several threads may make experts of one mixture at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure import kernels
from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.blocks import has_blocks_of
from dure.formats.expert_file import PackedExperts
from dure.formats.tensors import TensorInfo
from dure.weights.expert_records import Converted, Extent, PackedOnArrival, Ready
from dure.weights.repack import Conversion, Dequantised, columns_of, repack_now, same_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.quantized_checkpoint import Parameter
    from dure.formats.source import SourceFile
    from dure.weights.expert_records import RecordSource

    Ints = NDArray[np.int32]
    Stored = Parameter | Dequantised
    Reader = Callable[[int], tuple[Stored, int]]  # expert -> its tensor, and first row there

Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


_COPY_THREADS = 4  # which read records at once: a disk's queue takes as many


@dataclass(frozen=True)
class Mixture:
    """What a layer's experts are, and where a file has them.

    path: the model's, and name: the mixture's, for errors. shapes: (rows, columns) of each part;
    types: those in memory; readers: each part's tensors.
    """

    path: object
    name: str
    shapes: Mapping[Part, tuple[int, int]]
    types: Mapping[Part, str]
    readers: Mapping[Part, Reader]


class ExpertOrigin(ABC):
    """Where the experts of one mixture come from: a function from expert to record source."""

    def __init__(self, name: str) -> None:
        """name: the mixture's, before ".gate_proj.weight", as the family asks for it."""
        self.name = name

    @abstractmethod
    def __call__(self, expert: int) -> RecordSource:
        """Return where an expert's record can be had from."""

    @abstractmethod
    def prepare(self, experts: kernels.Experts) -> None:
        """Set the order of the experts' columns, before the first is used.

        Raises what making one of them would, as far as it can be known without reading weights.
        """


def origin_of(mixture: Mixture) -> StraightExperts | ConvertedExperts | PackedRecords:
    """Return how the experts of a mixture become records.

    Raises UnsupportedModelError for records of another layout than this version's.
    """
    firsts = {part: reader(0)[0] for part, reader in mixture.readers.items()}
    packed = [each for each in firsts.values() if isinstance(each, PackedExperts)]
    if packed:
        return PackedRecords(mixture.name, packed[0])
    for part, tensor in firsts.items():
        if not (
            isinstance(tensor, TensorInfo) and has_blocks_of(mixture.types[part], tensor.dtype)
        ):
            return ConvertedExperts(mixture)
    return StraightExperts(mixture)


class StraightExperts(ExpertOrigin):
    """Experts that the file has as blocks of the types in memory."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__(mixture.name)
        self._mixture = mixture

    def extent(self, part: Part, expert: int) -> Extent:
        """Return the blocks of one matrix."""
        tensor, first_row = self._mixture.readers[part](expert)
        assert isinstance(tensor, TensorInfo)  # as all of a part are of one type
        rows, size = self._mixture.shapes[part][0], tensor.row_bytes
        return Extent(tensor.source, tensor.offset + first_row * size, rows * size)

    def __call__(self, expert: int) -> PackedOnArrival:
        return PackedOnArrival(*(self.extent(part, expert) for part in PARTS))

    def prepare(self, experts: kernels.Experts) -> None:
        """Set nothing: the columns are in order."""


class PackedRecords(ExpertOrigin):
    """Experts whose records `dure convert` wrote."""

    def __init__(self, name: str, packed: PackedExperts) -> None:
        """packed: any part of the layer. Raises UnsupportedModelError for another layout."""
        super().__init__(name)
        file = packed.file
        assert file.source is not None, "a file that was read"
        if file.layout != kernels.LAYOUT:
            raise UnsupportedModelError(
                f"{file.source.path} has experts packed in layout {file.layout}, and this version "
                f"of dure computes with layout {kernels.LAYOUT}.",
                hint="convert the model again with this version of dure.",
            )
        self._layer = packed.layer
        self._file: SourceFile = file.source

    def __call__(self, expert: int) -> Ready:
        size = self._layer.record_bytes
        return Ready(Extent(self._file, self._layer.offset + expert * size, size))

    def prepare(self, experts: kernels.Experts) -> None:
        """Set the order of columns; ModelFileError if a record has not the kernels' bytes."""
        if experts.record_bytes != self._layer.record_bytes:
            raise ModelFileError(
                f"{self._file.path} has records of {self._layer.record_bytes:,} bytes under "
                f"{self._layer.name}, and such experts take {experts.record_bytes:,}.",
                hint="the file is damaged: convert the model again.",
            )
        experts.columns = self._layer.columns

    def fill(self, experts: kernels.Experts, advance: Callable[[int], None]) -> None:
        """Read all records into memory; `advance` is called with the bytes of each."""
        self.prepare(experts)

        def read(expert: int) -> int:
            extent = self(expert).extent
            extent.source.read_into(extent.offset, experts.record(expert))
            return extent.size

        with ThreadPoolExecutor(_COPY_THREADS) as pool:
            for size in pool.map(read, range(experts.count)):
                advance(size)


class ConvertedExperts(ExpertOrigin):
    """Experts whose rows Python converts from another layout, or quantises."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__(mixture.name)
        self._mixture = mixture

    def __call__(self, expert: int) -> Converted:
        return Converted(sum(extent.size for extent in self.extents(expert)), self.write)

    @property
    def stored(self) -> tuple[str, str, str]:
        """The names of the layouts of gate, up and down, for people."""
        gate, up, down = (self._mixture.readers[part](0)[0].stored for part in PARTS)
        return gate, up, down

    def columns(self) -> Ints | None:
        """Return the order of the columns of all gates and ups in memory; None if in order.

        It is the first expert's, and `conversions` refuses another's that differs.
        """
        return self._columns(0)["gate"]

    def prepare(self, experts: kernels.Experts) -> None:
        """Set the order of columns; UnsupportedModelError if an expert has one of its own."""
        experts.columns = self.columns()
        for expert in range(experts.count):
            self._checked_columns(expert)

    def conversions(
        self, experts: kernels.Experts, expert: int, *, threads: int = 1
    ) -> Iterator[Conversion]:
        """Yield what makes one expert, whose record in `experts` is in memory.

        Raises UnsupportedModelError for an expert whose columns lie in an order of their own.
        """
        columns = self._checked_columns(expert)
        for part in PARTS:
            tensor, first_row = self._mixture.readers[part](expert)
            if isinstance(tensor, Dequantised):
                tensor = tensor.fresh()  # which keeps what it has read, for one thread
            put = partial(_put, experts, part, expert, threads)
            # What down takes in another order, gate and up give in that order.
            order = None if part == "down" else columns["down"]
            yield Conversion(
                tensor,
                first_row,
                self._mixture.shapes[part][0],
                self._mixture.types[part],
                put,
                order,
            )

    def write(self, experts: kernels.Experts, expert: int, *, threads: int = 1) -> None:
        """Read, convert and pack one expert; see `conversions`."""
        for conversion in self.conversions(experts, expert, threads=threads):
            repack_now(conversion, threads=threads)

    def extents(self, expert: int) -> Sequence[Extent]:
        """Return what of the files an expert is made of."""
        found = []
        for part in PARTS:
            tensor, first_row = self._mixture.readers[part](expert)
            if isinstance(tensor, Dequantised):
                tensor = tensor.source
            if isinstance(tensor, TensorInfo):
                start = tensor.offset + first_row * tensor.row_bytes
                found.append(
                    Extent(tensor.source, start, self._mixture.shapes[part][0] * tensor.row_bytes)
                )
            else:
                found += [
                    Extent(each.source, each.offset, each.size_bytes) for each in tensor.parts
                ]
        return found

    def _checked_columns(self, expert: int) -> dict[Part, Ints | None]:
        columns = self._columns(expert)
        first = columns if expert == 0 else self._columns(0)
        if any(not same_columns(first["gate"], columns[part]) for part in ("gate", "up")):
            raise UnsupportedModelError(
                f"{self._mixture.path}: each of the experts under {self._mixture.name} has its "
                "columns in an order of its own (desc_act), which dure does not run as it is.",
                hint="quantise it anew: --quantize q4, q6 or q8.",
            )
        return columns

    def _columns(self, expert: int) -> dict[Part, Ints | None]:
        return {
            p: columns_of(self._mixture.readers[p](expert)[0], self._mixture.types[p])
            for p in PARTS
        }


def _put(
    experts: kernels.Experts,
    part: Part,
    expert: int,
    threads: int,
    first_row: int,
    raw: NDArray[np.uint8],
) -> None:
    experts.fill(part, expert, raw, first_row=first_row, threads=threads)
