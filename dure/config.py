"""A checkpoint's config as typed values under config.json's names, whichever file form it came in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dure.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

Value = TypeVar("Value")

# GGUF key, without the architecture prefix -> config.json key.
_GGUF_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.dimension_count": "rotary_dim",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}

# The keys under {architecture}.rope.scaling. -> those of config.json's rope_scaling.
_GGUF_ROPE_KEYS = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}

_REQUIRED: Any = object()


class Config:
    """Typed reads of one config. A missing, mistyped or absurd value is a ModelFileError that names it."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def integer(
        self, key: str, default: int | None = _REQUIRED, *, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """The whole number at `key`, between low and high; null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not low <= value <= high:
            raise self._wrong(key, value, f"between {low:,} and {high:,}")
        return value

    def number(self, key: str, default: float | None = _REQUIRED) -> float:
        """The finite number at `key`; null counts as absent."""
        value = self._get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool | None = _REQUIRED) -> bool:
        """The true or false at `key`; null counts as absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuses, with an UnsupportedModelError, a value that is present and not one of `allowed`."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedModelError(
                f"{self.source} has {key} = {value!r}, which dure does not run; "
                f"it runs {' or '.join(repr(a) for a in allowed)}."
            )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED or default is None:
            raise ModelFileError(f"{self.source} does not say {key}, which the model needs.")
        return default

    def _wrong(self, key: str, value: Any, wanted: str) -> ModelFileError:
        return ModelFileError(
            f"{self.source} has {key} = {str(value)[:60]!s}; it must be {wanted}."
        )


def architecture_of(checkpoint: Checkpoint) -> str:
    """The GGUF architecture or the config.json model_type, as the file writes it."""
    key = "general.architecture" if checkpoint.kind == "gguf" else "model_type"
    values = checkpoint.metadata if checkpoint.kind == "gguf" else checkpoint.config
    name = values.get(key)
    if not isinstance(name, str) or not name:
        raise ModelFileError(
            f"{checkpoint.path} does not say its {key}.", hint="it is no language model we can run."
        )
    return name


def read_config(checkpoint: Checkpoint) -> Config:
    """The config of a checkpoint, a GGUF's keys under the names that config.json uses."""
    if checkpoint.kind == "safetensors":
        return Config(checkpoint.config, f"{checkpoint.path}: config.json")
    prefix = architecture_of(checkpoint) + "."
    metadata = checkpoint.metadata
    values = {
        theirs: metadata[prefix + ours]
        for ours, theirs in _GGUF_KEYS.items()
        if prefix + ours in metadata
    }
    scaling = {
        theirs: metadata[f"{prefix}rope.scaling.{ours}"]
        for ours, theirs in _GGUF_ROPE_KEYS.items()
        if f"{prefix}rope.scaling.{ours}" in metadata
    }
    if scaling.get("rope_type", "none") != "none":
        values["rope_scaling"] = scaling
    # The vocabulary's size is written nowhere else, and the head has to fit it.
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is not None:
        values["vocab_size"] = embedding.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    return Config(values, str(checkpoint.path))
