"""Ling-2.0 and Ring-2.0, mini, flash and 1T (inclusionAI 2025, arXiv 2510.22115): grouped-query
attention with norms of each head and partial RoPE (half of each head), and DeepSeek-V3's router.
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

GGUF_ARCHITECTURE = "bailingmoe2"
TENSOR_ALIASES = {
    "model.word_embeddings.": "model.embed_tokens.",
    ".attention.query_key_value.": ".self_attn.qkv_proj.",
    ".attention.query_layernorm.": ".self_attn.q_norm.",
    ".attention.key_layernorm.": ".self_attn.k_norm.",
    ".attention.dense.": ".self_attn.o_proj.",
    ".mlp.gate.expert_bias": ".mlp.gate.e_score_correction_bias",
    "blk.{}.attn_qkv": "model.layers.{}.self_attn.qkv_proj",
}


@dataclass(frozen=True)
class BailingMoeV2Config:
    """The sizes of one Ling-2.0."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int  # one MLP, as wide as so many experts
    routing: Routing
    dense_layers: int  # the first layers, which have a dense MLP
    extra_layers: int  # multi-token prediction layers after the last: not run
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on q, k and v
    output_bias: bool
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, weights: Weights) -> BailingMoeV2Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        gguf = config.is_gguf
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.check_activation()
        config.expect("score_function", "sigmoid")
        config.expect("use_qk_norm", True)
        config.expect("use_rmsnorm", True)
        config.expect("norm_topk_prob", True)
        config.expect("moe_router_enable_expert_bias", True)
        config.expect("use_sliding_window", False)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if weights.has(f"blk.{layers - 1}.nextn.eh_proj.weight"):  # GGUF counts those that draft
            layers -= min(extra, layers - 1)
        experts = config.integer("num_experts", high=65536)
        width = config.integer("moe_intermediate_size")
        shared = config.integer("n_shared_experts", 0, low=0, high=65536)
        config.expect("moe_shared_expert_intermediate_size", width)
        head_dim = config.head_dim(hidden // heads)
        bias = weights.has("model.layers.0.self_attn.q_proj.bias")
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=width,
            experts=experts,
            shared_experts=shared,
            routing=best_pairs(config, experts, groups=(8, 4) if not gguf else (1, 1), scale=2.5),
            dense_layers=config.integer("first_k_dense_replace", 0, low=0),
            extra_layers=extra,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            bias=bias if gguf else config.flag("use_qkv_bias", False),
            output_bias=config.flag("attention_bias" if gguf else "use_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim, default_theta=600_000.0, fraction=0.5),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: BailingMoeV2Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        rows = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        for kind in ("weight", "bias"):
            weights.split(
                f"{name}.self_attn.qkv_proj.{kind}",
                {
                    f"{name}.self_attn.{part}_proj.{kind}": heads * config.head_dim
                    for part, heads in rows.items()
                },
            )
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            output_bias=config.output_bias,
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
            bias="gate.e_score_correction_bias",
            shared="shared_experts" if config.shared_experts else None,
            shared_intermediate=config.shared_experts * config.expert_intermediate,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = BailingMoeV2Config.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        name = f"blk.{sizes.layers}" if weights.is_gguf else f"model.layers.{sizes.layers}"
        inner = f"{name}.nextn" if weights.is_gguf else name
        norm = "layer_output_norm" if weights.is_gguf else "final_layernorm"
        names = MTPNames(f"{inner}.enorm", f"{inner}.hnorm", f"{inner}.eh_proj", f"{name}.{norm}")
        self.mtp, self.draft_problem = load_mtp(
            weights, sizes, names, lambda found: Block(sizes, found, sizes.layers), self.norm
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
