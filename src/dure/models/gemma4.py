"""Gemma 4 (Google 2026): windows beside full attention with wider heads, keys and values that the
last layers share, an embedding for every layer, and experts beside a dense MLP.

Of what also sees and hears, this is the text part. Source: transformers 5.24, `modeling_gemma4.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dure import kernels
from dure.layers.basic import GatedMLP, RMSNorm
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import SandwichLayer
from dure.layers.layer_embeddings import LayerEmbedding, LayerEmbeddings
from dure.layers.moe import SparseMLP
from dure.layers.rope import Rope
from dure.layers.shared_attention import NormedAttention
from dure.models.gemma4_config import Gemma4Config, LayerSizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dure.batch import Batch, CacheArrays, KVCacheSpec, LayerArray, StateSpec
    from dure.layers.rope import Rotation
    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "gemma4"
MODEL_TYPES = ("gemma4_text", "gemma4_unified", "gemma4_unified_text")
TENSOR_ALIASES = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "blk.{}.pre_ffw_norm_2": "model.layers.{}.pre_feedforward_layernorm_2",
    "blk.{}.post_ffw_norm_1": "model.layers.{}.post_feedforward_layernorm_1",
    "blk.{}.post_ffw_norm_2": "model.layers.{}.post_feedforward_layernorm_2",
    "blk.{}.layer_output_scale.weight": "model.layers.{}.layer_scalar",
    "blk.{}.inp_gate": "model.layers.{}.per_layer_input_gate",
    "blk.{}.proj": "model.layers.{}.per_layer_projection",
    "blk.{}.post_norm": "model.layers.{}.post_per_layer_input_norm",
    "per_layer_token_embd.": "model.embed_tokens_per_layer.",
    "per_layer_model_proj.": "model.per_layer_model_projection.",
    "per_layer_proj_norm.": "model.per_layer_projection_norm.",
    ".router.proj.": ".mlp.gate.",
    ".router.scale": ".mlp.gate.scale",
    ".router.per_expert_scale": ".mlp.experts.down_proj.scale",
    ".experts.": ".mlp.experts.",
    ".mlp.mlp.": ".mlp.",
}


@dataclass(frozen=True)
class LayerInput:
    """What a layer gets beside the hidden states."""

    cache: LayerArray  # its own, or that of the layer whose keys and values it shares
    own: Floats | None  # its rows of the per-layer embeddings (n, width)


class Block(SandwichLayer):
    """One decoder layer: attention, MLP (and experts beside it), its own embedding, a scale."""

    def __init__(
        self, config: Gemma4Config, sizes: LayerSizes, weights: Weights, index: int
    ) -> None:
        name = f"model.layers.{index}"
        super().__init__(
            weights,
            name,
            config,
            before=("input_layernorm", "pre_feedforward_layernorm"),
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
        )
        attention = f"{name}.self_attn"
        self.mixer = NormedAttention(
            weights,
            attention,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            norm_eps=config.norm_eps,
            window=sizes.window,
            bias=config.bias,
            values_are_keys=sizes.values_are_keys,
            shared=sizes.source != index,
        )
        if sizes.source != index:  # makers' files may have what is not used
            for part in ("k_proj.", "v_proj.", "k_norm."):
                weights.skip_all(f"{attention}.{part}")
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, sizes.intermediate, gelu=True)
        self.experts = Experts(config, weights, name) if config.routing is not None else None
        self.own = (
            LayerEmbedding(weights, name, config.hidden, config.own_width, config.norm_eps)
            if config.own_width
            else None
        )
        self.scale = weights.vector(f"{name}.layer_scalar", 1)

    def __call__(
        self,
        x: Floats,
        rotation: Rotation | None,
        batch: Batch,
        cache: Any,
        rows: Ints | None = None,
    ) -> Floats:
        """Return x (n, hidden) after this block, or of `rows` (m,); cache: a `LayerInput`."""
        x = super().__call__(x, rotation, batch, cache.cache, rows)
        if self.own is not None:
            x = self.own(x, cache.own if rows is None else cache.own[rows])
        return x * self.scale

    def feed_forward(self, x: Floats) -> Floats:
        """Return the dense MLP of x (n, hidden), and the experts' beside it if there are any."""
        dense = super().feed_forward(x)
        return dense if self.experts is None else self.experts(x, dense)


class Experts:
    """The mixture beside a dense MLP: both see x, each behind norms of its own, and are added."""

    def __init__(self, config: Gemma4Config, weights: Weights, name: str) -> None:
        assert config.routing is not None
        hidden, self._eps = config.hidden, config.norm_eps
        self.mixture = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=config.routing,
            scales="experts.down_proj.scale",
            gelu=True,
        )
        self.before, self.after, self.after_dense = (
            RMSNorm(weights, f"{name}.{where}_feedforward_layernorm_{branch}", hidden, self._eps)
            for where, branch in (("pre", 2), ("post", 2), ("post", 1))
        )
        # The router norms x itself, without a weight, then scales it.
        self._scale = weights.vector(f"{name}.mlp.gate.scale", hidden) * np.float32(hidden**-0.5)

    def __call__(self, x: Floats, dense: Floats) -> Floats:
        """Return the sum of both branches, (n, hidden); dense: the MLP of x."""
        seen = kernels.Activations(x, self._scale, self._eps)
        mixed = self.mixture(self.before(x), chosen_by=seen)
        return self.after_dense.floats(dense) + self.after.floats(mixed)


class Model(Decoder):
    """The whole model: token ids to logits."""

    layers: Sequence[Block]

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Gemma4Config.read(config, weights.has)
        kinds = sizes.kinds
        given = weights.has("rope_freqs.weight")  # GGUF: which frequencies of full attention turn
        factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2) if given else None
        ropes = {each: Rope(each) for each in {kind.rope for kind in kinds if kind.window}}
        full = Rope(sizes.rope, factors=factors)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, kinds[index], weights, index),
            ropes=[ropes[kind.rope] if kind.window else full for kind in kinds],
            embedding_scale=math.sqrt(sizes.hidden),
            logit_cap=sizes.logit_cap,
        )
        self._own = None
        if sizes.own_width:
            self._own = LayerEmbeddings(
                weights,
                layers=sizes.layers,
                width=sizes.own_width,
                rows=sizes.own_rows,
                hidden=sizes.hidden,
                norm_eps=sizes.norm_eps,
            )
        owners = self._owners = [at for at, kind in enumerate(kinds) if kind.source == at]
        self._caches = [owners.index(kind.source) for kind in kinds]

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What each block caches that has keys and values of its own."""
        return tuple(self.layers[index].mixer.cache_spec for index in self._owners)

    @property
    def cache_layers(self) -> Sequence[int]:
        """For each of `kv_cache_specs` the block that writes it."""
        return self._owners

    @property
    def cuts(self) -> Sequence[int]:
        """None if each block has an embedding of the tokens; else where no later one shares."""
        sources = [kind.source for kind in self.config.kinds]
        cuts = super().cuts if self._own is None else ()
        return [index for index in cuts if min(sources[index:]) >= index]

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
        """Run blocks; see Decoder. cache: an array a block that has keys and values of its own.

        Behind the last of these, only `rows` are computed.
        """
        stop = len(self.layers) if last is None else last
        shared = self._owners[-1] + 1  # from here on nothing is cached
        if rows is None or not first < shared < stop:
            inputs: Any = self._inputs(batch, cache)
            return super().run(x, batch, inputs, first=first, last=stop, rows=rows)
        inputs = self._inputs(batch, cache)
        x = super().run(x, batch, inputs, first=first, last=shared, rows=rows)
        if len(rows) == 0:
            return x
        few = replace(
            batch,
            tokens=batch.tokens[rows],
            positions=batch.positions[rows],
            sequences=batch.sequences[rows],
            logit_rows=np.arange(len(rows), dtype=np.int32),
        )
        owns = [each.own if each.own is None else each.own[rows] for each in inputs]
        inputs = [replace(each, own=own) for each, own in zip(inputs, owns, strict=True)]
        return super().run(x, few, inputs, first=shared, last=stop)

    def _inputs(self, batch: Batch, cache: CacheArrays) -> list[LayerInput]:
        """Make what each block gets beside the hidden states."""
        if self._own is None:
            return [LayerInput(cache[place], None) for place in self._caches]
        owns = self._own(batch.tokens, self.embed(batch))
        return [
            LayerInput(cache[place], owns[:, index]) for index, place in enumerate(self._caches)
        ]
