"""A checkpoint's config as typed values under config.json's names, from safetensors or GGUF."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.context import one_rotation, stretched_context
from dure.formats.multimodal import is_multimodal, language_config
from dure.formats.quantized.mlx import is_mlx
from dure.models.family_keys import by_common_names
from dure.models.gguf_defaults import gguf_defaults
from dure.models.gguf_layers import heads_by_window, kinds_of_layers, layers_without_heads
from dure.models.gguf_rope import gguf_scaling
from dure.models.not_run import check_causal

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

# Far above any model's: they bound what is computed before shapes are compared.
_MOST_HEADS = 65536
_MOST_HEAD_DIM = 65536
_MOST_EXPERTS = 65536

# GGUF key, without the architecture prefix -> config.json key; `gguf_keys` checks the others.
GGUF_KEYS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.key_length_swa": "head_dim_swa",
    "attention.value_length": "value_head_dim",
    "attention.value_length_swa": "value_head_dim_swa",
    "attention.key_length_mla": "qk_head_dim",
    "attention.value_length_mla": "v_head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "attention.sliding_window": "sliding_window",
    "attention.value_scale": "attention_value_scale",
    "attention.temperature_scale": "llama_4_scaling_beta",
    "attention.scale": "attention_multiplier",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.dimension_count": "rotary_dim",
    "rope.dimension_count_swa": "rotary_dim_swa",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
    "expert_shared_count": "n_shared_experts",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "interleave_moe_layer_step": "moe_layer_interval",
    "leading_dense_block_count": "first_k_dense_replace",
    "full_attention_interval": "full_attention_interval",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "shortconv.l_cache": "conv_L_cache",
    "final_logit_softcapping": "final_logit_softcapping",
    "kda.gate_lower_bound": "kda_lower_bound",
    "kda.head_dim": "linear_head_dim",
    "kda.safe_gate": "kda_safe_gate",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.inner_size": "linear_inner_size",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.time_step_rank": "linear_num_value_heads",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_gating_func": "gating_func",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "swiglu_clamp_exp": "expert_swiglu_limit_list",
    "swiglu_clamp_shexp": "share_expert_swiglu_limit_list",
}

# Keys whose values may differ from layer to layer.
_OF_EACH_LAYER = {
    "bailingmoe3.swiglu_clamp_exp",
    "bailingmoe3.swiglu_clamp_shexp",
    "gemma4.attention.head_count_kv",
    "gemma4.feed_forward_length",
}

_REQUIRED: Any = object()
_GELU = "gelu_pytorch_tanh"
# Other names of transformers' (5.24, `activations.py`) for what is the same function.
_SAME_ACTIVATION = {"swish": "silu", "gelu_new": _GELU, "gelu_python_tanh": _GELU}


def one_activation(value: Any) -> Any:
    """Return the one name dure has for an activation; anything else as it is."""
    return _SAME_ACTIVATION.get(value, value) if isinstance(value, str) else value


class _Watched(Mapping[str, Any]):
    """A mapping that records which keys were read."""

    def __init__(self, values: Mapping[str, Any], asked: set[str]) -> None:
        self._values, self._asked = values, asked

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Config:
    """Typed reads of one config. A missing, mistyped or absurd value raises ModelFileError."""

    def __init__(self, values: Mapping[str, Any], source: str, *, is_gguf: bool = False) -> None:
        self.is_gguf = is_gguf
        self.asked: set[str] = set()
        self.values: Mapping[str, Any] = _Watched(values, self.asked)
        self.source = source
        self._unwatched = values

    def replaced(self, values: Mapping[str, Any]) -> Config:
        """Return the config with some values in place of its own; itself without any.

        Reading it says nothing of which keys of the first were read.
        """
        if not values:
            return self
        return Config({**self._unwatched, **values}, self.source, is_gguf=self.is_gguf)

    def integer(
        self, key: str, default: int | None = _REQUIRED, *, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        """Return the integer at `key`, from low to high; null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not low <= value <= high:
            raise self._wrong(key, value, f"between {low:,} and {high:,}")
        return value

    def context_length(self, default: int) -> int:
        """Return the most tokens of a sequence.

        That is max_position_embeddings, or what the config's own RoPE scaling extends it to.
        """
        longest = self.integer("max_position_embeddings", default)
        return max(longest, stretched_context(self.values, longest))

    def positive(self, key: str, default: float | None = _REQUIRED) -> float:
        """Return the finite number above 0 at `key`; null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number above 0")
        # A whole number of over 308 digits has no float, so it is compared as it is.
        if not 0 < value <= sys.float_info.max:
            raise self._wrong(key, value, "a finite number above 0")
        return float(value)

    def flag(self, key: str, default: bool | None = _REQUIRED, *, null: bool | None = None) -> bool:
        """Return the boolean at `key`; null counts as absent, or as `null` where that is one."""
        off = null is not None and key in self.values and self.values[key] is None
        value = null if off else self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """Return the list of integers at `key`; empty if it is absent or null."""
        values = self._get(key, ())
        if not isinstance(values, list | tuple) or any(type(each) is not int for each in values):
            raise self._wrong(key, values, "a list of whole numbers")
        return tuple(values)

    def same_for_all(
        self, key: str, layers: int, default: int | None = _REQUIRED, *, high: int = 2**31 - 1
    ) -> int:
        """Return the integer at `key`, from 1 to high; if it is a list, its value for every
        layer.
        """
        value = self._get(key, default)
        if not isinstance(value, list):
            return self.integer(key, default, high=high)
        first = value[0] if len(value) == layers else None
        if type(first) is not int or any(each != first for each in value):
            raise self._wrong(key, value, f"one number, or the same for each of {layers} layers")
        return Config({key: first}, self.source).integer(key, high=high)

    def of_each_layer(
        self, key: str, layers: int, default: int | None = _REQUIRED, *, high: int = 2**31 - 1
    ) -> tuple[int, ...]:
        """Return the integer at `key`, from 1 to high, of each layer: one for all, or a list."""
        value = self._get(key, default)
        each = (
            value if isinstance(value, list) else [self.integer(key, default, high=high)] * layers
        )
        if len(each) != layers or any(type(one) is not int or not 1 <= one <= high for one in each):
            raise self._wrong(key, value, f"1 to {high:,}, one number or one for each layer")
        return tuple(each)

    def heads(self, usual: int | None = None, kv: int | None = None) -> tuple[int, int]:
        """Return the number of query heads, and of KV heads, which divides it.

        usual: the first, if the config does not say it; without it, it must. kv: the second, of a
        config.json without it. Where that says null, and in GGUF, there are as many as query heads.
        """
        heads = self.integer("num_attention_heads", usual, high=_MOST_HEADS)
        same = kv is None or self.is_gguf or "num_key_value_heads" in self.values
        kv_heads = self.integer("num_key_value_heads", heads if same else kv, high=_MOST_HEADS)
        if heads % kv_heads and not same:
            raise ModelFileError(
                f"{self.source} does not say num_key_value_heads, and the {kv} that transformers "
                f"then takes for this architecture do not divide the {heads} heads."
            )
        if heads % kv_heads:
            raise self._wrong("num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
        return heads, kv_heads

    def head_dim(self, default: int, *, null: int | None = None) -> int:
        """Return the dimensions of one head, an even number.

        default: if the config has none; null: if it says null, where that is something else.
        """
        off = "head_dim" in self.values and self.values["head_dim"] is None
        usual = null if off and null is not None else default
        size = self.integer("head_dim", usual, high=_MOST_HEAD_DIM)
        if size % 2:
            raise self._wrong("head_dim", size, "an even number")
        return size

    def experts(self, usual: int, chosen: int) -> tuple[int, int]:
        """Return the number of experts of a layer, and how many are chosen for a token.

        usual, chosen: of a config.json that has no such key; a GGUF must say both.
        """
        keys = ("num_experts", "num_experts_per_tok")
        said = [self.is_gguf or key in self.values for key in keys]
        experts = self.integer(keys[0], None if said[0] else usual, high=_MOST_EXPERTS)
        return experts, self.integer(keys[1], None if said[1] else chosen, high=experts)

    def multiple(self, key: str, of: int, default: int, *, high: int) -> int:
        """Return the integer at `key`, which must be a multiple of `of`."""
        value = self.integer(key, default, high=high)
        if value % of:
            raise self._wrong(key, value, f"a multiple of {of}")
        return value

    def expert_groups(
        self, experts: int, chosen: int, *, usual: tuple[int, int] = (1, 1)
    ) -> tuple[int, int]:
        """Return how many groups of experts there are, and how many a token's experts may come
        from.

        These are DeepSeek's keys. chosen: experts per token. usual: the values if the config has
        none.
        """
        groups = self.integer("n_group", usual[0], high=experts)
        kept = self.integer("topk_group", min(usual[1], groups), high=groups)
        if experts % groups or chosen > kept * (experts // groups):
            raise ModelFileError(
                f"{self.source} has n_group = {groups} and topk_group = {kept}: "
                f"{experts} experts make no such groups that have {chosen} for a token."
            )
        return groups, kept

    def dense_layers(self, layers: int) -> frozenset[int]:
        """Return the layers of a mixture of experts that have a dense MLP, by Qwen's keys."""
        step, named = self.integer("decoder_sparse_step", 1), self.integers("mlp_only_layers")
        return frozenset(i for i in range(layers) if i in named or (i + 1) % step)

    def sparse_layers(self, layers: int, dense: int, *, drafts: int = 0) -> tuple[bool, ...]:
        """Return for each layer whether it has a mixture of experts, by DeepSeek's keys.

        dense: how many layers at the start have a dense MLP if the config does not say it. drafts:
        multi-token prediction layers after these, which mlp_layer_types may include.
        """
        kinds = self._get("mlp_layer_types", ())
        if isinstance(kinds, list) and len(kinds) == layers + drafts:
            kinds = kinds[:layers]
        if not kinds:
            dense = self.integer("first_k_dense_replace", dense, low=0)
            return tuple(layer >= dense for layer in range(layers))
        known = {"dense": False, "sparse": True}
        return tuple(known[k] for k in self._kinds(layers, kinds, known, "mlp_layer_types"))

    def recurrent_layers(self, layers: int, *, drafts: int = 0) -> tuple[bool, ...]:
        """Return for each layer whether it is recurrent.

        That is by layer_types, else all but every fourth, or whatever full_attention_interval says.
        drafts: multi-token prediction layers after these, which layer_types may include.
        """
        kinds = self._get("layer_types", ())
        if isinstance(kinds, list) and len(kinds) == layers + drafts:
            kinds = kinds[:layers]
        if not kinds:
            interval = self.integer("full_attention_interval", 4)
            return tuple((layer + 1) % interval != 0 for layer in range(layers))
        known = {"linear_attention": True, "full_attention": False}
        return tuple(known[kind] for kind in self._kinds(layers, kinds, known))

    def window(self) -> int | None:
        """Return the sliding window in tokens; None if no layer has one (Qwen's keys)."""
        off = "sliding_window" in self.values and self.values["sliding_window"] is None
        if off or not self.flag("use_sliding_window", False):
            return None
        return self.integer("sliding_window", 4096)

    def windows(self, layers: int) -> tuple[int | None, ...]:
        """Return each layer's sliding window, None for full attention, by Qwen's keys."""
        return self.windows_of(layers, self.window(), usual_first=28)

    def windows_of(
        self, layers: int, window: int | None, *, usual_first: int
    ) -> tuple[int | None, ...]:
        """Return each layer's sliding window, which is `window` or None for full attention.

        That is by layer_types, else from layer max_window_layers on, which is `usual_first` if the
        config does not say it.
        """
        first = self.integer("max_window_layers", usual_first, low=0)
        kinds = self._get("layer_types", ())
        if window is None or not kinds:
            return tuple(window if layer >= first else None for layer in range(layers))
        known = {"full_attention": None, "sliding_attention": window}
        return tuple(known[kind] for kind in self._kinds(layers, kinds, known))

    def layer_kinds(self, layers: int, *known: str, drafts: int = 0) -> list[str] | None:
        """Return layer_types, each of `known`; None if the config has none.

        drafts: multi-token prediction layers after these, which layer_types may include.
        """
        kinds = self._get("layer_types", ())
        if isinstance(kinds, list) and len(kinds) == layers + drafts:
            kinds = kinds[:layers]
        return self._kinds(layers, kinds, dict.fromkeys(known)) if kinds else None

    def _kinds(
        self, layers: int, kinds: Any, known: Mapping[str, Any], key: str = "layer_types"
    ) -> list[str]:
        """Return the list at `key` if it has one of `known` for each layer."""
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(not isinstance(k, str) or k not in known for k in kinds)
        ):
            raise self._wrong(key, kinds, f"{' or '.join(known)} for each layer")
        return kinds

    def expect(self, key: str, *allowed: Any) -> None:
        """Raise UnsupportedModelError if the key is there and its value is not one of `allowed`.

        An activation may have any of its names.
        """
        value = self.values.get(key)
        if value is not None and one_activation(value) not in allowed:
            raise UnsupportedModelError(
                f"{self.source} has {key} = {_shown(value)}, which dure does not run; "
                f"it runs {' or '.join(map(repr, allowed)) or 'models without it'}."
            )

    @property
    def is_gelu(self) -> bool:
        """Whether gated MLPs activate by GELU in its form by tanh, and not by silu."""
        return bool(one_activation(self.values.get("hidden_act")) == _GELU)

    def check_activation(self) -> None:
        """Raise UnsupportedModelError for an activation that gated MLPs do not have."""
        self.expect("hidden_act", "silu", _GELU)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED or default is None:
            raise ModelFileError(f"{self.source} does not say {key}, which the model needs.")
        return default

    def _wrong(self, key: str, value: Any, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.source} has {key} = {_shown(value)}; it must be {wanted}.")


def architecture_of(checkpoint: Checkpoint) -> str:
    """Return the GGUF architecture or config.json's model_type, as the file writes it.

    Of a multimodal folder, it is the model_type of its language model.
    """
    if checkpoint.kind == "gguf":
        key, values = "general.architecture", checkpoint.metadata
    else:
        key, values = "model_type", dict(language_config(checkpoint.config))
    name = values.get(key)
    if not isinstance(name, str) or not name:
        raise ModelFileError(
            f"{checkpoint.path} does not say its {key}.", hint="it is no language model we can run."
        )
    return name


def read_config(checkpoint: Checkpoint) -> Config:
    """Read a checkpoint's config; a GGUF's keys get the names that config.json uses.

    Of a multimodal folder, it is the language model's.
    """
    if checkpoint.kind == "safetensors":
        own = one_rotation(language_config(checkpoint.config, checkpoint.tensors))
        wraps = is_multimodal(checkpoint.config)
        values = by_common_names(own, str(checkpoint.config.get("model_type")) if wraps else None)
        check_causal(values, checkpoint)
        if is_mlx(checkpoint.config, checkpoint.tensors):  # mlx-lm adds the 1 when it converts
            values["norms_are_whole"] = True
        return Config(values, f"{checkpoint.path}: config.json")
    prefix = architecture_of(checkpoint) + "."
    metadata, layer_types = layers_without_heads(checkpoint.metadata, prefix)
    metadata, near_heads = heads_by_window(metadata, prefix)
    values = {
        theirs: _same_for_all(metadata[prefix + ours], prefix + ours, checkpoint)
        for ours, theirs in GGUF_KEYS.items()
        if prefix + ours in metadata
    }
    if near_heads is not None:
        key = f"{prefix}attention.head_count_kv"
        values["swa_num_key_value_heads"] = _same_for_all(near_heads, key, checkpoint)
    scaling = gguf_scaling(metadata, prefix, checkpoint)
    if scaling.get("rope_type", "none") != "none":
        values["rope_scaling"] = scaling
    values |= gguf_defaults(values) | kinds_of_layers(metadata, prefix)
    if layer_types is not None:
        values["layer_types"] = layer_types
    # A GGUF need not have a key for the vocabulary's size: it is the embedding's rows.
    if (embedding := checkpoint.tensors.get("token_embd.weight")) is not None:
        values["vocab_size"] = embedding.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    values["attention_bias"] = "blk.0.attn_output.bias" in checkpoint.tensors
    values["mlp_bias"] = "blk.0.ffn_gate.bias" in checkpoint.tensors
    return Config(values, str(checkpoint.path), is_gguf=True)


def _same_for_all(value: Any, key: str, checkpoint: Checkpoint) -> Any:
    """Return the value of a GGUF key that may have one a layer; refuse layers that differ."""
    if not isinstance(value, np.ndarray):
        return value
    if key in _OF_EACH_LAYER:
        return value.tolist()
    distinct = np.unique(value).tolist()
    if len(distinct) != 1:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {key} = {_shown(value.tolist())}; "
            "dure runs it only with one value for all layers."
        )
    return distinct[0]


def _shown(value: Any) -> str:
    """Return the value as text for an error: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
