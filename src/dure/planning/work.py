"""What a model does for a token, from the headers of its files alone.

The family's own file builds its model, with weights that are never read: so whatever runs has a
plan, and a new family is still one file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dure import models
from dure.weights.quantize import part_of

if TYPE_CHECKING:
    from dure.batch import KVCacheSpec, StateSpec
    from dure.formats.checkpoint import Checkpoint
    from dure.layers.mixer_work import MixerWork
    from dure.weights.header_weights import AskedMatrix
    from dure.weights.quantize import Part, Scheme

Use = Literal["dense", "expert", "head", "embedding"]


@dataclass(frozen=True)
class MatrixWork:
    """Equal matrices of a model, `count` of them, in different layers or the same.

    A row of a step is multiplied by a "dense" matrix in every layer, by the `active` of `experts`
    matrices of a mixture (then rows and columns are those of one expert), and by the "head" only
    where logits are wanted. Of an "embedding" one row is looked up. A tied head is a "head".
    """

    part: Part
    use: Use
    dtype: str  # as it is in memory
    rows: int  # outputs
    columns: int  # inputs
    count: int
    nbytes: int  # of all of them, and of all experts
    experts: int = 0
    active: int = 0


@dataclass(frozen=True)
class ModelWork:
    """What a model does, and what it keeps in memory."""

    name: str
    family: str
    layers: int
    hidden: int
    vocabulary: int
    context: int  # tokens of a sequence at most
    matrices: tuple[MatrixWork, ...]
    mixers: tuple[tuple[MixerWork, int], ...]  # each kind of attention, and how many layers have it
    vector_bytes: int
    cache_specs: tuple[KVCacheSpec | StateSpec, ...]

    @property
    def matrix_bytes(self) -> int:
        """Memory of all matrices, experts too."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def expert_bytes(self) -> int:
        """Memory of all experts of mixtures."""
        return sum(matrix.nbytes for matrix in self.matrices if matrix.experts)

    @property
    def active_bytes(self) -> int:
        """Memory that is read for one token of one sequence, but for the cache."""
        return sum(
            matrix.nbytes * matrix.active // matrix.experts if matrix.experts else matrix.nbytes
            for matrix in self.matrices
            if matrix.use != "embedding"
        )


def work_of(checkpoint: Checkpoint, name: str, *, quantize: Scheme | None = None) -> ModelWork:
    """Return what a checkpoint's model does; no weight is read.

    quantize: the scheme that it would be loaded with. Raises what loading raises for a model that
    does not run.
    """
    model, weights = models.header_model(checkpoint, quantize=quantize)
    family = models.family_of(checkpoint).__name__.rpartition(".")[2]
    asked = weights.asked()
    return ModelWork(
        name=name,
        family=family,
        layers=len(model.layers),
        hidden=model.config.hidden,
        vocabulary=model.vocab_size,
        context=model.context_length,
        matrices=_grouped(asked),
        mixers=_counted([layer.mixer.work for layer in model.layers]),
        vector_bytes=weights.vector_bytes,
        cache_specs=model.kv_cache_specs,
    )


def _grouped(asked: list[AskedMatrix]) -> tuple[MatrixWork, ...]:
    """Count matrices of one size and use as one."""
    has_head = any(matrix.name == "lm_head.weight" for matrix in asked)
    found: dict[MatrixWork, tuple[int, int]] = {}
    for matrix in asked:
        part = part_of(matrix.name, 3 if matrix.experts else 2)
        alike = MatrixWork(
            part=part,
            use=_use(matrix, part, has_head=has_head),
            dtype=matrix.dtype,
            rows=matrix.rows,
            columns=matrix.columns,
            count=0,
            nbytes=0,
            experts=matrix.experts,
            active=matrix.active,
        )
        count, size = found.get(alike, (0, 0))
        found[alike] = count + 1, size + matrix.nbytes
    return tuple(replace(alike, count=count, nbytes=size) for alike, (count, size) in found.items())


def _use(matrix: AskedMatrix, part: Part, *, has_head: bool) -> Use:
    if matrix.experts:
        return "expert"
    if part == "head" or (part == "embedding" and not has_head):
        return "head"
    looked_up = part == "embedding" or matrix.name.startswith("model.embed_tokens")
    return "embedding" if looked_up or matrix.on_disk else "dense"


def _counted(mixers: list[Any]) -> tuple[tuple[MixerWork, int], ...]:
    found: dict[MixerWork, int] = {}
    for mixer in mixers:
        found[mixer] = found.get(mixer, 0) + 1
    return tuple(found.items())
