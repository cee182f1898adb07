"""GLM-4.5 and 4.6 mixtures of experts (Zhipu AI 2025, arXiv 2508.06471): grouped-query attention
with biases and partial RoPE (half of each head), and DeepSeek-V3's router.
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
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "glm4moe"


@dataclass(frozen=True)
class Glm4MoeConfig:
    """The sizes of one GLM-4.5."""

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
    head_norms: bool  # q and k of each head are normed
    context_length: int
    tied: bool
    bias: bool  # on q, k and v
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Glm4MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        gguf = weights.is_gguf
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if gguf:  # its block_count includes the multi-token prediction layers
            layers -= min(extra, layers - 1)
        experts, chosen = config.experts(128, 8)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size", 10944),
            expert_intermediate=config.integer("moe_intermediate_size", 1408),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 1, low=0, high=65536),
            routing=best_pairs(config, experts, chosen=chosen),
            dense_layers=config.integer("first_k_dense_replace", 1, low=0),
            extra_layers=extra,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            head_norms=_has("self_attn.q_norm.weight", "use_qk_norm", config, weights),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=_has("self_attn.q_proj.bias", "attention_bias", config, weights),
            rope=RopeConfig.from_hf(config.values, head_dim, fraction=0.5),
        )


def _has(tensor: str, key: str, config: Config, weights: Weights) -> bool:
    """Check whether layers have a tensor: by config.json's flag, or by a GGUF's tensors."""
    if weights.is_gguf:
        return weights.has(f"model.layers.0.{tensor}")
    return config.flag(key, False)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Glm4MoeConfig, weights: Weights, index: int) -> None:
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
            norm_eps=config.norm_eps if config.head_norms else None,
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
        self.config = sizes = Glm4MoeConfig.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        names = MTPNames.nextn(sizes.layers, is_gguf=weights.is_gguf)
        self.mtp, self.draft_problem = load_mtp(
            weights, sizes, names, lambda found: Block(sizes, found, sizes.layers), self.norm
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
