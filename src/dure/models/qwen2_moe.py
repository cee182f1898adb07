"""Qwen1.5 and Qwen2 mixtures of experts (Yang et al. 2024, arXiv 2407.10671): Qwen2's attention, a
mixture of experts, and a shared expert weighed by a sigmoid gate.
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

GGUF_ARCHITECTURE = "qwen2moe"
TENSOR_ALIASES = {".mlp.shared_expert.": ".mlp.shared_experts."}


@dataclass(frozen=True)
class Qwen2MoeConfig:
    """The sizes of one Qwen2 mixture of experts."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    shared_intermediate: int
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
    windows: tuple[int | None, ...]  # each layer's sliding window, None for full attention
    bias: bool  # on q, k and v
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Qwen2MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        gguf = weights.is_gguf
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=16)
        layers = config.integer("num_hidden_layers", high=1024)
        experts, top_k = config.experts(60, 4)
        intermediate = config.integer("intermediate_size", 5632)
        head_dim = config.head_dim(hidden // heads)
        if not config.values.get("layer_types"):
            config.expect("use_sliding_window", False)  # which layers slide is not agreed upon
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=intermediate,
            # The first GGUF files of Qwen1.5 wrote neither width.
            expert_intermediate=config.integer(
                "moe_intermediate_size", intermediate // top_k if gguf else 1408
            ),
            shared_intermediate=config.integer(
                "shared_expert_intermediate_size", intermediate if gguf else 5632
            ),
            experts=experts,
            experts_per_token=top_k,
            normalize=config.flag("norm_topk_prob", False),
            dense_layers=config.dense_layers(layers),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", False),
            windows=config.windows(layers),
            bias=(
                weights.has("model.layers.0.self_attn.q_proj.bias")
                if gguf  # which has no key for it
                else config.flag("qkv_bias", True)
            ),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Qwen2MoeConfig, weights: Weights, index: int) -> None:
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
            window=config.windows[index],
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
                shared="shared_experts",
                shared_intermediate=config.shared_intermediate,
                shared_gate="shared_expert_gate",
            )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Qwen2MoeConfig.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
