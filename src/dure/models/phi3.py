"""Phi-3, Phi-3.5 and Phi-4, with the mini models (Microsoft 2024, arXiv 2404.14219 and 2503.01743):
Llama's block with q, k, v and gate, up in one matrix each, and LongRoPE.
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

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "phi3"
TENSOR_ALIASES = {"blk.{}.ffn_up": "model.layers.{}.mlp.gate_up_proj"}


@dataclass(frozen=True)
class Phi3Config:
    """The sizes of one Phi-3 or Phi-4."""

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

    @classmethod
    def read(cls, config: Config, weights: Weights) -> Phi3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        sliding = config.values.get("sliding_window") not in (None, 0)  # 0: GGUF's word for none
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(4096),
            tied=config.flag("tie_word_embeddings", False),
            rope=_rope(config, weights, head_dim),
            window=config.integer("sliding_window") if sliding else None,
        )


def _rope(config: Config, weights: Weights, head_dim: int) -> RopeConfig:
    """Read the rotation; a GGUF has its factors as tensors."""
    values = config.values
    for key in ("rope_parameters", "rope_scaling"):
        table = values.get(key)
        if isinstance(table, Mapping) and "yarn" in (table.get("rope_type"), table.get("type")):
            # What early files call it.
            values = {**values, key: {**table, "rope_type": "longrope"}}
    table = values.get("rope_scaling")
    if weights.is_gguf and isinstance(table, Mapping):
        keys = ("rope_theta", "rotary_dim", "max_position_embeddings")
        values = {key: values[key] for key in keys if key in values}
        size = RopeConfig.from_hf(values, head_dim).dim // 2
        factors = {
            f"{each}_factor": weights.vector(f"rope_factors_{each}.weight", size).tolist()
            for each in ("long", "short")
        }
        values["rope_scaling"] = {**table, **factors}
    return RopeConfig.from_hf(values, head_dim)


def _split(weights: Weights, name: str, config: Phi3Config) -> None:
    """Let q, k, v and gate, up be matrices of their own."""
    rows = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    weights.split(
        f"{name}.self_attn.qkv_proj.weight",
        {f"{name}.self_attn.{x}_proj.weight": n * config.head_dim for x, n in rows.items()},
    )
    weights.split(
        f"{name}.mlp.gate_up_proj.weight",
        {f"{name}.mlp.{part}_proj.weight": config.intermediate for part in ("gate", "up")},
    )


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Phi3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(weights, name, config)
        _split(weights, name, config)
        self.mixer = Attention(
            weights,
            f"{name}.self_attn",
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            window=config.window,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Phi3Config.read(config, weights)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
