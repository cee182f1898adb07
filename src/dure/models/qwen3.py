"""Qwen3, dense (Yang et al. 2025, arXiv 2505.09388): per-head q and k norms before the rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import Embedding, GatedMLP, RMSNorm, head
from dure.layers.rope import Rope, RopeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, KVCacheSpec
    from dure.layers.basic import Rotation
    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "qwen3"


@dataclass(frozen=True)
class Qwen3Config:
    """The sizes of one Qwen3 model."""

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
    windows: tuple[int | None, ...]  # keys that each layer sees, None for all
    bias: bool  # on the attention projections
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Qwen3Config:
        """The sizes in a checkpoint's config; refuses what this file does not compute."""
        config.expect("hidden_act", "silu")
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(128)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.integer("max_position_embeddings", 32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=config.windows(layers),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim),
        )


class Block:
    """x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Qwen3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        self.input_layernorm = RMSNorm(
            weights, f"{name}.input_layernorm", config.hidden, config.norm_eps
        )
        self.self_attn = Attention(
            weights,
            f"{name}.self_attn",
            index=index,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            output_bias=config.bias,
            norm_eps=config.norm_eps,
            window=config.windows[index],
        )
        self.post_attention_layernorm = RMSNorm(
            weights, f"{name}.post_attention_layernorm", config.hidden, config.norm_eps
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)

    def __call__(
        self, x: Floats, rotation: Rotation, batch: Batch, rows: Ints | None = None
    ) -> Floats:
        """x (n, hidden) after this layer; `rows` are those that come back, if not all do."""
        x = self.self_attn(self.input_layernorm(x), rotation, batch, add=x, rows=rows)
        return self.mlp(self.post_attention_layernorm(x), add=x)


class Model:
    """Tokens to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Qwen3Config.read(config)
        self.vocab_size, self.context_length = sizes.vocab_size, sizes.context_length
        self.rope = Rope(sizes.rope)
        self.embed_tokens = Embedding(weights, "model.embed_tokens", sizes.vocab_size, sizes.hidden)
        self.layers = [Block(sizes, weights, i) for i in range(sizes.layers)]
        self.norm = RMSNorm(weights, "model.norm", sizes.hidden, sizes.norm_eps)
        self.lm_head = head(weights, self.embed_tokens, tied=sizes.tied)

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec, ...]:
        """What each layer keeps of a token."""
        return tuple(layer.self_attn.cache for layer in self.layers)

    def forward(self, batch: Batch) -> Floats:
        """The logits (len(batch.logit_rows), vocab_size) of the rows that want them."""
        x = self.embed_tokens(batch.tokens)
        rotation = self.rope(batch.positions)
        for layer in self.layers[:-1]:
            x = layer(x, rotation, batch)
        x = self.layers[-1](x, rotation, batch, batch.wanted_rows)
        return self.lm_head(self.norm(x))
