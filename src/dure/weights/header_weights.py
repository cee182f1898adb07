"""The parameters of a checkpoint of which only the headers are read: what is asked for, and how
large that is in memory. A family's file builds its model with them as with any `Weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np

from dure import kernels
from dure.formats.tensors import TensorInfo
from dure.weights.expert_origins import PARTS, origin_of
from dure.weights.expert_pool import ExpertPool
from dure.weights.loader import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint
    from dure.formats.quantized_checkpoint import Parameter
    from dure.weights.expert_pool import Router
    from dure.weights.loader import Finder
    from dure.weights.quantize import Scheme
    from dure.weights.rows_on_disk import RowsOnDisk
    from dure.weights.span import Span


@dataclass(frozen=True)
class AskedMatrix:
    """A matrix that a model asked for, or one part of an MLP or of each expert of a mixture."""

    name: str  # as the family asks for it: "model.layers.0.self_attn.q_proj.weight"
    dtype: str  # in memory
    rows: int  # of one matrix
    columns: int
    nbytes: int  # in memory, all experts together
    experts: int = 0  # how many there are; 0: it is no mixture's
    active: int = 0  # of them, those that a row needs
    on_disk: bool = False  # whether its rows are read when they are needed


class HeaderPool(ExpertPool):
    """Makes experts that take no memory, and remembers how many of them a row needs."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k: dict[int, int] = {}  # by the id of a set, which `_sets` keeps alive

    def add(
        self,
        count: int,
        hidden: int,
        intermediate: int,
        gate: str,
        up: str,
        down: str,
        *,
        sources: object = None,
    ) -> kernels.Experts:
        """Make the set of one layer's experts, without their memory."""
        del sources
        experts = kernels.Experts(count, hidden, intermediate, gate, up, down, resident=False)
        self._sets.append(experts)
        return experts

    def attach(self, experts: kernels.Experts, router: Router, *, top_k: int) -> None:
        """Remember how many experts a row needs."""
        del router
        self.top_k[id(experts)] = top_k


class HeaderWeights(Weights):
    """Weights that are never read: vectors are ones, matrices and experts only have sizes.

    `check` finds what is missing or misshaped, as for any checkpoint. `asked` lists the matrices.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tensor_aliases: Mapping[str, str] | None = None,
        exact: bool = False,
        quantize: Scheme | None = None,
        expert_pool: ExpertPool | None = None,
        draft_heads: bool = False,
        span: Span | None = None,
    ) -> None:
        """Take what `Weights` does. expert_pool: one that streams, to plan with; None: all stay."""
        super().__init__(
            checkpoint,
            tensor_aliases=tensor_aliases,
            exact=exact,
            quantize=quantize,
            expert_pool=expert_pool or HeaderPool(),
            draft_heads=draft_heads,
            span=span,
        )
        self.vector_bytes = 0
        """Memory of the vectors: norms, biases, convolutions."""
        self._asked: list[AskedMatrix] = []
        self._mixtures: list[tuple[kernels.Experts, list[AskedMatrix]]] = []

    def asked(self) -> list[AskedMatrix]:
        """List the matrices that the model asked for, in the order of its layers."""
        found = list(self._asked)
        for experts, parts in self._mixtures:
            active = self._top_k(experts)
            found += [
                AskedMatrix(
                    part.name,
                    part.dtype,
                    part.rows,
                    part.columns,
                    part.nbytes,
                    experts=experts.count,
                    active=active,
                )
                for part in parts
            ]
        return found

    def _top_k(self, experts: kernels.Experts) -> int:
        pool = self.expert_pool
        return pool.top_k.get(id(experts), 0) if isinstance(pool, HeaderPool) else 0

    def are_same(self, one: str, other: str) -> bool:
        """Check whether the checkpoint has tensors of one type and shape under both names."""
        found = self._tensors.get(one), self._tensors.get(other)
        if not all(isinstance(each, TensorInfo) for each in found):
            return False
        first, second = cast("tuple[TensorInfo, TensorInfo]", found)
        return (first.dtype, first.shape) == (second.dtype, second.shape)

    def floats(
        self, name: str, *shapes: tuple[int, ...], offset: float = 0.0
    ) -> NDArray[np.float32]:
        """Return ones of the first of `shapes`, after the check that the tensor has one of them."""
        del offset
        stored = self._tensors[name].shape if self.has(name) else ()
        self._take(name, stored if stored in shapes else shapes[0])
        self.vector_bytes += 0 if self._elsewhere else 4 * int(np.prod(shapes[0], dtype=np.int64))
        return np.broadcast_to(np.float32(1), shapes[0])

    def rows_on_disk(self, name: str, rows: int, cols: int) -> RowsOnDisk | None:
        """Return a table that cannot be read if the rows stay on disk, else None."""
        tensor = self._left_on_disk(name, rows, cols)
        if tensor is None:
            return None
        size = kernels.packed_bytes(tensor.dtype, rows, cols)
        self._asked.append(AskedMatrix(name, tensor.dtype, rows, cols, size, on_disk=True))
        return cast("RowsOnDisk", SimpleNamespace(rows=rows, cols=cols))

    def _matrix(self, name: str, tensor: Parameter, rows: int, cols: int) -> kernels.Matrix:
        dtype = self._types.of(name, tensor)
        size = kernels.packed_bytes(dtype, rows, cols)
        self._asked.append(AskedMatrix(name, dtype, rows, cols, size))
        sizes = SimpleNamespace(rows=rows, cols=cols, dtype=dtype, nbytes=size, columns=None)
        return cast(kernels.Matrix, sizes)

    def _records(
        self,
        prefix: str,
        count: int,
        hidden: int,
        intermediate: int,
        rows_of: Finder,
        pool: ExpertPool | None,
    ) -> kernels.Experts:
        mixture = self._mixture(prefix, count, hidden, intermediate, rows_of)
        if mixture is None:
            return cast(kernels.Experts, None)
        gate, up, down = mixture.types.values()
        where = pool or HeaderPool()
        sources = origin_of(mixture) if where.streams else None
        experts = where.add(count, hidden, intermediate, gate, up, down, sources=sources)
        parts = []
        for part in PARTS:
            dtype, (rows, cols) = mixture.types[part], mixture.shapes[part]
            size = count * kernels.packed_bytes(dtype, rows, cols)
            name = f"{prefix}.{part}_proj.weight"
            parts.append(AskedMatrix(name, dtype, rows, cols, size))
        if pool is None:
            self._asked += parts
        else:
            self._mixtures.append((experts, parts))
        return experts
