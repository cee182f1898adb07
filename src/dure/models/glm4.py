"""GLM-4-0414 and GLM-Z1, dense (Zhipu AI 2025): norms before and after attention and MLP, biases of
q, k and v, half of each head rotated in neighbouring pairs, gate and up in one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import SandwichLayer
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "glm4"
TENSOR_ALIASES = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_self_attn_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_mlp_layernorm",
    "blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj",
}


@dataclass(frozen=True)
class Glm4Config:
    """The sizes of one dense GLM-4."""

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

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Glm4Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=2)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(128)
        bias = weights.has("model.layers.0.self_attn.q_proj.bias")
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1.5625e-7),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, fraction=0.5),
            bias=bias if weights.is_gguf else config.flag("attention_bias", True),
        )


class Block(SandwichLayer):
    """One decoder layer: x += norm(attention(norm x)); x += norm(mlp(norm x))."""

    def __init__(self, config: Glm4Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(
            weights,
            name,
            config,
            before=("input_layernorm", "post_attention_layernorm"),
            after=("post_self_attn_layernorm", "post_mlp_layernorm"),
        )
        mlp = f"{name}.mlp"
        parts = {f"{mlp}.{part}_proj.weight": config.intermediate for part in ("gate", "up")}
        weights.split(f"{mlp}.gate_up_proj.weight", parts)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            interleaved=True,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Glm4Config.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
