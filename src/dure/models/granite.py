"""Granite 3 and 4.1 dense (IBM 2024): Llama's block with multipliers of embeddings, residuals,
attention scores and logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "granite"


@dataclass(frozen=True)
class GraniteConfig:
    """The sizes of one Granite model."""

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
    rope: RopeConfig
    bias: bool  # on all four attention projections
    mlp_bias: bool  # on all three of the MLP
    interleaved: bool  # rotated pairs are (2i, 2i + 1)
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_divisor: float

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> GraniteConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
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
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            # GGUF converters permute the rows of q and k for interleaved RoPE.
            interleaved=gguf,
            embedding_scale=config.positive("embedding_multiplier", 1.0),
            residual_scale=config.positive("residual_multiplier", 1.0),
            attention_scale=config.positive(
                "attention_multiplier", head_dim**-0.5 if gguf else 1.0
            ),
            logit_divisor=config.positive("logits_scaling", 1.0),
        )


class Block(DecoderLayer):
    """One decoder layer: x += s attention(norm x); x += s mlp(norm x)."""

    def __init__(self, config: GraniteConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config, residual_scale=config.residual_scale)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            output_bias=config.bias,
            interleaved=config.interleaved,
            scale=config.attention_scale,
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = GraniteConfig.read(config, gguf=weights.is_gguf)
        factors = None  # llama3 RoPE scaling, which GGUF stores as a tensor
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            rope_factors=factors,
            embedding_scale=sizes.embedding_scale,
            logit_divisor=sizes.logit_divisor,
        )
