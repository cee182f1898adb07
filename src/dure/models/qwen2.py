"""Qwen2 and Qwen2.5, dense (Yang et al. 2024, arXiv 2407.10671): Llama's block, q, k, v biases."""

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

GGUF_ARCHITECTURE = "qwen2"


@dataclass(frozen=True)
class Qwen2Config:
    """The sizes of one Qwen2 model."""

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
    def read(cls, config: Config) -> Qwen2Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=32)
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
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=config.windows(layers),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Qwen2Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=True,
            window=config.windows[index],
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Qwen2Config.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
