"""gpt-oss (OpenAI 2025, arXiv 2508.10925): attention with sinks, a window in every second layer,
biases everywhere, and experts with a clamped SwiGLU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dure.errors import UnsupportedModelError
from dure.layers.attention import Attention
from dure.layers.decoder import Decoder
from dure.layers.decoder_layer import DecoderLayer
from dure.layers.moe import Routing, SparseMLP
from dure.layers.rope import RopeConfig
from dure.models.windows import have_windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dure.models.config import Config
    from dure.weights.loader import Weights

GGUF_ARCHITECTURE = "gpt-oss"
TENSOR_ALIASES = {".mlp.router.": ".mlp.gate."}

_THETA = 150000.0
# What transformers computes where a config says nothing of its rotation.
_YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class GptOssConfig:
    """The sizes of one gpt-oss."""

    vocab_size: int
    hidden: int
    intermediate: int  # of each expert
    experts: int
    experts_per_token: int
    alpha: float  # of the experts' activation
    limit: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]  # of each layer
    norm_eps: float
    context_length: int
    tied: bool
    bias: bool  # on all four attention projections
    rope: RopeConfig

    @classmethod
    def read(cls, config: Config, *, gguf: bool) -> GptOssConfig:
        """Read the sizes from a checkpoint's config; refuse what this file does not compute."""
        config.expect("hidden_act", "silu")
        config.expect("gating_func", 1, 3)  # in GGUF: softmax, of all or of the chosen
        hidden, (heads, kv_heads) = config.integer("hidden_size"), config.heads(kv=8)
        layers = config.integer("num_hidden_layers", high=1024)
        experts, chosen = config.experts(128, 4)
        head_dim = config.head_dim(64)
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden=hidden,
            intermediate=config.integer("moe_intermediate_size" if gguf else "intermediate_size"),
            experts=experts,
            experts_per_token=chosen,
            alpha=config.positive("swiglu_alpha", 1.702),
            limit=config.positive("swiglu_limit", 7.0),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            windows=_windows(config, layers),
            norm_eps=config.positive("rms_norm_eps", 1e-5),
            context_length=config.context_length(131072),
            tied=config.flag("tie_word_embeddings", False),
            bias=config.flag("attention_bias", True),
            rope=_rope(config, head_dim, gguf=gguf),
        )


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: by layer_types, else the first, third, … have one."""
    slides = have_windows(config, layers, 2, of_folders=False)
    window = config.integer("sliding_window", 128) if any(slides) else None
    return tuple(window if each else None for each in slides)


def _rope(config: Config, head_dim: int, *, gguf: bool) -> RopeConfig:
    """Read the rotation, which is of the whole head."""
    said = any(config.values.get(key) is not None for key in ("rope_parameters", "rope_scaling"))
    if not said and not gguf:
        config = config.replaced({"rope_parameters": _YARN})
    rope = RopeConfig.from_hf(config.values, head_dim, default_theta=_THETA)
    if rope.dim != head_dim:
        raise UnsupportedModelError(
            f"{config.source} rotates {rope.dim} of the {head_dim} dimensions of a head, and "
            "gpt-oss rotates all."
        )
    # GGUF has no key for it, and no gpt-oss rounds the bounds of its ramp.
    return replace(rope, truncate=False) if gguf else rope


class Block(DecoderLayer):
    """One decoder layer: x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, config: GptOssConfig, weights: Weights, index: int) -> None:
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
            window=config.windows[index],
            sinks=True,
        )
        self.mlp = SparseMLP(
            weights,
            f"{name}.mlp",
            hidden=config.hidden,
            intermediate=config.intermediate,
            experts=config.experts,
            # A softmax of the chosen experts' logits is the softmax of all, brought to a sum of 1.
            routing=Routing(config.experts_per_token, normalize=True),
            gate_bias=True,
            expert_biases=True,
            clamp=(config.alpha, config.limit),
        )


class Model(Decoder):
    """The whole model: token ids to logits."""

    def __init__(self, config: Config, weights: Weights) -> None:
        self.config = sizes = GptOssConfig.read(config, gguf=weights.is_gguf)
        super().__init__(weights, sizes, lambda index: Block(sizes, weights, index))
