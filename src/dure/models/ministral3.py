"""Ministral 3 and Devstral 2 (Mistral AI 2025): Llama's block under YaRN, and queries that grow
with the logarithm of how many original contexts their position is away, as in Llama 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.rope import RopeConfig
from dure.models.config import Config

if TYPE_CHECKING:
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "mistral3"
_USUAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True)
class Ministral3Config:
    """The sizes of one Ministral 3."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    rope: RopeConfig
    window: int | None  # tokens that a token sees, itself included
    temperature: tuple[float, int] | None  # of queries: `Attention`'s
    interleaved: bool  # rotated pairs are (2i, 2i + 1)

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> Ministral3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(128)
        rope, beta = _rope(config, head_dim)
        sliding = config.values.get("sliding_window") is not None
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(262144),
            tied=config.flag("tie_word_embeddings", False),
            rope=rope,
            window=config.integer("sliding_window") if sliding else None,
            temperature=(beta, rope.original_context) if beta else None,
            # GGUF converters permute the rows of q and k for interleaved RoPE.
            interleaved=gguf,
        )


def _rope(config: Config, head_dim: int) -> tuple[RopeConfig, float | None]:
    """Read the rotation, and by how much queries grow with each e-fold of the original context."""
    values = config.values
    table = values.get("rope_parameters") or values.get("rope_scaling")
    if table is None and not config.is_gguf:  # the class's own, whatever rope_theta says
        values = {**values, "rope_parameters": _USUAL_ROPE}
        table = _USUAL_ROPE
    beta = table.get("llama_4_scaling_beta") if isinstance(table, Mapping) else None
    if beta is None:  # GGUF's key
        beta = values.get("llama_4_scaling_beta")
    found = Config({"llama_4_scaling_beta": beta}, config.source)
    return (
        RopeConfig.from_hf(values, head_dim, partial=config.is_gguf),
        None if beta is None else found.positive("llama_4_scaling_beta"),
    )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Ministral3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            window=config.window,
            temperature=config.temperature,
            interleaved=config.interleaved,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Ministral3Config.read(config, gguf=weights.is_gguf)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
