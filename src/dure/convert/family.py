"""How llama.cpp has a family: its name and layout there, and what it takes for granted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dure.convert.tensors import Layout, otherwise
from dure.layers.rope import rope_frequencies

if TYPE_CHECKING:
    from dure.layers.moe import Routing
    from dure.layers.rope import RopeConfig
    from dure.models.config import Config

SECOND_NORM = {"ffn_norm": "post_attention_norm"}
WITHOUT_BIAS = {"attention_bias": (False, False)}
WITHOUT_WINDOW = {"use_sliding_window": (False, False)}


@dataclass(frozen=True)
class Family:
    """How llama.cpp names and lays out a family, and the values that it takes for granted."""

    layout: Layout = field(default_factory=Layout)
    architecture: str | None = None  # llama.cpp's name, where the model file says none
    needs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (default, needed)
    # The family's own values, in config.json's language; refuses what no key can say.
    values: Callable[[Config, Any], Mapping[str, Any]] = lambda _config, _sizes: {}
    ropes: tuple[str, ...] = ()
    """Scalings beside linear and YaRN that it reads, by tensors: llama3, longrope."""
    lists_merges: bool = False
    """Whether its SentencePiece vocabulary comes with its merges, not with scores."""
    factors: bool = False
    """Whether every file has divisors of its frequencies, for any scaling by them."""
    truncates: bool = True
    """Whether it rounds the bounds of YaRN's ramp, for which GGUF has no key."""
    magnitudes: bool = False
    """Whether it reads YaRN's magnitude of all dimensions, though keys are no latents."""


def without_windows(config: Config, windows: Any) -> None:
    """Refuse a model that has sliding windows, for which its architecture has no key."""
    if any(windows):
        raise otherwise(f"{config.source} has sliding windows, which GGUF cannot say.")


def whole_heads(config: Config, sizes: Any) -> None:
    """Refuse heads that do not make up the hidden size together, as llama.cpp takes them to do."""
    if sizes.heads * sizes.head_dim != sizes.hidden:
        raise otherwise(
            f"{config.source} has {sizes.heads} heads of head_dim = {sizes.head_dim}, and "
            f"llama.cpp has heads that make up the hidden size of {sizes.hidden}."
        )


def long_rope(rope: RopeConfig) -> dict[str, Any]:
    """Make the keys of LongRoPE, its magnitude and its context; nothing for another rotation."""
    if rope.type != "longrope":
        return {}
    keys = {
        "attn_factor": rope_frequencies(rope)[1],
        "original_max_position_embeddings": rope.original_context,
    }
    return {"rope_scaling": keys}


def routed(routing: Routing) -> dict[str, Any]:
    """Make the values of a router's keys."""
    grouped = routing.groups > 1
    return {
        "num_experts_per_tok": routing.top_k,
        "norm_topk_prob": routing.normalize,
        "routed_scaling_factor": routing.scale,
        "gating_func": ("softmax", "sigmoid").index(routing.score) + 1,
        "n_group": routing.groups if grouped else None,
        "topk_group": routing.kept_groups if grouped else None,
    }
