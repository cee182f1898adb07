"""DeepSeek-V2, V2-Lite and Coder-V2 (DeepSeek-AI 2024, arXiv 2405.04434): multi-head latent
attention (MLA), and routed experts beside shared ones.

GGUF files use the same architecture name for DeepSeek-V3, so its router is here, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.latent_attention import LatentAttention
from dure.layers.moe import SparseMLP
from dure.layers.mtp import MTPNames, load_mtp
from dure.models.deepseek_config import V2, V3, DeepseekConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "deepseek2"
_SIGMOID = 2  # what a GGUF's expert_gating_func calls it; 1 is softmax


def _is_sigmoid(config: Config, weights: Weights, layers: int) -> bool:
    """Check whether a GGUF's router is V3's: by its key, or else by its bias for the choice."""
    named = config.values.get("gating_func")
    if named:
        return bool(named == _SIGMOID)
    bias = "mlp.gate.e_score_correction_bias"
    return any(weights.has(f"model.layers.{layer}.{bias}") for layer in range(layers))


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    ATTENTION: type[LatentAttention] = LatentAttention

    def __init__(self, config: DeepseekConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = self.ATTENTION(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            latent=config.latent,
            plain=config.plain,
            rotated=config.rotated,
            value=config.value,
            query_latent=config.query_latent,
            scale=config.scale,
            bias=config.bias,
            interleaved=config.interleaved,
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
            bias="gate.e_score_correction_bias" if config.corrected else None,
            shared="shared_experts" if config.shared_experts else None,
            shared_intermediate=config.shared_experts * config.expert_intermediate,
            shared_bias=config.mlp_bias,
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    DEFAULTS = V2

    def __init__(self, config: Config, weights: Weights) -> None:
        last = config.integer("num_hidden_layers", high=1024) - 1
        sigmoid = weights.is_gguf and _is_sigmoid(config, weights, last + 1)
        sizes = DeepseekConfig.read(
            config,
            V3 if sigmoid else self.DEFAULTS,
            drafts_counted=weights.has(f"blk.{last}.nextn.eh_proj.weight"),
        )
        if weights.is_gguf and all(sizes.sparse_layers):  # its key may be 0 where nobody wrote it
            dense = "model.layers.{}.mlp.gate_proj.weight".format
            layers = range(sizes.layers)
            sizes = replace(sizes, sparse_layers=tuple(not weights.has(dense(i)) for i in layers))
        self.config = sizes
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
        names = MTPNames.nextn(sizes.layers, is_gguf=weights.is_gguf)
        self.mtp, self.draft_problem = load_mtp(
            weights, sizes, names, lambda found: Block(sizes, found, sizes.layers), self.norm
        )
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
