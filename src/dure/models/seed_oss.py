"""Seed-OSS (ByteDance 2025): Llama's block with biases of q, k and v."""

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

GGUF_ARCHITECTURE = "seed_oss"


@dataclass(frozen=True)
class SeedOssConfig:
    """The sizes of one Seed-OSS."""

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
    bias: bool  # on q, k and v
    output_bias: bool
    mlp_bias: bool  # on all three of the MLP

    @classmethod
    def read(cls, config: Config, weights: Weights) -> SeedOssConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(128, null=hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(524288),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
            bias=_has("q_proj.bias", "attention_bias", True, config, weights),
            output_bias=_has("o_proj.bias", "attention_out_bias", False, config, weights),
            mlp_bias=config.flag("mlp_bias", False),
        )


def _has(tensor: str, key: str, usual: bool, config: Config, weights: Weights) -> bool:
    """Check whether layers have a bias: by config.json's flag, or by a GGUF's tensors."""
    if weights.is_gguf:
        return weights.has(f"model.layers.0.self_attn.{tensor}")
    return config.flag(key, usual)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: SeedOssConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            output_bias=config.output_bias,
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = SeedOssConfig.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
