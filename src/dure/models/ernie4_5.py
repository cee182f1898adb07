"""ERNIE 4.5, dense: 0.3B (Baidu 2025, ERNIE 4.5 technical report): Llama's block with interleaved
RoPE, which rotates neighbouring dimensions as pairs.
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
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "ernie4_5"


@dataclass(frozen=True)
class Ernie45Config:
    """The sizes of one dense ERNIE 4.5."""

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
    bias: bool  # on all projections of attention and MLP
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Ernie45Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=2)
        head_dim = config.head_dim(128, null=hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", True),
            bias=config.flag("use_bias", False),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=500_000.0, partial=config.is_gguf
            ),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Ernie45Config, weights: Weights, index: int) -> None:
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
            output_bias=config.bias,
            interleaved=True,  # pairs (2i, 2i + 1), in config.json's files and in GGUF
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Ernie45Config.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
