"""The families of dense models whose block is Llama's but for a detail, as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dure.convert.family import (
    SECOND_NORM,
    WITHOUT_BIAS,
    Family,
    long_rope,
    whole_heads,
    without_windows,
)
from dure.convert.tensors import Layout, otherwise

if TYPE_CHECKING:
    from dure.models.config import Config


def _mistral_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Mistral's and Mixtral's values, which are Llama's, without a window."""
    without_windows(config, [sizes.window])
    return {}


def _ministral_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Ministral's values: by how much queries grow with their position."""
    without_windows(config, [sizes.window])
    return {"llama_4_scaling_beta": sizes.temperature[0] if sizes.temperature else None}


def _phi_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make Phi's values: 0 for no window, and the magnitude and context of its LongRoPE."""
    whole_heads(config, sizes)
    without_windows(config, [sizes.window])
    return {"sliding_window": 0, **long_rope(sizes.rope)}


def _smollm_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make SmolLM3's values; llama.cpp takes every fourth layer to be without a rotation."""
    without_windows(config, sizes.windows)
    if sizes.rotated != tuple((layer + 1) % 4 != 0 for layer in range(sizes.layers)):
        raise otherwise(
            f"{config.source} has other layers without a rotation (no_rope_layers) than every "
            "fourth, and llama.cpp has these."
        )
    return {}


def _granite_values(_config: Config, sizes: Any) -> dict[str, Any]:
    """Make Granite's values: its four factors."""
    return {
        "attention_multiplier": sizes.attention_scale,
        "embedding_multiplier": sizes.embedding_scale,
        "residual_multiplier": sizes.residual_scale,
        "logits_scaling": sizes.logit_divisor,
    }


def _olmo_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make OLMo's values; llama.cpp rotates layers with a window by the same base, unscaled."""
    whole_heads(config, sizes)
    if not any(sizes.windows):
        return {}
    near = sizes.sliding_rope
    if near.type != "default" or near.dim != sizes.rope.dim:
        raise otherwise(
            f"{config.source} scales the rotation of layers with a window (rope_parameters), and "
            "llama.cpp does not."
        )
    if near.theta != sizes.rope.theta:
        raise otherwise(
            f"{config.source} rotates layers with a window by another rope_theta (rope_parameters) "
            "than the others, and llama.cpp does not."
        )
    kinds = ["sliding_attention" if each else "full_attention" for each in sizes.windows]
    return {"sliding_window": max(each or 0 for each in sizes.windows), "layer_types": kinds}


def _exaone_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make EXAONE 4's values; llama.cpp gives windows to models of 64 layers, and to no others."""
    whole_heads(config, sizes)
    slides = any(sizes.windows) or not all(sizes.rotated)
    if slides != (sizes.layers == _WITH_WINDOWS):
        what = "windows" if slides else "no windows"
        raise otherwise(
            f"{config.source} has {sizes.layers} layers and {what} (sliding_window), and llama.cpp "
            f"has windows in models of {_WITH_WINDOWS} layers, and only there."
        )
    if not slides:
        return {}
    return {
        "sliding_window": max(each or 0 for each in sizes.windows) or 1,
        "layer_types": [
            "sliding_attention" if each else "full_attention" for each in sizes.windows
        ],
    }


def _olmoe_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Refuse shared keys and values, of which llama.cpp's norm has the queries' width."""
    if sizes.kv_heads != sizes.heads:
        raise otherwise(
            f"{config.source} has num_key_value_heads = {sizes.kv_heads}, and llama.cpp computes "
            f"olmoe only with one for each of its {sizes.heads} heads."
        )
    return {}


_DIVISORS = ("llama3",)
_WITH_WINDOWS = 64
_PAIRS = Layout(pairs=True)
LLAMA_LIKES: Mapping[str, Family] = {
    "llama": Family(_PAIRS, needs={"bias": (False, False)}, ropes=_DIVISORS),  # InternLM3's key
    "mistral": Family(_PAIRS, architecture="llama", values=_mistral_values, ropes=_DIVISORS),
    "mixtral": Family(_PAIRS, architecture="llama", values=_mistral_values, ropes=_DIVISORS),
    "ministral3": Family(_PAIRS, values=_ministral_values, magnitudes=True),
    "phi3": Family(values=_phi_values, ropes=("longrope",)),
    "smollm3": Family(_PAIRS, needs=WITHOUT_BIAS, values=_smollm_values),
    "seed_oss": Family(Layout(kinds=SECOND_NORM), needs={"attention_out_bias": (False, False)}),
    "glm4": Family(),
    "granite": Family(_PAIRS, values=_granite_values, ropes=_DIVISORS),
    "olmo3": Family(
        Layout(kinds=SECOND_NORM),
        needs={**WITHOUT_BIAS, "tie_word_embeddings": (False, False)},
        values=_olmo_values,
    ),
    "olmoe": Family(
        needs={
            **WITHOUT_BIAS,
            "tie_word_embeddings": (False, False),
            "norm_topk_prob": (False, False),
        },
        values=_olmoe_values,
    ),
    "exaone4": Family(Layout(kinds=SECOND_NORM), values=_exaone_values, ropes=_DIVISORS),
    "exaone": Family(needs=WITHOUT_BIAS, ropes=_DIVISORS),
}
