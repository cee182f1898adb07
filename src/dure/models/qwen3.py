"""Qwen3, dense (Yang et al. 2025, arXiv 2505.09388): per-head q and k norms before RoPE.

The text part of Qwen3-VL is the same without windows.
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

GGUF_ARCHITECTURE = "qwen3"
# The text part of Qwen3-VL; the last is GGUF\'s name for it.
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_text", "qwen3vl")


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
    windows: tuple[int | None, ...]  # each layer's sliding window, None for full attention
    bias: bool  # on the attention projections
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Qwen3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=32)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(128)
        sees = str(config.values.get("model_type")).startswith("qwen3_vl")
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(128000 if sees else 32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=(None,) * layers if sees else config.windows(layers),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(
                config.values,
                head_dim,
                default_theta=500_000.0 if sees else 10_000.0,
                partial=config.is_gguf,
            ),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Qwen3Config, weights: Weights, index: int) -> None:
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
            norm_eps=config.norm_eps,
            window=config.windows[index],
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Qwen3Config.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
