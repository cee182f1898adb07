"""Mistral 7B, Nemo, Small 3, and Devstral Small (Jiang et al. 2023, arXiv 2310.06825): Llama's
block with a window in every layer, which newer models switch off. Their GGUF files are of `llama`.
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

GGUF_ARCHITECTURE = None


@dataclass(frozen=True)
class MistralConfig:
    """The sizes of one Mistral model."""

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
    window: int | None  # tokens that a token sees, itself included

    @classmethod
    def read(cls, config: Config) -> MistralConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        # A window that is null is none; one that is not there is the class's own.
        off = "sliding_window" in config.values and config.values["sliding_window"] is None
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
            window=None if off else config.integer("sliding_window", 4096),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MistralConfig, weights: Weights, index: int) -> None:
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
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MistralConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
