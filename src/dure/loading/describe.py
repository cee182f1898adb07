"""Describe a model by its family: caches, parts, memory. No weight is loaded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure import machine, models
from dure.errors import DureError
from dure.formats.blocks import FLOATS
from dure.formats.quantized.folder import unused_scales
from dure.formats.quantized_checkpoint import parameters_or_tensors
from dure.loading.cache_size import CacheSize
from dure.loading.memory import OVERHEAD_BYTES
from dure.weights.names import from_gguf, plain_name
from dure.weights.quantize import part_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dure.batch import CacheDtype, KVCacheSpec, StateSpec
    from dure.formats.checkpoint import Checkpoint
    from dure.formats.quantized_checkpoint import Parameter

# Names of what takes part in decoding; other parameters draft, or are of another modality.
_DECODER = re.compile(r"model\.(layers\.\d+|embed_tokens|norm)\.|lm_head\.|rope_freqs\.")

_CACHE_TYPE: CacheDtype = "f16"  # what conversations are kept in


@dataclass(frozen=True)
class Caches:
    """The cache of all layers of one kind: bytes per token, and per sequence of any length."""

    kind: str
    layers: int
    token_bytes: int  # of all of them, as the next; with a window only while it is seen
    sequence_bytes: int
    window: int | None  # tokens that each looks back


@dataclass(frozen=True)
class Description:
    """What the family says about a model. `problem` says why it does not run; empty if it runs.

    `caches` is empty for a model that does not run.
    """

    family: str
    problem: str
    parts: Mapping[str, Mapping[str, int]]  # part -> tensor type -> parameters
    caches: tuple[Caches, ...]
    weight_bytes: int  # as they lie in memory
    expert_bytes: int  # of them, a mixture's: those that do not fit are read from disk
    available_bytes: int
    unused_scales: Mapping[str, Sequence[str]]  # static ones of activations and cache, by their use
    draft_problem: str  # why there are no draft heads (multi-token prediction); empty if there are

    @property
    def has_draft_heads(self) -> bool:
        """Whether the checkpoint has draft heads that can be loaded."""
        return not (self.problem or self.draft_problem)

    @property
    def memory_bytes(self) -> int:
        """The bytes that a run takes, but for the cache."""
        return self.weight_bytes + OVERHEAD_BYTES

    @property
    def token_bytes(self) -> int:
        """The bytes that each further token takes: in the layers that keep all of them."""
        return self._cache_size.token_bytes

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of a cache for one conversation of so many tokens."""
        return self._cache_size.bytes_of(tokens) + self.sequence_bytes

    @property
    def _cache_size(self) -> CacheSize:
        windows = [each for each in self.caches if each.window]
        return CacheSize(
            sum(each.token_bytes for each in self.caches if not each.window),
            sum(each.token_bytes for each in windows),
            max((each.window or 0 for each in windows), default=0),
        )

    @property
    def sequence_bytes(self) -> int:
        """The bytes of one sequence beside its tokens."""
        return sum(each.sequence_bytes for each in self.caches)


def describe(checkpoint: Checkpoint) -> Description:
    """Describe a checkpoint, whether it runs or not."""
    family = problem = draft_problem = ""
    layers: tuple[KVCacheSpec | StateSpec, ...] = ()
    try:
        family = models.family_of(checkpoint).__name__.rpartition(".")[2]
        model = models.checked_model(checkpoint, draft_heads=True)
        layers, draft_problem = model.kv_cache_specs, model.draft_problem
    except DureError as error:
        problem = error.message
    weights = models.weight_bytes(checkpoint)
    return Description(
        family=family,
        problem=problem,
        parts=_parts(checkpoint),
        caches=_caches(layers),
        weight_bytes=weights.total,
        expert_bytes=weights.experts,
        available_bytes=machine.memory_available(),
        unused_scales=unused_scales(checkpoint.tensors),
        draft_problem=draft_problem,
    )


def _caches(layers: tuple[KVCacheSpec | StateSpec, ...]) -> tuple[Caches, ...]:
    groups: dict[tuple[str, int | None], list[KVCacheSpec | StateSpec]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.window), []).append(layer)
    return tuple(
        Caches(
            kind,
            len(same),
            sum(each.bytes_per_token(_CACHE_TYPE) for each in same),
            sum(each.bytes_per_sequence for each in same),
            window,
        )
        for (kind, window), same in groups.items()
    )


def _parts(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Count the parameters of each part by tensor type, without norms and biases."""
    try:
        tensor_aliases = getattr(models.family_of(checkpoint), "TENSOR_ALIASES", None) or {}
    except DureError:
        tensor_aliases = {}
    counted: dict[str, Counter[str]] = {}
    for name, tensor in parameters_or_tensors(checkpoint).items():
        of_gguf = checkpoint.kind == "gguf"
        plain = from_gguf(name) if of_gguf else plain_name(name, tensor_aliases)
        if plain is None or len(tensor.shape) < 2:
            continue
        part = part_of(plain, len(tensor.shape)) if _DECODER.match(plain) else "other"
        kinds = counted.setdefault(part, Counter())
        kinds[_types(tensor)] += tensor.num_rows * tensor.shape[-1]
    return {part: dict(counts.most_common()) for part, counts in sorted(counted.items())}


def _types(tensor: Parameter) -> str:
    """Name a tensor's type in the file, and in memory where that is another float type."""
    as_floats = tensor.dtype in FLOATS and tensor.stored != tensor.dtype
    return f"{tensor.stored} as {tensor.dtype}" if as_floats else tensor.stored
