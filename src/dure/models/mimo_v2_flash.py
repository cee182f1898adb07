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
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import Rope
from dure.models.mimo_v2_config import LayerSizes, MimoV2FlashConfig

if TYPE_CHECKING:
    from dure.layers.mtp import MultiTokenPrediction
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "mimo2"
MODEL_TYPES = ("mimo_v2",)
TENSOR_ALIASES = {
    ".attention_sink_bias": ".sinks",
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    ".pre_mlp_layernorm.": ".post_attention_layernorm.",  # of layers that draft
}


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(
        self,
        config: MimoV2FlashConfig,
        weights: Weights,
        name: str,
        kind: LayerSizes,
        *,
        sparse: bool,
    ) -> None:
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
        if not sparse:
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
            lambda i: Block(
                sizes, weights, f"model.layers.{i}", sizes.kinds[i], sparse=sizes.sparse[i]
            ),
            ropes=[ropes[kind.rope] for kind in sizes.kinds],
        )
        self.draft_rope = Rope(sizes.draft_kind.rope)
        self.mtp, self.draft_problem = self._draft_head(weights, 0)
        self.later_mtp = self._later_heads(weights) if self.mtp is not None else []
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
        weights.skip_all("model.mtp.")  # of what is incomplete or not wanted

    def _later_heads(self, weights: Weights) -> list[MultiTokenPrediction]:
        """Load the layers that draft after the first, as far as they are there one by one."""
        heads: list[MultiTokenPrediction] = []
        while (head := self._draft_head(weights, 1 + len(heads))[0]) is not None:
            heads.append(head)
        return heads

    def _draft_head(self, weights: Weights, number: int) -> tuple[MultiTokenPrediction | None, str]:
        """Load one of the layers that draft: dense, and with a window as the others."""
        sizes = self.config
        name, norm = f"model.mtp.layers.{number}", "final_layernorm"
        inner = outer = name
        if weights.is_gguf:
            layer = sizes.layers + number
            name, outer = f"model.layers.{layer}", f"blk.{layer}"
            inner, norm = f"{outer}.nextn", "layer_output_norm"
        names = MTPNames(f"{inner}.enorm", f"{inner}.hnorm", f"{inner}.eh_proj", f"{outer}.{norm}")
        return load_mtp(
            weights,
            sizes,
            names,
            lambda found: Block(sizes, found, name, sizes.draft_kind, sparse=False),
            self.norm,
            before_norm=True,
        )
