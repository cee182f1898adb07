"""Solar-Open (Upstage 2026): grouped-query attention, and in every layer a mixture of experts with
DeepSeek-V3's router and a shared expert.

GGUF files call it glm4moe, whose layers can be these; glm4_moe reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import UnsupportedModelError
from dure.layers.attention import Attention
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig
from dure.models.deepseek_config import best_pairs

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = None


@dataclass(frozen=True)
class SolarOpenConfig:
    """The sizes of one Solar-Open."""

    vocab_size: int
    hidden: int
    expert_intermediate: int
    experts: int
    shared_experts: int  # one MLP, as wide as so many experts
    routing: Routing
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on q, k and v
    rope: RopeConfig

    dense_layers: int = 0

    @classmethod
    def read(cls, config: Config) -> SolarOpenConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        config.expect("first_k_dense_replace", 0)
        config.expect("use_qk_norm", False)
        config.expect("num_nextn_predict_layers", 0)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        experts = config.integer("num_experts", 128, high=65536)
        head_dim = config.head_dim(128)
        rope = RopeConfig.from_hf(config.values, head_dim, default_theta=1_000_000.0)
        if rope.dim != head_dim:
            raise UnsupportedModelError(
                f"{config.source} rotates {rope.dim} of {head_dim} dimensions of a head "
                "(partial_rotary_factor); dure runs Solar-Open with whole heads rotated."
            )
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            expert_intermediate=config.integer("moe_intermediate_size", 1280),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 1, low=0, high=65536),
            routing=best_pairs(config, experts, chosen=8),
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=rope,
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: SolarOpenConfig, weights: Weights, index: int) -> None:
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
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=config.routing,
            bias="gate.e_score_correction_bias",
            shared="shared_experts" if config.shared_experts else None,
            shared_intermediate=config.shared_experts * config.expert_intermediate,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = SolarOpenConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
