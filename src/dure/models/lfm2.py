"""LFM2 and LFM2.5 (Liquid AI 2025, arXiv 2511.23404): short convolutions, attention in a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import ModelFileError
from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.rope import RopeConfig
from dure.layers.short_conv import GatedShortConv

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "lfm2"
TENSOR_ALIASES = {
    ".operator_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    "model.embedding_norm.": "model.norm.",
    "token_embd_norm.": "model.norm.",
    ".self_attn.out_proj.": ".self_attn.o_proj.",
    ".q_layernorm.": ".q_norm.",
    ".k_layernorm.": ".k_norm.",
    ".feed_forward.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


@dataclass(frozen=True)
class Lfm2Config:
    """The sizes of one LFM2."""

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
    kernel: int  # tokens that a convolution sees
    conv_bias: bool
    convolutions: tuple[bool, ...]  # whether each layer is one

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Lfm2Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=_intermediate(config, gguf=weights.is_gguf),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps" if config.is_gguf else "norm_eps", 1e-5),
            context_length=config.context_length(128000),
            tied=config.flag("tie_embedding", config.flag("tie_word_embeddings", True)),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=1000000.0, partial=config.is_gguf
            ),
            kernel=config.integer("conv_L_cache", 3, low=2, high=4096),
            conv_bias=config.flag("conv_bias", False),
            convolutions=_convolutions(config, layers),
        )


def _convolutions(config: Config, layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it is a convolution: by layer_types, else full_attn_idxs."""
    kinds = config.layer_kinds(layers, "conv", "full_attention")
    if kinds is not None:
        return tuple(kind == "conv" for kind in kinds)
    if config.values.get("full_attn_idxs") is None:
        return (False,) * layers
    attending = config.integers("full_attn_idxs")
    return tuple(layer not in attending for layer in range(layers))


def _intermediate(config: Config, *, gguf: bool) -> int:
    """Read the MLP's width, which config.json's files say before it is adjusted."""
    width = config.integer("block_ff_dim", config.integer("intermediate_size", 12288))
    if gguf or not config.flag("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if config.values.get("block_ffn_dim_multiplier", 1.0) is not None:
        wide = config.positive("block_ffn_dim_multiplier", 1.0) * width
        if wide >= 1 << 31:
            raise ModelFileError(
                f"block_ffn_dim_multiplier in the config makes MLPs {wide:.3g} wide; "
                "fewer than 2^31 can be."
            )
        width = int(wide)
        multiple = config.integer("block_multiple_of", 256)
        width = -(-width // multiple) * multiple
    return width


class Block(DecoderLayer):
    """One decoder layer: x += mixer(norm x); x += mlp(norm x)."""

    def __init__(self, config: Lfm2Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        if config.convolutions[index]:
            self.mixer = GatedShortConv(
                weights,
                f"{name}.conv",
                hidden=config.hidden,
                kernel=config.kernel,
                bias=config.conv_bias,
            )
        else:
            self.mixer = Attention(
                weights,
                f"{name}.self_attn",
                hidden=config.hidden,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                norm_eps=config.norm_eps,
            )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Lfm2Config.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
