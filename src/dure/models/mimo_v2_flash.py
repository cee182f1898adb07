"""MiMo-V2-Flash (Xiaomi 2025, arXiv 2601.02780): windows with sinks in five layers of six, values
narrower than keys, and DeepSeek-V3's router without a shared expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import SparseMLP
from dure.layers.rope import Rope
from dure.models.mimo_v2_config import MimoV2FlashConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "mimo2"
MODEL_TYPES = ("mimo_v2",)
TENSOR_ALIASES = {
    ".attention_sink_bias": ".sinks",
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
}


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: MimoV2FlashConfig, weights: Weights, index: int) -> None:
        name, kind = f"model.layers.{index}", config.kinds[index]
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=kind.kv_heads,
            head_dim=config.head_dim,
            bias=config.bias,
            window=kind.window,
            value_dim=config.value_dim,
            value_scale=config.value_scale,
            sinks=kind.sinks,
        )
        if not config.sparse[index]:
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
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = MimoV2FlashConfig.read(config, weights)
        ropes = {each: Rope(each) for each in {kind.rope for kind in sizes.kinds}}
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            ropes=[ropes[kind.rope] for kind in sizes.kinds],
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
        weights.skip_all("model.mtp.")  # layers that only draft: transformers has none to hold to
