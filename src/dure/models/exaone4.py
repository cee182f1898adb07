"""EXAONE 4.0 (LG AI Research 2025, arXiv 2507.11407): norms after attention and MLP, none before;
queries and keys normed; where some layers have a window, only those have a rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import SandwichLayer
from dure.layers.rope import RopeConfig
from dure.models.windows import have_windows

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "exaone4"
MODEL_TYPES = ("exaone4_5_text",)  # as EXAONE 4.5's first files call it

_LARGE = 64
"""Layers of the 32B: llama.cpp gives windows to GGUF files with as many, and to no other."""


@dataclass(frozen=True)
class Exaone4Config:
    """The sizes of one EXAONE 4."""

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
    windows: tuple[int | None, ...]  # of each layer
    rotated: tuple[bool, ...]  # whether each layer has a rotation

    @classmethod
    def read(cls, config: Config) -> Exaone4Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=32)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        windows, mixed = _windows(config, layers)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(2048),
            tied=config.flag("tie_word_embeddings", False),
            rope=RopeConfig.from_hf(config.values, head_dim, partial=config.is_gguf),
            windows=windows,
            rotated=tuple(window is not None or not mixed for window in windows),
        )


def _windows(config: Config, layers: int) -> tuple[tuple[int | None, ...], bool]:
    """Return each layer's window, and whether the model is one with windows at all.

    That is by layer_types, else all but every fourth, or whatever sliding_window_pattern says.
    """
    usual = 4096 if not config.is_gguf or layers == _LARGE else None
    if config.values.get("sliding_window", usual) is None:
        return (None,) * layers, False
    window = config.integer("sliding_window", 4096)
    return tuple(window if each else None for each in have_windows(config, layers, 4)), True


class Block(SandwichLayer):
    """One decoder layer: x += norm(attention(x)); x += norm(mlp(x))."""

    def __init__(self, config: Exaone4Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
        super().__init__(
            weights,
            name,
            config,
            before=None,
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
        )
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
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Exaone4Config.read(config)
        factors = None
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights, sizes, lambda index: Block(sizes, weights, index), rope_factors=factors
        )
        self.ropes = [self.rope if each else None for each in sizes.rotated]
        weights.skip_all("mtp.")  # EXAONE 4.5's layers that draft
