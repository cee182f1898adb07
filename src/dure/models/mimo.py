"""MiMo-7B (Xiaomi 2025, arXiv 2505.07608): Qwen2's graph, and a multi-token prediction (MTP) layer.

The MTP layer drafts the token after the next one, from the hidden state and the next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dure.errors import UnsupportedModelError
from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP, Linear, RMSNorm
from dure.layers.decoder import Decoder, DecoderLayer
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.batch import Batch, CacheArrays, KVCacheSpec, LayerArray, StateSpec
    from dure.kernels import Activations
    from dure.layers.rope import Rotation
    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = None  # converters write it as a qwen2, without the MTP layer


@dataclass(frozen=True)
class MimoConfig:
    """The sizes of one MiMo."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    windows: tuple[int | None, ...]  # each layer's sliding window, None for full attention
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> MimoConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("num_nextn_predict_layers", 0, 1)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=config.windows(layers),
            rope=RopeConfig.from_hf(config.values, head_dim, default_theta=640_000.0),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MimoConfig, weights: Weights, name: str, window: int | None) -> None:
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=True,
            window=window,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Drafting:
    """Multi-token prediction: block([norm h; norm e] W), with a cache of its own."""

    def __init__(self, config: MimoConfig, weights: Weights) -> None:
        name, hidden = "model.mtp_layers.0", config.hidden
        self.hidden_layernorm = RMSNorm(
            weights, f"{name}.hidden_layernorm", hidden, config.norm_eps
        )
        self.token_layernorm = RMSNorm(weights, f"{name}.token_layernorm", hidden, config.norm_eps)
        self.input_proj = Linear(weights, f"{name}.input_proj", hidden, 2 * hidden)
        self.block = Block(config, weights, name, None)
        self.final_layernorm = RMSNorm(weights, f"{name}.final_layernorm", hidden, config.norm_eps)

    def __call__(
        self, hidden: Floats, embedded: Floats, rotation: Rotation, batch: Batch, cache: LayerArray
    ) -> Activations:
        """Compute the normed rows from which the head makes draft logits, for the wanted rows."""
        both = [self.hidden_layernorm.floats(hidden), self.token_layernorm.floats(embedded)]
        x = self.input_proj(np.concatenate(both, axis=1))
        return self.final_layernorm(self.block(x, rotation, batch, cache, batch.wanted_rows))


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MimoConfig.read(config)
        super().__init__(
            weights,
            sizes,
            lambda i: Block(sizes, weights, f"model.layers.{i}", sizes.windows[i]),
        )
        self.drafting: Drafting | None = None  # fine-tuned checkpoints often lack it
        if weights.has("model.mtp_layers.0.input_proj.weight"):
            self.drafting = Drafting(sizes, weights)

    @property
    def draft_cache_specs(self) -> tuple[KVCacheSpec | StateSpec, ...]:
        """What the MTP layer, if there is one, caches of a token."""
        return () if self.drafting is None else (self.drafting.block.mixer.cache_spec,)

    def draft(self, hidden: Floats, batch: Batch, cache: CacheArrays) -> Floats:
        """Compute logits of the tokens after batch.tokens by the MTP layer alone.

        hidden: (n, hidden), what `run` returned for the tokens before batch.tokens. The positions
        are those of these earlier tokens; so the cache, which has only `draft_cache_specs`, begins
        at 0. Raises UnsupportedModelError if the checkpoint has no MTP layer.
        """
        if self.drafting is None:
            raise UnsupportedModelError("This checkpoint came without MiMo's drafting layer.")
        rotation = self.rope(batch.positions)
        drafted = self.drafting(hidden, self.embed(batch), rotation, batch, cache[0])
        return self.lm_head(drafted)
