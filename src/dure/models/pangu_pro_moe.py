"""Pangu Pro MoE 72B-A16B (Tang et al. 2025, arXiv 2505.21411): experts in groups; a token takes the
best expert of each group, so that devices with one group each have the same work.
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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = None
MODEL_TYPES = ("PanguProMoE",)
TENSOR_ALIASES = {".mlp.shared_expert.": ".mlp.shared_experts."}


@dataclass(frozen=True)
class PanguProMoeConfig:
    """The sizes of one Pangu Pro MoE."""

    vocab_size: int
    hidden: int
    expert_intermediate: int
    shared_intermediate: int
    experts: int
    experts_per_token: int  # also the number of groups: each gives one expert
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
    def read(cls, config: Config) -> PanguProMoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("mlp_only_layers", [])
        config.expect("norm_topk_prob", False)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        experts = config.integer("num_experts", high=65536)
        groups = config.integer("num_experts_per_tok", high=experts)
        if experts % groups:
            raise UnsupportedModelError(
                f"{config.source} has {experts} experts, which are no {groups} groups of one size."
            )
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            expert_intermediate=config.integer("moe_intermediate_size"),
            shared_intermediate=config.integer("shared_expert_intermediate_size"),
            experts=experts,
            experts_per_token=groups,
            layers=config.integer("num_hidden_layers", high=1024),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("bias", config.flag("attention_bias", True)),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: PanguProMoeConfig, weights: Weights, index: int) -> None:
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
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.expert_intermediate,
            experts=config.experts,
            routing=Routing(
                config.experts_per_token,
                normalize=False,
                group_rule="each",
                groups=config.experts_per_token,
            ),
            scales="router_scale",
            shared="shared_experts",
            shared_intermediate=config.shared_intermediate,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = PanguProMoeConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
