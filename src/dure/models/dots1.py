"""dots.llm1 (rednote-hilab 2025, arXiv 2506.05767): Qwen3's attention, with norms of each head, and
DeepSeek-V3's router without groups.
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
from dure.models.deepseek_config import best_pairs

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "dots1"


@dataclass(frozen=True)
class Dots1Config:
    """The sizes of one dots.llm1."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int  # one MLP, as wide as so many experts
    routing: Routing
    dense_layers: int  # the first layers, which have a dense MLP
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on all four attention projections
    windows: tuple[int | None, ...]  # each layer's sliding window, None for full attention
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Dots1Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.expect("scoring_func", "noaux_tc", "sigmoid")  # the makers write the first
        config.expect("topk_method", "noaux_tc")
        config.expect("moe_layer_freq", 1)
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=32)
        layers = config.integer("num_hidden_layers", high=1024)
        experts = config.integer("num_experts", high=65536)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size", 10944),
            expert_intermediate=config.integer("moe_intermediate_size", 1408),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 0, low=0, high=65536),
            routing=best_pairs(config, experts, normalize=False),
            dense_layers=config.integer("first_k_dense_replace", 0, low=0),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            windows=(None,) * layers if config.is_gguf else _windows(config, layers),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window; there is no flag beside it, and 62 layers come before one."""
    off = "sliding_window" in config.values and config.values["sliding_window"] is None
    window = None if off else config.integer("sliding_window", 4096)
    return config.windows_of(layers, window, usual_first=62)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Dots1Config, weights: Weights, index: int) -> None:
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
            window=config.windows[index],
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
        self.config = sizes = Dots1Config.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
