"""The model families, one file each, named by config.json's model_type: that is the registry."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from dure.errors import DureError, UnsupportedModelError
from dure.models.config import architecture_of, read_config
from dure.models.gguf_keys import check_keys
from dure.models.not_run import find_not_run
from dure.weights.header_weights import HeaderWeights
from dure.weights.loader import Weights
from dure.weights.sizes import WeightBytes
from dure.weights.sizes import memory_needed as _memory_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheArrays, KVCacheSpec, StateSpec
    from dure.formats.checkpoint import Checkpoint
    from dure.models.config import Config
    from dure.weights.expert_pool import ExpertPool
    from dure.weights.loader import OnMade
    from dure.weights.quantize import Scheme
    from dure.weights.span import Span


__all__ = [
    "Model",
    "checked_model",
    "families",
    "family_of",
    "header_model",
    "load_model",
    "memory_needed",
    "weight_bytes",
]


_SHARED = {
    *("config", "deepseek_config", "gemma4_config", "gguf_defaults", "gguf_keys", "gguf_layers"),
    *("family_keys", "gguf_rope", "mimo_v2_config", "not_run", "windows"),
}
"""Files of this folder that are not families."""


class Model(Protocol):
    """What the engine needs of a model."""

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each layer caches: keys and values of every token, or a state of the sequence."""
        ...

    @property
    def vocab_size(self) -> int:
        """The rows of the output: token ids are 0 to vocab_size - 1."""
        ...

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have, prompt and output together."""
        ...

    def forward(self, batch: Batch, cache: CacheArrays) -> NDArray[np.float32]:
        """Run one forward pass. Returns logits (len(batch.logit_rows), vocab_size).

        cache: one array a layer, to which keys and values are written: (blocks, *block_shape), or
        float32 (slots, size) of a recurrent layer.
        """
        ...


class PoolingModel(Model, Protocol):
    """A model whose hidden states can be had: what embeddings and draft heads are made of."""

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """Return the embeddings (n, hidden) of the batch's tokens."""
        ...

    def run(
        self,
        x: NDArray[np.float32],
        batch: Batch,
        cache: CacheArrays,
        *,
        rows: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the hidden states after the last block: (n, hidden), or of `rows` alone."""
        ...

    def normed(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the hidden states (n, hidden) that `run` gave after the last norm."""
        ...

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (n, vocab_size) of hidden states after the last block."""
        ...


class StagedModel(PoolingModel, Protocol):
    """A model that may be cut in stages of consecutive layers."""

    @property
    def cuts(self) -> Sequence[int]:
        """The layers before which it may be cut."""
        ...

    @property
    def cache_layers(self) -> Sequence[int]:
        """For each of `kv_cache_specs` the layer that writes it."""
        ...

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state."""
        ...

    def run(
        self,
        x: NDArray[np.float32],
        batch: Batch,
        cache: CacheArrays,
        *,
        first: int = 0,
        last: int | None = None,
        rows: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        """Run layers `first` to `last` (excluded) alone; see PoolingModel."""
        ...


class HeadedModel(PoolingModel, Protocol):
    """A model that may have draft heads: layers that guess the token after the next one."""

    @property
    def draft_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What the draft heads cache of a token; empty if there are none."""
        ...

    @property
    def num_draft_heads(self) -> int:
        """How many heads there are: of several, each guesses one token further than the last."""
        ...

    @property
    def draft_problem(self) -> str:
        """Why there are no draft heads; empty if there are some."""
        ...

    def draft_hidden(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what `run` gave in the form that `draft` takes."""
        ...

    def draft(
        self, hidden: NDArray[np.float32], batch: Batch, cache: CacheArrays, *, head: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Guess what follows batch.tokens, which stand 1 + head after what `hidden` is of.

        Returns the heads' own hidden states (m, hidden), for the guess after that, and logits.
        """
        ...


def families() -> dict[str, ModuleType]:
    """Return every model file under its names.

    These are its file's, those that its makers' configs use (MODEL_TYPES), and its GGUF
    architecture, if it has one.
    """
    found: dict[str, ModuleType] = {}
    for family in sorted(_files()):
        module = importlib.import_module(f"{__name__}.{family}")
        names = (family, *getattr(module, "MODEL_TYPES", ()), module.GGUF_ARCHITECTURE)
        found |= {name: module for name in names if name is not None}
    return found


def _files() -> set[str]:
    return {info.name for info in pkgutil.iter_modules(__path__)} - _SHARED


def family_of(checkpoint: Checkpoint) -> ModuleType:
    """Return the model file of a checkpoint.

    Raises UnsupportedModelError if there is none: it says what a family that is known would need,
    and lists the names most similar to one that is not.
    """
    name = architecture_of(checkpoint)
    if name in _files():
        return importlib.import_module(f"{__name__}.{name}")  # the others take 5 ms each
    known = families()
    if name in known:
        return known[name]
    code = " Its own code (auto_map) is never run." if "auto_map" in checkpoint.config else ""
    not_run = find_not_run(checkpoint)
    if not_run is not None:
        found, family = not_run
        raise UnsupportedModelError(
            f"{checkpoint.path} is of the family {family.name} ({found[:60]}), which dure does not "
            f"run yet: it would need {family.needs}.{code}",
            hint="docs/models.md lists the families that it runs.",
        )
    near = difflib.get_close_matches(name[:60], known, n=3, cutoff=0.4)
    what = "the nearest it runs are" if near else "it runs"
    raise UnsupportedModelError(
        f"{checkpoint.path} is a {name[:60]!r} model, an architecture dure does not run.{code}",
        hint=f"{what} {', '.join(near or sorted(known))}.",
    )


def _built(family: ModuleType, config: Config, weights: Weights) -> Any:
    """Make the model of a family; layers ask `weights` for what is the same in all of them."""
    weights.gelu = config.is_gelu
    return family.Model(config, weights)


def memory_needed(
    checkpoint: Checkpoint, *, exact: bool = False, quantize: Scheme | None = None
) -> int:
    """Return the bytes that the checkpoint's weights take in memory once packed."""
    return weight_bytes(checkpoint, exact=exact, quantize=quantize).total


def weight_bytes(
    checkpoint: Checkpoint, *, exact: bool = False, quantize: Scheme | None = None
) -> WeightBytes:
    """Return what the checkpoint's weights take in memory once packed, and its experts of that."""
    try:
        tensor_aliases = getattr(family_of(checkpoint), "TENSOR_ALIASES", None)
    except DureError:
        tensor_aliases = None
    return _memory_needed(checkpoint, exact=exact, quantize=quantize, tensor_aliases=tensor_aliases)


def checked_model(
    checkpoint: Checkpoint,
    *,
    draft_heads: bool = False,
    quantize: Scheme | None = None,
    expert_pool: ExpertPool | None = None,
) -> Any:
    """Build a checkpoint's model without reading its matrices, and check its tensors and keys.

    draft_heads: whether with its draft heads, too. quantize: the scheme that it would be loaded
    with. expert_pool: who is told of the mixtures. The model cannot run, but has its `config` and
    `kv_cache_specs`. Raises as load_model does.
    """
    family = family_of(checkpoint)
    tensor_aliases = getattr(family, "TENSOR_ALIASES", None)
    weights = Weights(
        checkpoint,
        tensor_aliases=tensor_aliases,
        draft_heads=draft_heads,
        quantize=quantize,
        expert_pool=expert_pool,
    )
    config = read_config(checkpoint)
    model = _built(family, config, weights)
    check_keys(checkpoint, config)
    weights.check()
    return model


def header_model(
    checkpoint: Checkpoint,
    *,
    draft_heads: bool = False,
    exact: bool = False,
    quantize: Scheme | None = None,
    expert_pool: ExpertPool | None = None,
    span: Span | None = None,
) -> tuple[Any, HeaderWeights]:
    """Build a checkpoint's model from headers alone; return it with what it asked for.

    Arguments as of `checked_model` and `load_model`; span: the layers that are asked for, if not
    all. Nothing but the headers of the files is read, vectors neither: so the model has its sizes
    and nothing else. Raises as load_model does.
    """
    family = family_of(checkpoint)
    weights = HeaderWeights(
        checkpoint,
        tensor_aliases=getattr(family, "TENSOR_ALIASES", None),
        draft_heads=draft_heads,
        exact=exact,
        quantize=quantize,
        expert_pool=expert_pool,
        span=span,
    )
    config = read_config(checkpoint)
    model = _built(family, config, weights)
    check_keys(checkpoint, config)
    weights.check()
    return model, weights


def load_model(
    checkpoint: Checkpoint,
    *,
    threads: int = 1,
    exact: bool = False,
    quantize: Scheme | None = None,
    draft_heads: bool = False,
    progress: Callable[[int, int], None] | None = None,
    before_packing: Callable[[Model], object] = lambda _: None,
    expert_pool: ExpertPool | None = None,
    span: Span | None = None,
    on_made: OnMade = lambda _name, _made: None,
) -> Model:
    """Load the checkpoint's model, with its weights packed in memory.

    exact: float32 arithmetic on dequantised weights, for parity tests. quantize: the scheme by
    which matrices of floats are quantised, a piece at a time. draft_heads: whether layers that
    guess tokens are loaded, if the checkpoint has them. progress: called with the bytes done
    and all. before_packing: called once with the model, which has its sizes but cannot run yet,
    when all that is left needs no Python, so that other threads can run. expert_pool: where
    mixtures' experts live; all in memory if it is None. span: the layers that are read, if not all.
    on_made: as of Weights. Raises UnsupportedModelError or ModelFileError; then nothing half-loaded
    stays.
    """
    family = family_of(checkpoint)
    tensor_aliases = getattr(family, "TENSOR_ALIASES", None)
    weights = Weights(
        checkpoint,
        tensor_aliases=tensor_aliases,
        threads=threads,
        exact=exact,
        quantize=quantize,
        progress=progress,
        draft_heads=draft_heads,
        expert_pool=expert_pool,
        span=span,
        on_made=on_made,
    )
    config = read_config(checkpoint)
    model: Model = _built(family, config, weights)
    check_keys(checkpoint, config)
    weights.check()
    before_packing(model)
    weights.finish()
    return model
