"""MiniMax-M2 (MiniMax 2025): q and k norms over all heads together, partial RoPE (half of each
head), and a sigmoid router with a learned bias.
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
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "minimax-m2"
TENSOR_ALIASES = {
    ".block_sparse_moe.": ".mlp.",
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}


@dataclass(frozen=True)
class MinimaxM2Config:
    """The sizes of one MiniMax-M2."""

    vocab_size: int
    hidden: int
    intermediate: int  # of each expert
    experts: int
    experts_per_token: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> MinimaxM2Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.check_activation()
        config.expect("scoring_func", "sigmoid")
        config.expect("use_routing_bias", True)
        config.expect("use_qk_norm", True)
        config.expect("qk_norm_type", "per_layer")
        config.expect("shared_intermediate_size", 0)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        config.same_for_all("attn_type_list", layers, 1)  # 0 would be linear attention
        experts, chosen = config.experts(256, 8)
        head_dim = config.head_dim(128)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("moe_intermediate_size" if gguf else "intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(196608),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, default_theta=5_000_000.0),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MinimaxM2Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            norm_eps=config.norm_eps,
            norm_whole=True,
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            routing=Routing(config.experts_per_token, normalize=True, score="sigmoid"),
            bias="gate.e_score_correction_bias",
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MinimaxM2Config.read(config, gguf=weights.is_gguf)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
