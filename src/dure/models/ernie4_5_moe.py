"""ERNIE 4.5 mixtures of experts: 21B-A3B, 300B-A47B (Baidu 2025, ERNIE 4.5 technical report): a
learned bias takes part in the choice of experts and not in their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import Embedding, GatedMLP, RMSNorm, head
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import Rope, RopeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch, KVCacheSpec
    from dure.layers.basic import Rotation
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
    shared_experts: int  # as wide together as so many experts
    sparse_layers: frozenset[int]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config) -> Ernie45MoeConfig:
        """The sizes in a checkpoint's config; refuses what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("use_bias", False)
        config.expect("moe_norm_min", 1e-12)
        layers, (heads, kv_heads) = config.integer("num_hidden_layers", high=1024), config.heads()
        experts = config.integer("num_experts", high=65536)
        head_dim = config.head_dim(config.integer("hidden_size") // heads)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=config.integer("hidden_size"),
            intermediate=config.integer("intermediate_size"),
            expert_intermediate=config.integer("moe_intermediate_size"),
            experts=experts,
            experts_per_token=config.integer("num_experts_per_tok", high=experts),
            shared_experts=config.integer("n_shared_experts", 2, low=0, high=65536),
            sparse_layers=_sparse_layers(config, layers),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.integer("max_position_embeddings", 131072),
            tied=config.flag("tie_word_embeddings", True),
            rope=RopeConfig.from_hf(config.values, head_dim, default_theta=500_000.0),
        )


def _sparse_layers(config: Config, layers: int) -> frozenset[int]:
    """The layers whose MLP is a mixture."""
    step = config.integer("moe_layer_interval", 1)
    first = config.integer("first_k_dense_replace", 1, low=0)
    last = config.integer("moe_layer_end_index", -1, low=-1)
    end = layers if last == -1 else min(last + 1, layers)
    return frozenset(i for i in range(first, end) if (i + 1) % step == 0)


class Block:
    """x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Ernie45MoeConfig, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        self.input_layernorm = RMSNorm(
            weights, f"{name}.input_layernorm", config.hidden, config.norm_eps
        )
        self.self_attn = Attention(
            weights,
            f"{name}.self_attn",
            index=index,
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            interleaved=True,  # pairs (2i, 2i + 1), in config.json's files and in GGUF
        )
        self.post_attention_layernorm = RMSNorm(
            weights, f"{name}.post_attention_layernorm", config.hidden, config.norm_eps
        )
        self.mlp: GatedMLP | SparseMLP
        if index not in config.sparse_layers:
            self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)
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
            )

    def __call__(
        self, x: Floats, rotation: Rotation, batch: Batch, rows: Ints | None = None
    ) -> Floats:
        """x (n, hidden) after this layer; `rows` are those that come back, if not all do."""
        x = self.self_attn(self.input_layernorm(x), rotation, batch, add=x, rows=rows)
        return self.mlp(self.post_attention_layernorm(x), add=x)


class Model:
    """Tokens to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Ernie45MoeConfig.read(config)
        self.vocab_size, self.context_length = sizes.vocab_size, sizes.context_length
        self.rope = Rope(sizes.rope)
        self.embed_tokens = Embedding(weights, "model.embed_tokens", sizes.vocab_size, sizes.hidden)
        self.layers = [Block(sizes, weights, i) for i in range(sizes.layers)]
        self.norm = RMSNorm(weights, "model.norm", sizes.hidden, sizes.norm_eps)
        self.lm_head = head(weights, self.embed_tokens, tied=sizes.tied)
        weights.skip_all("model.mtp_")  # a layer that drafts the token after the next

    @property
    def kv_cache_specs(self) -> tuple[KVCacheSpec, ...]:
        """What each layer keeps of a token."""
        return tuple(layer.self_attn.cache for layer in self.layers)

    def forward(self, batch: Batch) -> Floats:
        """The logits (len(batch.logit_rows), vocab_size) of the rows that want them."""
        x = self.embed_tokens(batch.tokens)
        rotation = self.rope(batch.positions)
        for layer in self.layers[:-1]:
            x = layer(x, rotation, batch)
        x = self.layers[-1](x, rotation, batch, batch.wanted_rows)
        return self.lm_head(self.norm(x))
