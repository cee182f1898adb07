"""GGUF keys that a family does not read, and whether they would change what it computes; and keys
to write, from which a config is read.

Keys are those of llama.cpp's llama-arch.cpp, without the architecture's name before them. A key
that a family reads needs no entry here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import UnsupportedModelError
from dure.models.config import GGUF_KEYS, architecture_of
from dure.models.gguf_rope import ROPE_KEYS

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.models.config import Config

# Keys whose values a GGUF reader wants as float32, though a config.json may write 10000.
_GGUF_FLOATS = re.compile(r".*(epsilon|freq_base(_swa)?|factor|yarn_\w+|weights_scale|_multiplier)")

IDLE: Mapping[str, str] = {
    "vocab_size": "the embedding's rows say it",
    "context_length": "a limit, not a part of the arithmetic",
    "tensor_data_layout": "says where the converter got the rows from",
    "attention.layer_norm_epsilon": "of LayerNorms, which these architectures do not have",
    "attention.value_length": "checked against the key's where a family has one for both",
    "attention.sliding_window": "llama.cpp passes it over for these architectures",
    "rope.dimension_count": "the whole head where a family does not ask",
    "rope.dimension_sections": "text has the same position in all sections",
    "rope.scaling.finetuned": "says how the model was made",
    "rope.scaling.original_context_length": "of the scalings that need it",
    "feed_forward_length": "of dense layers, which a mixture may lack",
    "expert_feed_forward_length": "the tensors' shapes are checked against the config",
    "expert_shared_feed_forward_length": "the tensors' shapes are checked against the config",
    "expert_shared_count": "the tensors of a shared expert are read or refused",
    "leading_dense_block_count": "the tensors of dense layers are read or refused",
    "interleave_moe_layer_step": "the tensors of dense layers are read or refused",
    "nextn_predict_layers": "layers that only draft",
    "n_deepstack_layers": "of images",
    "features_length": "of audio",
    "embedding_length_out": "of embedding models",
    "pooling_type": "of embedding models",
    "attention.indexer.types": "a layer that shares its choice has no tensors of an indexer",
    "attention.recurrent_layers": "read with the layers' kinds",
}
"""Key -> why a family may ignore it."""

# Key -> the values that change nothing. Any other value is refused.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_group_scale": (0, 1),
    "experts_per_group": (0, 1),
    "moe_every_n_layers": (0, 1),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "activation_sparsity_scale": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "full_attention_interval": (0, 1),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_scale": (0,),
    "attention.temperature_length": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,),
}
_OF_LAYERS = "per_layer_config"
# Read by `read_config`, whatever the family.
_READ = ("rope.scale_linear",)
_SCALING = "rope.scaling."
_READ_SCALING = (
    "type",
    "factor",
    "original_context_length",
    "attn_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_log_multiplier",
)


def check_keys(checkpoint: Checkpoint, config: Config) -> None:
    """Raise UnsupportedModelError for a key that would change the result and was not read.

    config: the checkpoint's, after its family has read what it needs. Of a config.json that is only
    transformers' key for layers that differ from the others, as families name the rest.
    """
    if checkpoint.kind != "gguf":
        if _OF_LAYERS not in config.asked and config.values.get(_OF_LAYERS):
            raise UnsupportedModelError(
                f"{config.source} has {_OF_LAYERS}, settings of single layers, which dure does not "
                "read for this architecture, so running it would give wrong answers."
            )
        return
    prefix = f"{architecture_of(checkpoint)}."
    read = {*_READ, *(_SCALING + each for each in _READ_SCALING)}
    read |= {key for key, name in GGUF_KEYS.items() if name in config.asked}
    # A flag for each layer, or one number for all: families that read layer_types read the flags.
    pattern = "attention.sliding_window_pattern"
    flags = isinstance(checkpoint.metadata.get(prefix + pattern), np.ndarray)
    if ("layer_types" if flags else "sliding_window_pattern") in config.asked:
        read.add(pattern)
    for name, value in checkpoint.metadata.items():
        key = name.removeprefix(prefix)
        if key == name or key in read or key in IDLE or _is_neutral(key, value):
            continue
        raise UnsupportedModelError(
            f"{checkpoint.path} has {name} = {_shown(value)}, which dure does not compute for this "
            "architecture, so running it would give wrong answers.",
            hint="the file may be of a newer variant of the family.",
        )


def _is_neutral(key: str, value: Any) -> bool:
    """Check whether the key's value changes nothing, in all layers."""
    values = value.tolist() if isinstance(value, np.ndarray) else [value]
    return key in _NEUTRAL and all(each in _NEUTRAL[key] for each in values)


def _shown(value: Any) -> str:
    """Return the value as text for an error: at most 60 characters."""
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def gguf_keys(values: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return the GGUF metadata from which `read_config` reads these values; None is left out."""
    scaling = values.get("rope_scaling") or {}
    found = {ours: values.get(theirs) for ours, theirs in GGUF_KEYS.items()}
    found |= {f"rope.scaling.{ours}": scaling.get(theirs) for ours, theirs in ROPE_KEYS.items()}
    found["rope.scaling.attn_factor"] = scaling.get("attn_factor")
    if scaling.get("mscale_all_dim"):
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling["mscale_all_dim"]
    if values.get("layer_types"):
        kinds = np.array(values["layer_types"])
        slides = kinds == "sliding_attention"
        recurs = kinds == "linear_attention"
        if recurs.any():
            found["attention.recurrent_layers"] = recurs
        else:
            found["attention.sliding_window_pattern"] = slides
    if values.get("indexer_types"):
        found["attention.indexer.types"] = np.array(values["indexer_types"])
    if values.get("mrope_section"):
        found["rope.dimension_sections"] = np.array(values["mrope_section"], np.int32)
    return {
        f"{architecture}.{key}": float(value) if _GGUF_FLOATS.fullmatch(key) else value
        for key, value in found.items()
        if value is not None
    }
