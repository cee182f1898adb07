"""Qwen3 mixtures of experts (Yang et al. 2025, arXiv 2505.09388): Qwen3's attention, routed MLP.

The text part of Qwen3-VL is the same without windows, and always normalises experts' weights.
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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "qwen3moe"
# The text part of Qwen3-VL; the last is GGUF\'s name for it.
MODEL_TYPES = ("qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3vlmoe")


@dataclass(frozen=True)
class Qwen3MoeConfig:
    """The sizes of one Qwen3 mixture of experts."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    experts_per_token: int
    normalize: bool  # the chosen experts' weights to a sum of 1
    dense_layers: frozenset[int]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    window: int | None  # every layer's sliding window, None for full; max_window_layers is ignored
    bias: bool  # on the attention projections
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> Qwen3MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.check_activation()
        sees = str(config.values.get("model_type")).startswith("qwen3_vl")
        hidden, (heads, kv_heads) = (
            config.integer("hidden_size"),
            config.heads(kv=16 if sees else 4),
        )
        layers = config.integer("num_hidden_layers", high=1024)
        experts, chosen = config.experts(60, 4) if sees else config.experts(128, 8)
        head_dim = config.head_dim(hidden // heads if sees else 128)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size", 5632 if sees else 6144),
            expert_intermediate=config.integer("moe_intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            # config.json's default is False; GGUF writes it only where it is not the rule, True.
            normalize=sees or config.flag("norm_topk_prob", gguf),
            dense_layers=config.dense_layers(layers),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(128000 if sees else 32768),
            tied=config.flag("tie_word_embeddings", False),
            window=None if sees else config.window(),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(
                config.values,
                head_dim,
                default_theta=500_000.0 if sees else 10_000.0,
                partial=gguf,
            ),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Qwen3MoeConfig, weights: Weights, index: int) -> None:
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
            window=config.window,
        )
        if index in config.dense_layers:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
        else:
            self.mlp = SparseMLP(
                weights,
                f"{name}.mlp",
                hidden=config.hidden,
                intermediate=config.expert_intermediate,
                experts=config.experts,
                routing=Routing(config.experts_per_token, config.normalize),
            )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Qwen3MoeConfig.read(config, gguf=weights.is_gguf)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
