"""Hunyuan, dense: 0.5B to 7B (Tencent 2025): q and k norms after RoPE, whose base is scaled by a
constant alpha (NTK-aware scaling).
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

GGUF_ARCHITECTURE = "hunyuan-dense"
TENSOR_ALIASES = {"query_layernorm": "q_norm", "key_layernorm": "k_norm"}


@dataclass(frozen=True)
class HunyuanV1DenseConfig:
    """The sizes of one dense Hunyuan."""

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
    bias: bool  # on all four attention projections
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> HunyuanV1DenseConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        config.expect("mlp_bias", False)
        config.expect("use_qk_norm", True)
        config.expect("use_cla", False)  # cross-layer attention: layers that share keys and values
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: HunyuanV1DenseConfig, weights: Weights, index: int) -> None:
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
            norm_last=True,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = HunyuanV1DenseConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
