"""Mixtral 8x7B and 8x22B (Jiang et al. 2024, arXiv 2401.04088): Mistral's block, with a mixture of
experts in every layer. Their GGUF files are of `llama`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = None
TENSOR_ALIASES = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


@dataclass(frozen=True)
class MixtralConfig:
    """The sizes of one Mixtral."""

    vocab_size: int
    hidden: int
    intermediate: int  # of each expert
    experts: int
    experts_per_token: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig
    window: int | None  # tokens that a token sees, itself included

    @classmethod
    def read(cls, config: Config) -> MixtralConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        experts, chosen = config.experts(8, 2)
        head_dim = config.head_dim(hidden // heads)
        sliding = config.values.get("sliding_window") is not None
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=1_000_000.0, partial=config.is_gguf
            ),
            window=config.integer("sliding_window") if sliding else None,
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mixture(norm x)."""

    def __init__(self, config: MixtralConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            window=config.window,
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            routing=Routing(config.experts_per_token, normalize=True),
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MixtralConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
