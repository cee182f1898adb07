"""DeepSeek-V3.2 and V3.2-Exp (DeepSeek-AI 2025, arXiv 2512.02556): V3's layers, whose attention
sees the past tokens that an indexer chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from dure.errors import ModelFileError, UnsupportedModelError
from dure.layers.decoder import Decoder
from dure.layers.indexer import (
    IndexedCache,
    IndexedLatentAttention,
    Indexer,
    IndexerSizes,
    Selections,
)
from dure.layers.mtp import MTPNames, load_mtp
from dure.models import deepseek_v2
from dure.models.deepseek_config import V3, DeepseekConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheArrays, KVCacheSpec, StateSpec
    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "deepseek32"


class Block(deepseek_v2.Block):
    """One decoder layer, with an indexer if `indexer` says its sizes."""

    ATTENTION = IndexedLatentAttention
    mixer: IndexedLatentAttention

    def __init__(
        self, config: DeepseekConfig, weights: Weights, index: int, indexer: IndexerSizes | None
    ) -> None:
        super().__init__(config, weights, index)
        if indexer is not None and config.query_latent is not None:
            self.mixer.indexer = Indexer(
                weights,
                f"model.layers.{index}.self_attn.indexer",
                indexer,
                hidden=config.hidden,
                query_latent=config.query_latent,
                rotated=config.rotated,
            )


class Model(Decoder):
    """The whole model: token ids to logits."""

    DEFAULTS = replace(V3, context_length=163_840, halves=False)
    INDEX_HEADS, INTERLEAVED = 64, False

    def __init__(self, config: Config, weights: Weights) -> None:
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        last = config.integer("num_hidden_layers", high=1024) - 1
        counted = weights.has(f"blk.{last}.nextn.eh_proj.weight")
        sizes = DeepseekConfig.read(config, self.DEFAULTS, drafts_counted=counted)
        self.config, self.indexer = sizes, self._indexer(config, sizes)
        full = self._full_layers(config, weights, sizes)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index, self.indexer if full[index] else None),
        )
        for block in self._blocks:
            block.mixer.chosen = self.indexer.top_k
        names = MTPNames.nextn(sizes.layers, is_gguf=weights.is_gguf)
        self.mtp, self.draft_problem = load_mtp(
            weights,
            sizes,
            names,
            lambda found: Block(sizes, found, sizes.layers, self.indexer),
            self.norm,
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers

    def _indexer(self, config: Config, sizes: DeepseekConfig) -> IndexerSizes:
        """Read the indexers' sizes; refuse what the layer does not compute."""
        config.expect("indexer_rope_interleave", self.INTERLEAVED)
        width = config.integer("index_head_dim", 128, high=65536)
        if width < sizes.rotated:
            raise ModelFileError(
                f"{config.source} has index_head_dim = {width}, less than the {sizes.rotated} "
                "dimensions of an indexer's head that are rotated."
            )
        if sizes.query_latent is None:
            raise UnsupportedModelError(
                f"{config.source} has no q_lora_rank, of which an indexer's queries are made."
            )
        return IndexerSizes(
            heads=config.integer("index_n_heads", self.INDEX_HEADS, high=65536),
            width=width,
            top_k=config.integer("index_topk", 2048),
            interleaved=self.INTERLEAVED,
        )

    def _full_layers(
        self, config: Config, weights: Weights, sizes: DeepseekConfig
    ) -> Sequence[bool]:
        """Return for each layer whether it has an indexer: all have."""
        del config, weights
        return (True,) * sizes.layers

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each block caches, then what each indexer does."""
        indexers = (block.mixer.indexer for block in self._blocks)
        return (*super().kv_cache_specs, *(each.cache_spec for each in indexers if each))

    @property
    def cache_layers(self) -> Sequence[int]:
        """For each of `kv_cache_specs` the block that writes it."""
        blocks = enumerate(self._blocks)
        return (*super().cache_layers, *(i for i, block in blocks if block.mixer.indexer))

    @property
    def cuts(self) -> Sequence[int]:
        """The blocks that choose keys themselves: the others take the choice of one before."""
        return [index for index in super().cuts if self._blocks[index].mixer.indexer]

    @property
    def draft_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What the layer that guesses tokens caches of each, then what its indexer does."""
        if self.mtp is None:
            return ()
        mixer = cast("Block", self.mtp.block).mixer
        return (mixer.cache_spec, *([mixer.indexer.cache_spec] if mixer.indexer else []))

    def draft(
        self, hidden: Floats, batch: Batch, cache: CacheArrays, *, head: int = 0
    ) -> tuple[Floats, Floats]:
        """Guess tokens; see Decoder. cache: the layer's array, then its indexer's."""
        stored: Any = cache
        if self.mtp is not None:
            stored = (IndexedCache(cache[0], cache[1], Selections()),)
        return super().draft(hidden, batch, stored, head=head)

    @property
    def _blocks(self) -> Sequence[Block]:
        return cast("Sequence[Block]", self.layers)

    def run(
        self,
        x: Floats,
        batch: Batch,
        cache: CacheArrays,
        *,
        first: int = 0,
        last: int | None = None,
        rows: Ints | None = None,
    ) -> Floats:
        """Run blocks; see Decoder. cache: an array a block, then one an indexer."""
        selections, keys = Selections(), iter(cache[len(self.layers) :])
        caches: list[Any] = [
            IndexedCache(cache[i], next(keys) if block.mixer.indexer else None, selections)
            for i, block in enumerate(self._blocks)
        ]
        return super().run(x, batch, caches, first=first, last=last, rows=rows)
