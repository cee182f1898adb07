"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): norms of q and k over all heads together, and
in every layer a mixture whose shares are a softmax over all experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "olmoe"


@dataclass(frozen=True)
class OlmoeConfig:
    """The sizes of one OLMoE."""

    vocab_size: int
    hidden: int
    intermediate: int  # of each expert
    experts: int
    experts_per_token: int
    normalize: bool  # the chosen experts' weights to a sum of 1
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
    def read(cls, config: Config) -> OlmoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.check_activation()
        config.expect("clip_qkv")
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        experts, chosen = config.experts(64, 8)
        head_dim = config.head_dim(hidden // heads)
        config.expect("head_dim", hidden // heads)  # as wide as the norms are
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            normalize=config.flag("norm_topk_prob", False),
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(4096),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mixture(norm x)."""

    def __init__(self, config: OlmoeConfig, weights: Weights, index: int) -> None:
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
            norm_whole=True,
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            routing=Routing(config.experts_per_token, config.normalize),
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = OlmoeConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
