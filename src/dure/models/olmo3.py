"""OLMo 2 and 3 (Ai2 2025, arXiv 2501.00656 and 2512.13961): norms after attention and MLP, and none
before; queries and keys normed over all heads; in OLMo 3 a window in three layers of four, whose
rotation is not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import SandwichLayer
from dure.layers.rope import CONFIG_KEYS, Rope, RopeConfig
from dure.models.windows import have_windows

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "olmo2"
MODEL_TYPES = ("olmo2",)


@dataclass(frozen=True)
class Olmo3Config:
    """The sizes of one OLMo 2 or 3."""

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
    bias: bool  # on all four attention projections
    windows: tuple[int | None, ...]  # of each layer
    sliding_rope: RopeConfig  # of layers with a window

    @classmethod
    def read(cls, config: Config) -> Olmo3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads()
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        windows = _windows(config, layers)
        full, sliding = _ropes(config, head_dim)
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
            rope=full,
            bias=config.flag("attention_bias", False),
            windows=windows,
            sliding_rope=sliding,
        )


def _is_second(config: Config) -> bool:
    """Check whether it is OLMo 2, which has no windows; a GGUF says it by having no key."""
    gguf = "model_type" not in config.values and "sliding_window" not in config.values
    return gguf or config.values.get("model_type") == "olmo2"


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: by layer_types, else OLMo 3 has one in three of four."""
    off = "sliding_window" in config.values and config.values["sliding_window"] is None
    if _is_second(config) or off:
        return (None,) * layers
    window = config.integer("sliding_window", 4096)
    slides = have_windows(config, layers, 4, of_folders=False)
    return tuple(window if each else None for each in slides)


def _ropes(config: Config, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """Read the rotation of layers without a window, and of those with one: never scaled."""
    usual = 10000.0 if _is_second(config) else 500000.0

    def read(values: Mapping[str, Any], kind: str) -> RopeConfig:
        return RopeConfig.from_hf(
            values, head_dim, layer_type=kind, default_theta=usual, partial=config.is_gguf
        )

    table, added = config.values.get("rope_parameters"), config.values.get("rope_scaling")
    if isinstance(table, Mapping) and any(isinstance(each, Mapping) for each in table.values()):
        # A kind that has no table of its own rotates unscaled.
        tables = {kind: table.get(kind) or {} for kind in ("full_attention", "sliding_attention")}
        if isinstance(added, Mapping):
            tables["full_attention"] = {**tables["full_attention"], **added}
        values = {key: config.values[key] for key in CONFIG_KEYS if key in config.values}
        values["rope_parameters"] = tables
        return read(values, "full_attention"), read(values, "sliding_attention")
    full = read(config.values, "full_attention")
    theta = config.positive("rope_local_base_freq", full.theta) if config.is_gguf else full.theta
    return full, RopeConfig("default", theta, full.dim)


class Block(SandwichLayer):
    """One decoder layer: x += norm(attention(x)); x += norm(mlp(x))."""

    def __init__(self, config: Olmo3Config, weights: Weights, index: int) -> None:
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
            bias=config.bias,
            output_bias=config.bias,
            norm_eps=config.norm_eps,
            norm_whole=True,
            window=config.windows[index],
        )
        self.mlp = GatedMLP(weights, f"{name}.mlp", config.hidden, config.intermediate)


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Olmo3Config.read(config)
        full, sliding = Rope(sizes.rope), Rope(sizes.sliding_rope)
        super().__init__(
            weights,
            sizes,
            lambda index: Block(sizes, weights, index),
            ropes=[full if window is None else sliding for window in sizes.windows],
        )
