"""K-EXAONE 236B-A23B (LG AI Research 2026): EXAONE 4's attention, in which only layers with a
window have a rotation, in Llama's block, and DeepSeek-V3's router.
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
from dure.models.windows import have_windows

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "exaone-moe"
TENSOR_ALIASES = {
    ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    "blk.{}.exp_probs_b": "model.layers.{}.mlp.gate.e_score_correction_bias",  # without .bias
}


@dataclass(frozen=True)
class ExaoneMoeConfig:
    """The sizes of one K-EXAONE."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    shared_experts: int  # one MLP, as wide as so many experts
    routing: Routing
    sparse_layers: tuple[bool, ...]  # each layer: a mixture of experts, or a dense MLP
    extra_layers: int  # that only draft, after these: a GGUF's
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]  # of each layer; those without have no rotation

    @classmethod
    def read(cls, config: Config, weights: Weights) -> ExaoneMoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 2)  # in GGUF: 2 is sigmoid
        config.expect("scoring_func", "sigmoid")
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=32)
        layers = config.integer("num_hidden_layers", high=1024)
        extra = config.integer("num_nextn_predict_layers", 0, low=0, high=64)
        if weights.has(f"blk.{layers - 1}.nextn.eh_proj.weight"):  # GGUF counts those that draft
            layers -= min(extra, layers - 1)
        experts = config.integer("num_experts", 64, high=65536)
        head_dim = config.head_dim(hidden // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size", 1024),
            experts=experts,
            shared_experts=config.integer("n_shared_experts", 1, low=0, high=65536),
            routing=best_pairs(config, experts, chosen=8, scale=2.5),
            sparse_layers=config.sparse_layers(layers, 1, drafts=extra),
            extra_layers=extra,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
            windows=_windows(config, layers, extra),
        )

    @property
    def dense_layers(self) -> int:
        """How many layers there are before the first mixture of experts."""
        return self.sparse_layers.index(True) if True in self.sparse_layers else self.layers


def _windows(config: Config, layers: int, drafts: int) -> tuple[int | None, ...]:
    """Return each layer's window: by layer_types, else three layers of four have one."""
    window = config.integer("sliding_window", 128 if config.is_gguf else 4096)
    slides = have_windows(config, layers, 4, drafts=drafts)
    return tuple(window if each else None for each in slides)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: ExaoneMoeConfig, weights: Weights, index: int) -> None:
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
            window=config.windows[index],
        )
        if not config.sparse_layers[index]:
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
        self.config = sizes = ExaoneMoeConfig.read(config, weights)
        factors = None
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights, sizes, lambda index: Block(sizes, weights, index), rope_factors=factors
        )
        self.ropes = [None if window is None else self.rope for window in sizes.windows]
        weights.skip_all("mtp.")  # layers that draft
        for extra in range(sizes.layers, sizes.layers + sizes.extra_layers):
            weights.skip_all(f"model.layers.{extra}.")
            weights.skip_all(f"blk.{extra}.")  # GGUF's tensors that have no name in transformers
