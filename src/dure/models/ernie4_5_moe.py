"""ERNIE 4.5 mixtures of experts: 21B-A3B, 300B-A47B (Baidu 2025, ERNIE 4.5 technical report): a
learned bias counts for the choice of experts and not for their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import UnsupportedModelError
from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.mtp import MTPNames, load_mtp
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.models.config import Config
    from dure.weights.loader import Weights

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]

GGUF_ARCHITECTURE = "ernie4_5-moe"
TENSOR_ALIASES = {".mlp.moe_statics.": ".mlp.gate.", ".mlp.gate.moe_statics.": ".mlp.gate."}


@dataclass(frozen=True)
class Ernie45MoeConfig:
    """The sizes of one ERNIE 4.5 mixture of experts."""

    vocab_size: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    experts_per_token: int
    shared_experts: int  # one MLP, as wide as so many experts
    sparse_layers: frozenset[int]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on all projections but those of routed experts, and on the head's
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Ernie45MoeConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("gating_func", 0, 1)  # in GGUF: 0 is unset, 1 softmax
        config.check_activation()
        layers, (heads, kv_heads) = (
            config.integer("num_hidden_layers", high=1024),
            config.heads(kv=4),
        )
        experts, chosen = config.experts(64, 6)
        _check_least_sum(config, chosen / experts)
        head_dim = config.head_dim(config.integer("hidden_size") // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            shared_experts=config.integer("n_shared_experts", 2, low=0, high=65536),
            sparse_layers=_sparse_layers(config, layers),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", True),
            bias=config.flag("use_bias", False),
            rope=RopeConfig.from_hf(
                config.values, head_dim, default_theta=500_000.0, partial=config.is_gguf
            ),
        )


def _check_least_sum(config: Config, least: float) -> None:
    """Refuse a least sum of the chosen experts' shares that would count, as `least` is theirs."""
    if config.values.get("moe_norm_min") == 0:
        return
    if config.positive("moe_norm_min", 1e-12) > least:
        raise UnsupportedModelError(
            f"{config.source} has moe_norm_min = {config.values['moe_norm_min']}, above the least "
            f"sum of shares, {least:.3g}: they would not be normalised, which dure does not run."
        )


def _sparse_layers(config: Config, layers: int) -> frozenset[int]:
    """Return the layers that have a mixture of experts."""
    step = config.integer("moe_layer_interval", 1)
    first = config.integer("first_k_dense_replace", 1, low=0)
    last = config.integer("moe_layer_end_index", -1, low=-1)
    end = layers if last == -1 else min(last + 1, layers)
    return frozenset(i for i in range(first, end) if (i + 1) % step == 0)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(
        self, config: Ernie45MoeConfig, weights: Weights, name: str, *, sparse: bool
    ) -> None:
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
            interleaved=True,  # pairs (2i, 2i + 1), in config.json's files and in GGUF
        )
        if not sparse:
            self.mlp = GatedMLP(
                weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.bias
            )
        else:
            self.mlp = SparseMLP(
                weights,
                f"{name}.mlp",
                hidden=config.hidden,
                intermediate=config.expert_intermediate,
                experts=config.experts,
                routing=Routing(config.experts_per_token, normalize=True),
                bias="gate.e_score_correction_bias",
                shared="shared_experts" if config.shared_experts else None,
                shared_intermediate=config.shared_experts * config.expert_intermediate,
                shared_bias=config.bias,
            )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Ernie45MoeConfig.read(config)

        def make_layer(index: int) -> Block:
            name = f"model.layers.{index}"
            return Block(sizes, weights, name, sparse=index in sizes.sparse_layers)

        super().__init__(weights, sizes, make_layer, head_bias=sizes.bias)
        names = MTPNames(
            "model.mtp_emb_norm.0", "model.mtp_hidden_norm.0", "model.mtp_linear_proj.0", None
        )
        self.mtp, self.draft_problem = load_mtp(
            weights,
            sizes,
            names,
            lambda found: Block(sizes, found, "model.mtp_block.0", sparse=False),
            self.norm,
            leftovers=("model.mtp_",),
            before_norm=True,
        )
