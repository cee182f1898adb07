"""EXAONE 3 and 3.5 (LG AI Research 2024, arXiv 2408.03541): Llama's block under its own names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.rope import RopeConfig
from dure.models.config import Config

if TYPE_CHECKING:
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "exaone"
TENSOR_ALIASES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    "transformer.ln_f.": "model.norm.",
    ".attn.attention.": ".self_attn.",
    ".self_attn.out_proj.": ".self_attn.o_proj.",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".mlp.c_fc_0.": ".mlp.gate_proj.",
    ".mlp.c_fc_1.": ".mlp.up_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
}
# What its makers' config.json calls them.
_OWN_KEYS = {
    "num_layers": "num_hidden_layers",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}


@dataclass(frozen=True)
class ExaoneConfig:
    """The sizes of one EXAONE 3."""

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

    @classmethod
    def read(cls, config: Config) -> ExaoneConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config = config.replaced(
            {name: config.values[own] for own, name in _OWN_KEYS.items() if own in config.values}
        )
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
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
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(4096),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=500000.0, partial=config.is_gguf
            ),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: ExaoneConfig, weights: Weights, index: int) -> None:
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
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = ExaoneConfig.read(config)
        factors = None  # llama3 RoPE scaling, which GGUF stores as a tensor
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights, sizes, lambda index: Block(sizes, weights, index), rope_factors=factors
        )
