"""SmolLM3 (Hugging Face 2025): Llama's block, without a rotation in every fourth layer
(Yang et al. 2025, arXiv 2501.18795).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import ModelFileError
from dure.layers.attention import Attention
from dure.layers.basic import GatedMLP
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.rope import RopeConfig

if TYPE_CHECKING:
    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "smollm3"


@dataclass(frozen=True)
class Smollm3Config:
    """The sizes of one SmolLM3."""

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
    mlp_bias: bool  # on all three of the MLP
    interleaved: bool  # rotated pairs are (2i, 2i + 1)
    rotated: tuple[bool, ...]  # whether each layer has a rotation
    windows: tuple[int | None, ...]  # of each layer

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> Smollm3Config:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.check_activation()
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=4)
        layers = config.integer("num_hidden_layers", high=1024)
        head_dim = config.head_dim(hidden // heads)
        rotated = _rotated(config, layers)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=config.positive("rms_norm_eps", 1e-6),
            context_length=config.context_length(32768),
            tied=config.flag("tie_word_embeddings", True),
            rope=RopeConfig.from_hf(
                config.values,
                head_dim,
                default_theta=2_000_000.0,
                partial=gguf,
            ),
            bias=config.flag("attention_bias", False),
            mlp_bias=config.flag("mlp_bias", False),
            # GGUF converters permute the rows of q and k for interleaved RoPE.
            interleaved=gguf,
            rotated=rotated,
            windows=_windows(config, rotated),
        )


def _rotated(config: Config, layers: int) -> tuple[bool, ...]:
    """Return for each layer whether it has a rotation: by no_rope_layers, where 0 is without."""
    listed = config.integers("no_rope_layers")
    if not listed:
        interval = config.integer("no_rope_layer_interval", 4)
        return tuple((layer + 1) % interval != 0 for layer in range(layers))
    if len(listed) != layers:
        raise ModelFileError(
            f"{config.source} has no_rope_layers for {len(listed)} layers, and {layers} layers."
        )
    return tuple(each != 0 for each in listed)


def _windows(config: Config, rotated: tuple[bool, ...]) -> tuple[int | None, ...]:
    """Return each layer's window: by layer_types, else those without a rotation have one."""
    slides = config.flag("use_sliding_window", False)
    window = config.integer("sliding_window") if slides else None
    if window is None or config.values.get("layer_types"):
        return config.windows(len(rotated))
    return tuple(None if each else window for each in rotated)


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: Smollm3Config, weights: Weights, index: int) -> None:
        name = f"model.layers.{index}"
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
            interleaved=config.interleaved,
            window=config.windows[index],
        )
        self.mlp = GatedMLP(
            weights, f"{name}.mlp", config.hidden, config.intermediate, bias=config.mlp_bias
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = Smollm3Config.read(config, gguf=weights.is_gguf)
        factors = None  # llama3 RoPE scaling, which GGUF stores as a tensor
        if weights.has("rope_freqs.weight"):
            factors = weights.vector("rope_freqs.weight", sizes.rope.dim // 2)
        super().__init__(
            weights, sizes, lambda index: Block(sizes, weights, index), rope_factors=factors
        )
        self.ropes = [self.rope if each else None for each in sizes.rotated]
