"""Hy3 (Tencent 2026): grouped-query attention with norms of each head before the rotation, and
DeepSeek-V3's router without groups; the first layer is dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import RopeConfig
from dure.models.deepseek_config import best_pairs

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "hy_v3"
TENSOR_ALIASES = {
    ".mlp.router.gate.": ".mlp.gate.",
    ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias",
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    ".mlp.shared_mlp.": ".mlp.shared_experts.",
    "blk.{}.exp_probs_b": "model.layers.{}.mlp.gate.e_score_correction_bias",  # without .bias
}


@dataclass(frozen=True)
class HyV3Config:
    """The sizes of one Hy3."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int  # one MLP, as wide as so many experts
    routing: Routing
    sparse_layers: tuple[bool, ...]  # each layer: a mixture of experts, or a dense MLP
    extra_layers: int  # multi-token prediction layers after the last: not run
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on all four attention projections
    mlp_bias: bool  # on all three of dense layers' MLP, and of the shared expert
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, weights: Weights) -> HyV3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.check_activation()
        config.expect("qk_norm", True)
        config.expect("route_norm", True)
        config.expect("moe_router_use_sigmoid", True)
        config.expect("moe_router_enable_expert_bias", True)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if MTPNames.nextn(layers, is_gguf=False).are_in(weights):  # which not every config says
            extra = max(extra, 1)
        if weights.has(f"blk.{layers - 1}.nextn.eh_proj.weight"):  # GGUF counts those that draft
            layers -= min(extra, layers - 1)
        experts = config.integer("num_experts", 192, high=65536)
        head_dim = config.head_dim(128)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size", 13312),
            expert_intermediate=config.integer("moe_intermediate_size", 1536),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 1, low=0, high=65536),
            routing=best_pairs(config, experts, chosen=8, scale=2.826),
            sparse_layers=config.sparse_layers(layers, 1, drafts=extra),
            extra_layers=extra,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            rope=RopeConfig.from_hf(
                config.values, head_dim, partial=config.is_gguf, default_theta=11_158_840.0
            ),
        )

    @property
    def dense_layers(self) -> int:
        """How many layers there are before the first mixture of experts."""
        return self.sparse_layers.index(True) if True in self.sparse_layers else self.layers


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: HyV3Config, weights: Weights, index: int) -> None:
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
        )
        if index < config.layers and not config.sparse_layers[index]:
            self.mlp = GatedMLP(
                weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
            )
            return
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
            shared_bias=config.mlp_bias,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = HyV3Config.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        names = MTPNames.nextn(sizes.layers, is_gguf=weights.is_gguf)
        self.mtp, self.draft_problem = load_mtp(
            weights, sizes, names, lambda found: Block(sizes, found, sizes.layers), self.norm
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
