"""Hunyuan A13B (Tencent 2025): the dense Hunyuan's attention, and in every layer a mixture of
experts with one shared expert.
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

GGUF_ARCHITECTURE = "hunyuan-moe"
TENSOR_ALIASES = {
    "query_layernorm": "q_norm",
    "key_layernorm": "k_norm",
    ".mlp.gate.wg.": ".mlp.gate.",
    ".mlp.shared_mlp.": ".mlp.shared_experts.",
}


@dataclass(frozen=True)
class HunyuanV1MoeConfig:
    """The sizes of one Hunyuan mixture of experts."""

    vocab_size: int
    hidden: int
    intermediate: int  # of each expert, and of the shared one
    experts: int
    experts_per_token: tuple[int, ...]  # of each layer
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
    def read(cls, config: Config) -> HunyuanV1MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.check_activation()
        config.expect("mlp_bias", False)
        config.expect("use_qk_norm", True)
        config.expect("use_cla", False)  # cross-layer attention: layers that share keys and values
        config.expect("moe_layer_num_skipped", 0)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        config.same_for_all("num_shared_expert", layers, 1, high=1)
        one = None if config.is_gguf else 1
        experts = config.same_for_all("num_experts", layers, one, high=65536)
        intermediate = config.integer("intermediate_size")
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.same_for_all("moe_intermediate_size", layers, intermediate),
            experts=experts,
            experts_per_token=config.of_each_layer(
                "num_experts_per_tok", layers, one, high=experts
            ),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
        )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: HunyuanV1MoeConfig, weights: Weights, index: int) -> None:
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
            norm_last=True,
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            routing=Routing(config.experts_per_token[index], normalize=True),
            shared="shared_experts",
            shared_intermediate=config.intermediate,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = HunyuanV1MoeConfig.read(config)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
