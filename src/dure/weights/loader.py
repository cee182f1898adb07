"""Finds a model's parameters by name, checks their shapes, and packs them for the kernels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from dure import kernels
from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.blocks import FLOATS, has_blocks_of
from dure.formats.quantized_checkpoint import is_idle_bias, parameters
from dure.formats.tensors import TensorInfo, same_content
from dure.weights.expert_origins import (
    PARTS,
    ConvertedExperts,
    Mixture,
    PackedRecords,
    StraightExperts,
    origin_of,
)
from dure.weights.expert_pool import ExpertPool
from dure.weights.mismatch import Misshaped, check_tensors
from dure.weights.names import canonical_name, is_recomputed
from dure.weights.quantize import DtypePolicy, scheme_of
from dure.weights.repack import Conversion, columns_of, repack_all
from dure.weights.row_parts import cut_rows
from dure.weights.rows_on_disk import RowsOnDisk
from dure.weights.sizes import of_one_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint
    from dure.formats.quantized_checkpoint import Parameter
    from dure.formats.source import SourceFile
    from dure.weights.expert_origins import Part, Reader, Stored
    from dure.weights.quantize import Scheme
    from dure.weights.span import Span

    Ints = NDArray[np.int32]


# At how many problems an error stops counting.
_COUNTED = 100_000

# How often packing reports its progress, and checks for Ctrl-C.
_REPORT_SECONDS = 0.25

Made = TypeVar("Made")
if TYPE_CHECKING:
    OnMade = Callable[[str, kernels.Matrix | kernels.Experts], None]
    Finder = Callable[[str, Part, int, tuple[int, int]], Reader | None]


class Weights:
    """The parameters of one checkpoint.

    Vectors are read at once. Matrices and experts have their values only after `finish`: it packs
    all of them in the order in which they lie on disk, and then those whose type in memory differs
    from the file's. A parameter that is missing or has another shape gets a placeholder, so that
    `check` can list all of them; a model with placeholders never runs.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tensor_aliases: Mapping[str, str] | None = None,
        threads: int = 1,
        exact: bool = False,
        quantize: Scheme | None = None,
        progress: Callable[[int, int], None] | None = None,
        expert_pool: ExpertPool | None = None,
        draft_heads: bool = False,
        span: Span | None = None,
        on_made: OnMade = lambda _name, _made: None,
    ) -> None:
        """Take the checkpoint's parameters; read none.

        tensor_aliases: parts of names as a family's files may write them -> as it asks for them.
        exact: products are of floats. quantize: the scheme for matrices of floats. progress: called
        with the bytes done and all. expert_pool: where mixtures' experts live; all in memory if it
        is None. If it streams, files are read past the page cache; if it leaves rows, an embedding
        that is no head stays on disk. draft_heads: whether layers that only guess tokens are read,
        if there are any. span: the layers computed here, if not all: others are not read.
        on_made: called with the name and the object of each matrix, and of each MLP or mixture.
        """
        self.span = span
        self._elsewhere = False  # whether what is asked for now is not read
        self.threads = threads
        self.exact = exact
        self.gelu = False  # whether gated MLPs activate by GELU, and not by silu
        self.draft_heads = draft_heads
        self.expert_pool = expert_pool or ExpertPool()
        self.is_gguf = checkpoint.kind == "gguf"
        self.is_bare = checkpoint.is_bare
        self._path = checkpoint.path
        self._tensors = {
            canonical_name(name, self.is_gguf, tensor_aliases or {}): tensor
            for name, tensor in parameters(checkpoint).items()
        }
        self._types = DtypePolicy(self._tensors, scheme_of(checkpoint, quantize), exact=exact)
        self._unused = set(self._tensors)
        self._missing: list[str] = []
        self._misshaped: list[Misshaped] = []
        self._progress, self._on_made = progress, on_made
        self._total_bytes = sum(t.size_bytes for t in self._tensors.values())
        self._done_bytes = 0
        self._packers: dict[SourceFile, kernels.FilePacker] = {}
        self._on_finish: list[Callable[[], None]] = []
        self._jobs: list[Callable[[], Iterator[Conversion]]] = []
        self._copies: list[Callable[[Callable[[int], None]], None]] = []

    @contextmanager
    def only_if(self, wanted: bool) -> Iterator[None]:
        """Unless `wanted`, check what is asked for meanwhile as ever, but give placeholders."""
        before, self._elsewhere = self._elsewhere, self._elsewhere or not wanted
        yield
        self._elsewhere = before

    def has(self, name: str) -> bool:
        """Check whether the checkpoint has a tensor of that name."""
        return name in self._tensors

    def rows_of(self, name: str) -> int:
        """Return the rows of a matrix, 1 of a vector; 0 if the checkpoint has none of that name."""
        shape = self._tensors[name].shape if self.has(name) else (0,)
        return shape[0] if len(shape) == 2 or shape == (0,) else 1

    def are_same(self, one: str, other: str) -> bool:
        """Check whether the checkpoint has the same tensor under both names."""
        return same_content(self._tensors.get(one), self._tensors.get(other))

    def optional(self, make: Callable[[Weights], Made]) -> tuple[Made | None, str]:
        """Make a part that the model can do without, if the checkpoint has all that it asks for.

        make: called with a copy of these weights, then with them. Returns the part and "", or None
        and what is in the way; then nothing was taken.
        """
        trial = copy.copy(self)
        trial._types, trial._unused = copy.copy(self._types), set(self._unused)
        trial._missing, trial._misshaped, trial._packers = [], [], {}
        trial._on_finish, trial._jobs, trial._copies, trial._progress = [], [], [], None
        trial.expert_pool = ExpertPool()
        try:
            make(trial)
            trial.check(asked_all=False)
        except DureError as error:
            return None, error.message.rstrip(".")
        return make(self), ""

    def split(self, name: str, parts: Mapping[str, int]) -> None:
        """Let rows of the tensor `name` be tensors of their own, if there is one of so many rows.

        parts: their names, and rows of each, in order.
        """
        found = cut_rows(self._tensors.get(name), parts)
        if found:
            others = {key: each for key, each in self._tensors.items() if key != name}
            self._tensors = others | found
            self._unused = (self._unused - {name}) | found.keys()

    def skip(self, name: str) -> None:
        """Mark a tensor as known but not needed; it is not read."""
        if name in self._unused:
            self._unused.discard(name)
            self._advance(self._tensors[name].size_bytes)

    def skip_all(self, prefix: str) -> None:
        """Mark all tensors whose names begin with `prefix` as known but not needed."""
        for name in [name for name in self._unused if name.startswith(prefix)]:
            self.skip(name)

    def vector(
        self, name: str, size: int, *, as_row: bool = False, offset: float = 0.0
    ) -> NDArray[np.float32]:
        """Read the float tensor `name` of `size` entries, + offset, as float32 (size,).

        as_row: whether the shape (1, size) will do, too.
        """
        return self.floats(name, (size,), *([(1, size)] if as_row else []), offset=offset)

    def floats(
        self, name: str, *shapes: tuple[int, ...], offset: float = 0.0
    ) -> NDArray[np.float32]:
        """Read the small float tensor `name`, + offset, as float32 of the first of `shapes`.

        It may be stored in any of `shapes`. Raises UnsupportedModelError for a tensor that is not
        of floats, ModelFileError for a value that is NaN or infinite.
        """
        stored = self._tensors[name].shape if self.has(name) else ()
        tensor = self._take(name, stored if stored in shapes else shapes[0])
        if tensor is None:
            return np.broadcast_to(np.float32(1), shapes[0])  # takes no memory, whatever size
        if tensor.dtype not in FLOATS:
            raise UnsupportedModelError(
                f"{self._path}: {name} is stored as {tensor.stored}; vectors must be floats."
            )
        values = kernels.Matrix(tensor.dtype, 1, math.prod(stored))
        values.fill(0, tensor.read().reshape(1, -1))
        self._advance(tensor.size_bytes)
        entries: NDArray[np.float32] = values.row_values(np.zeros(1, np.int32))
        if not np.isfinite(entries).all():
            raise self._not_finite(name)
        return entries.reshape(shapes[0]) + np.float32(offset)

    def matrix(self, name: str, rows: int, cols: int) -> kernels.Matrix:
        """Return the matrix `name`, (rows, cols), which `finish` packs for the kernels."""
        # Files that llama.cpp quantised have lost the dimension of a single row.
        flat = rows == 1 and self.has(name) and self._tensors[name].shape == (cols,)
        tensor = self._take(name, (cols,) if flat else (rows, cols))
        if tensor is None:
            return cast(kernels.Matrix, SimpleNamespace(rows=rows, cols=cols))
        return self._matrix(name, tensor, rows, cols)

    def rows_on_disk(self, name: str, rows: int, cols: int) -> RowsOnDisk | None:
        """Return the matrix `name`, (rows, cols), to be read row by row; None if it is kept.

        It stays on disk if the pool leaves rows and the file has them in the type of memory.
        """
        tensor = self._left_on_disk(name, rows, cols)
        return None if tensor is None else RowsOnDisk(tensor, rows, cols)

    def _left_on_disk(self, name: str, rows: int, cols: int) -> TensorInfo | None:
        """Return the tensor if its rows stay on disk, and count it as left there."""
        tensor = self._tensors.get(name)
        if self._elsewhere or not (self.expert_pool.leaves_rows and isinstance(tensor, TensorInfo)):
            return None
        if tensor.shape != (rows, cols) or self._types.of(name, tensor) != tensor.dtype:
            return None
        self._unused.discard(name)
        self._leave(tensor)
        self.expert_pool.left_bytes += kernels.packed_bytes(tensor.dtype, rows, cols)
        return tensor

    def _leave(self, *tensors: Stored) -> None:
        """Take tensors that stay on disk out of what is to be read."""
        each = {id(tensor): tensor for tensor in tensors}
        self._total_bytes -= sum(tensor.size_bytes for tensor in each.values())

    def stacked(self, name: str, count: int, rows: int, cols: int) -> kernels.Matrix:
        """Return the tensor `name`, (count, rows, cols), as one matrix (count * rows, cols)."""
        tensor = self._take(name, (count, rows, cols))
        if tensor is None:
            return cast(kernels.Matrix, SimpleNamespace(rows=count * rows, cols=cols))
        return self._matrix(name, tensor, count * rows, cols)

    def on_finish(self, derive: Callable[[], None]) -> None:
        """Call `derive` at the end of `finish`, when everything is packed."""
        if not self._elsewhere:
            self._on_finish.append(derive)

    def _matrix(self, name: str, tensor: Parameter, rows: int, cols: int) -> kernels.Matrix:
        matrix = kernels.Matrix(self._types.of(name, tensor), rows, cols)
        self._on_made(name, matrix)
        if isinstance(tensor, TensorInfo) and has_blocks_of(matrix.dtype, tensor.dtype):
            self._packer(tensor.source).add(matrix, tensor.offset)
        else:
            self._jobs.append(partial(self._matrix_job, matrix, tensor))
        return matrix

    def _matrix_job(self, matrix: kernels.Matrix, tensor: Parameter) -> Iterator[Conversion]:
        matrix.columns = columns_of(tensor, matrix.dtype)
        put = partial(matrix.fill, threads=self.threads)
        yield Conversion(tensor, 0, matrix.rows, matrix.dtype, put)

    def gated_mlp(self, name: str, hidden: int, intermediate: int) -> kernels.Experts:
        """Return the gate, up and down matrices under `name`: one expert that takes all rows."""
        return self._records(name, 1, hidden, intermediate, self._dense_rows, None)

    def experts(self, prefix: str, count: int, hidden: int, intermediate: int) -> kernels.Experts:
        """Return the experts under `prefix`, stored stacked (GGUF, fused) or each on its own."""
        pool = self.expert_pool
        return self._records(prefix, count, hidden, intermediate, self._expert_rows, pool)

    def _records(
        self,
        prefix: str,
        count: int,
        hidden: int,
        intermediate: int,
        rows_of: Finder,
        pool: ExpertPool | None,
    ) -> kernels.Experts:
        """Make gate, up and down of `count` experts; pool: of a mixture's."""
        mixture = self._mixture(prefix, count, hidden, intermediate, rows_of)
        if mixture is None:
            return cast(kernels.Experts, None)
        types, readers = mixture.types, mixture.readers
        origin = origin_of(mixture)
        if pool is None:
            experts = kernels.Experts(count, hidden, intermediate, *types.values())
        else:
            gate, up, down = types.values()
            experts = pool.add(count, hidden, intermediate, gate, up, down, sources=origin)
        self._on_made(prefix, experts)
        if pool is not None and pool.streams:  # it reads an expert when that is wanted
            found = [reader(expert)[0] for reader in readers.values() for expert in range(count)]
            self._leave(*found)
            self.on_finish(partial(origin.prepare, experts))
        elif isinstance(origin, StraightExperts):
            for part in PARTS:
                for expert in range(count):
                    extent = origin.extent(part, expert)
                    self._packer(extent.source).add_part(experts, part, expert, extent.offset)
        elif isinstance(origin, PackedRecords):
            self._copies.append(partial(origin.fill, experts))
        else:
            self._jobs.append(partial(self._experts_job, experts, origin))
        return experts

    def _mixture(
        self, prefix: str, count: int, hidden: int, intermediate: int, rows_of: Finder
    ) -> Mixture | None:
        """Find the matrices of `count` experts and their types; None if one is missing."""
        shapes: dict[Part, tuple[int, int]] = {
            "gate": (intermediate, hidden),
            "up": (intermediate, hidden),
            "down": (hidden, intermediate),
        }
        readers: dict[Part, Reader] = {}
        for part, shape in shapes.items():
            reader = rows_of(prefix, part, count, shape)
            if reader is not None:
                readers[part] = reader
        if len(readers) < len(shapes):
            return None
        firsts = {part: reader(0)[0] for part, reader in readers.items()}
        types = {
            part: self._types.of(f"{prefix}.{part}_proj.weight", cast("Parameter", tensor))
            for part, tensor in firsts.items()
        }
        return Mixture(self._path, prefix, shapes, types, readers)

    def _experts_job(
        self, experts: kernels.Experts, origin: ConvertedExperts
    ) -> Iterator[Conversion]:
        experts.columns = origin.columns()
        for expert in range(experts.count):
            yield from origin.conversions(experts, expert, threads=self.threads)

    def _packer(self, source: SourceFile) -> kernels.FilePacker:
        """Return the packer of a file."""
        return self._packers.setdefault(source, kernels.FilePacker())

    def check(self, *, asked_all: bool = True) -> None:
        """Compare the tensors that the model asked for with those of the checkpoint.

        asked_all: whether the model has asked for all of them. Raises ModelFileError if tensors are
        missing or have another shape, and UnsupportedModelError if some are left that the model did
        not ask for.
        """
        left = sorted(
            n
            for n in self._unused
            if asked_all and not (is_recomputed(n) or is_idle_bias(n, self._tensors))
        )
        check_tensors(self._path, self._missing, self._misshaped, left, all_known=asked_all)

    def finish(self) -> None:
        """Read and pack all matrices that the model asked for.

        Raises what `check` raises, before anything is read; InvalidRequestError if quantisation was
        asked for and all is quantised already; ModelFileError if a file cannot be read, changes, or
        holds a weight that is NaN or infinite.
        """
        self.check()
        self._types.check(self._path)
        for source, packer in self._packers.items():
            with source.reading() as descriptor:
                try:
                    packer.run(
                        descriptor,
                        direct=self.expert_pool.streams,
                        threads=self.threads,
                        seconds=_REPORT_SECONDS,
                        report=partial(self._advance_from, self._done_bytes),
                    )
                except kernels.NotFiniteError as error:
                    raise self._not_finite(self._name_at(source, error.offset)) from None
        self._packers.clear()
        for copy_records in self._copies:
            copy_records(self._advance)
        self._copies.clear()
        if self._jobs:
            conversions = (each for job in self._jobs for each in job())
            repack_all(conversions, threads=self.threads, advance=self._advance)
            self._jobs.clear()
        for derive in self._on_finish:
            derive()

    def _name_at(self, source: SourceFile, offset: int) -> str:
        """Return the name of the tensor that contains the byte at `offset` of a file."""
        for name, tensor in self._tensors.items():
            if not isinstance(tensor, TensorInfo) or tensor.source is not source:
                continue
            if tensor.offset <= offset < tensor.offset + tensor.size_bytes:
                return name
        return "a tensor"

    def _not_finite(self, name: str) -> ModelFileError:
        return ModelFileError(
            f"{self._path}: {name} holds a weight that is NaN or infinite.",
            hint="the file is damaged, or its conversion failed: download or convert it again.",
        )

    def _dense_rows(
        self, prefix: str, part: Part, _count: int, shape: tuple[int, int]
    ) -> Reader | None:
        """Return a reader of a dense MLP's matrix, which is a whole tensor."""
        tensor = self._take(f"{prefix}.{part}_proj.weight", shape)
        return None if tensor is None else lambda _expert: (tensor, 0)

    def _expert_rows(
        self, prefix: str, part: Part, count: int, shape: tuple[int, int]
    ) -> Reader | None:
        """Return a function from expert to (tensor that holds its rows, first row in it)."""
        rows, cols = shape
        stacked = f"{prefix}.{part}_proj.weight"  # GGUF: (experts, rows, cols)
        fused = f"{prefix}.gate_up_proj"  # gate's rows, then up's; GGUF says .weight
        fused = f"{fused}.weight" if self.has(f"{fused}.weight") else fused
        if self.has(stacked):
            return self._part_of_each(stacked, (count, rows, cols), 0)
        if self.has(fused) and part == "down":
            return self._part_of_each(f"{prefix}.down_proj", (count, rows, cols), 0)
        if self.has(fused):
            return self._part_of_each(fused, (count, 2 * rows, cols), rows if part == "up" else 0)
        names = (f"{prefix}.{expert}.{part}_proj.weight" for expert in range(count))
        found = [self._take(name, shape) for name in names]
        each = [tensor for tensor in found if tensor is not None]
        if len(each) < count:
            return None
        alike = of_one_type(each)
        if len({tensor.dtype for tensor in alike}) > 1:
            raise UnsupportedModelError(f"{self._path}: the experts under {prefix} differ in type.")
        return lambda expert: (alike[expert], 0)

    def _part_of_each(self, name: str, shape: tuple[int, int, int], first: int) -> Reader | None:
        """Make a reader of each expert's rows from `first` on."""
        tensor = self._take(name, shape)
        return None if tensor is None else lambda expert: (tensor, expert * shape[1] + first)

    def _take(self, name: str, shape: tuple[int, ...]) -> Parameter | None:
        """Return the tensor and mark it as used; note it as missing if none has that shape."""
        tensor, is_first = self._tensors.get(name), name in self._unused
        self._unused.discard(name)
        if tensor is not None and tensor.shape == shape:
            if not self._elsewhere:
                return tensor
            if is_first:
                self._leave(tensor)
            return None
        if tensor is None:
            self._missing.append(name)
        else:
            self._misshaped.append((name, tensor.shape, shape))
        if len(self._missing) + len(self._misshaped) >= _COUNTED:
            self.check(asked_all=False)
        return None

    def _advance(self, size: int) -> None:
        self._advance_from(self._done_bytes, size)

    def _advance_from(self, before: int, size: int) -> None:
        self._done_bytes = before + size
        if self._progress is not None:
            self._progress(self._done_bytes, self._total_bytes)
