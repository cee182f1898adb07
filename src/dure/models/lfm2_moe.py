"""LFM2 and LFM2.5 mixtures of experts, 8B-A1B and 24B-A2B (Liquid AI 2025, arXiv 2511.23404): short
convolutions, attention in a few layers, and a router like DeepSeek-V3's without groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig
from dure.layers.short_conv import GatedShortConv

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "lfm2moe"
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
    ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias",
}


@dataclass(frozen=True)
class Lfm2MoeConfig:
    """The sizes of one LFM2 mixture of experts."""

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
    experts: int
    expert_intermediate: int
    expert_bias: bool  # of the choice of experts
    dense_layers: int  # the first layers, which have a dense MLP
    routing: Routing

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Lfm2MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        experts, chosen = config.experts(32, 4)
        dense = _dense_layers(config, gguf=weights.is_gguf)
        biased = weights.has(f"model.layers.{dense}.mlp.gate.e_score_correction_bias")
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size", 7168),
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
            experts=experts,
            expert_intermediate=config.integer("moe_intermediate_size", 1792),
            expert_bias=biased if weights.is_gguf else config.flag("use_expert_bias", True),
            dense_layers=dense,
            routing=Routing(
                top_k=chosen,
                normalize=config.flag("norm_topk_prob", True),
                score="sigmoid",
                scale=config.positive("routed_scaling_factor", 1.0),
            ),
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


def _dense_layers(config: Config, *, gguf: bool) -> int:
    """Read how many layers in front have a dense MLP."""
    return config.integer("first_k_dense_replace" if gguf else "num_dense_layers", 2, low=0)


class Block(DecoderLayer):
    """One decoder layer: x += mixer(norm x); x += mlp(norm x)."""

    def __init__(self, config: Lfm2MoeConfig, weights: Weights, index: int) -> None:
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
        if index < config.dense_layers:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
            return
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=config.routing,
            bias="gate.e_score_correction_bias" if config.expert_bias else None,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Lfm2MoeConfig.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
