"""Gemma 3 (Google 2025, arXiv 2503.19786): norms before and after attention and MLP, GELU, and a
window in five layers of six, which rotate by another base. Of what also sees, the text part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import SandwichLayer
from dure.layers.rope import Rope, RopeConfig
from dure.models.windows import have_windows

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "gemma3"
MODEL_TYPES = ("gemma3_text",)
TENSOR_ALIASES = {
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
}

_SLIDING, _FULL = "sliding_attention", "full_attention"
_CONTEXT, _HEADS, _VOCABULARY = 131072, (8, 4), 262208  # where makers' files leave them out
_SCALED_BY_HEADS = 62  # the layers of Gemma 3 27B, whose scale is of another width than its heads'


@dataclass(frozen=True)
class Gemma3Config:
    """The sizes of one Gemma 3."""

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    norm_offset: float  # what is added to a stored norm: safetensors keep w - 1, GGUF w
    context_length: int
    tied: bool
    rope: RopeConfig
    sliding_rope: RopeConfig  # of layers with a window
    windows: tuple[int | None, ...]  # of each layer
    bias: bool  # on all four attention projections
    scale: float  # of scores
    logit_cap: float | None

    @classmethod
    def read(cls, config: Config) -> Gemma3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_activation", "gelu_pytorch_tanh")
        config.expect("use_bidirectional_attention", False)
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(*_HEADS)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(256)
        scale = config.positive("query_pre_attn_scalar", 256.0) ** -0.5
        if config.is_gguf:  # which has no key for it
            scale = usual_scale(layers, hidden, heads, head_dim)
        capped = config.values.get("final_logit_softcapping")
        return cls(
            vocab_size=config.integer("vocab_size", _VOCABULARY),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            norm_offset=0.0 if config.is_gguf else 1.0,
            context_length=config.context_length(_CONTEXT),
            tied=config.flag("tie_word_embeddings", True),
            rope=_rope(config, head_dim, _FULL, "rope_theta", 1_000_000.0),
            sliding_rope=_rope(config, head_dim, _SLIDING, "rope_local_base_freq", 10_000.0),
            windows=_windows(config, layers),
            bias=config.flag("attention_bias", False),
            scale=scale,
            logit_cap=config.positive("final_logit_softcapping") if capped else None,
        )


def usual_scale(layers: int, hidden: int, heads: int, head_dim: int) -> float:
    """Return the scale of scores of a released Gemma 3, as llama.cpp knows it: by its layers."""
    return float((hidden / heads if layers == _SCALED_BY_HEADS else head_dim) ** -0.5)


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: by layer_types, else every sixth layer has none."""
    if config.is_gguf and config.values.get("sliding_window") in (None, 0):
        return (None,) * layers
    slides = have_windows(config, layers, 6)
    window = config.integer("sliding_window", 4096) if any(slides) else None
    return tuple(window if each else None for each in slides)


def _rope(config: Config, head_dim: int, kind: str, base: str, theta: float) -> RopeConfig:
    """Read the rotation of one kind of layers; makers' files have a key for each base, and scale
    that of the layers without a window.
    """
    tables, table = config.values.get("rope_parameters"), None
    if isinstance(tables, Mapping):
        table = tables.get(kind)
        added = config.values.get("rope_scaling")
        if kind == _FULL and isinstance(table, Mapping) and isinstance(added, Mapping):
            table = {**table, **added}
    elif kind == _FULL:
        table = config.values.get("rope_scaling")
    values = {
        "rope_parameters": table,
        "rope_theta": config.values.get(base),
        "partial_rotary_factor": config.values.get("partial_rotary_factor"),
        "max_position_embeddings": config.integer("max_position_embeddings", _CONTEXT),
    }
    if config.is_gguf:
        values["rotary_dim"] = config.values.get("rotary_dim")
    return RopeConfig.from_hf(values, head_dim, default_theta=theta, partial=config.is_gguf)


class Block(SandwichLayer):
    """One decoder layer: x += norm(attention(norm x)); x += norm(mlp(norm x))."""

    def __init__(self, config: Gemma3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(
            weights,
            name,
            config,
            before=("input_layernorm", "pre_feedforward_layernorm"),
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
            norm_offset=config.norm_offset,
        )
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
            norm_offset=config.norm_offset,
            window=config.windows[index],
            scale=config.scale,
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate, gelu=True)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Gemma3Config.read(config)
        full, sliding = Rope(sizes.rope), Rope(sizes.sliding_rope)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            ropes=[full if window is None else sliding for window in sizes.windows],
            norm_offset=sizes.norm_offset,
            embedding_scale=math.sqrt(sizes.hidden),
            logit_cap=sizes.logit_cap,
        )
