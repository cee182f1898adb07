"""Multimodal folders: which of their config and tensors are the language model's.

Makers publish a model that also sees or hears as one wrapper: config.json has the language model's
keys in a table `text_config`, and tensors have a prefix that says which part they are of. The rest
of dure reads the language model as if it were alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dure.errors import ModelFileError

Tensor = TypeVar("Tensor")

# What stands before the language model's own names: of transformers since 4.52, and before.
_LANGUAGE = re.compile(r"^(?:model\.language_model\.|language_model\.model\.)")
_OUTPUT = re.compile(r"^language_model\.(?=(?:lm_head|mtp)\.)")
# The parts for images and sounds, which no text needs.
_OTHERS = re.compile(
    r"(?:model\.)?(?:visual|vision_tower|vision_model|vit|audio_tower|embed_vision|embed_audio|"
    r"multi_modal_projector|mm_projector)\."
)
_TIED = "tie_word_embeddings"
# What a wrapper may say in the language model's stead.
_SHARED = ("model_type", "bos_token_id", "eos_token_id", "pad_token_id")


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Check whether config.json is of a wrapper: its language model has a table of its own.

    Raises ModelFileError if that is no table.
    """
    table = config.get("text_config")
    if table is not None and not isinstance(table, Mapping):
        raise ModelFileError("config.json has a text_config that is not a table.")
    return table is not None


def language_config(config: Mapping[str, Any], names: Iterable[str] = ()) -> Mapping[str, Any]:
    """Return the language model's config of a config.json, which is all of it without a wrapper.

    names: the checkpoint's tensors. Whether the output is the embedding is for the wrapper to say,
    not for text_config; where it does not, it is if there is no output on disk. A text_config
    without a model_type is of the wrapper's.
    """
    if not is_multimodal(config):
        return config
    own = dict(config["text_config"])
    own |= {key: config[key] for key in _SHARED if own.get(key) is None and key in config}
    tied = config.get(_TIED)
    own[_TIED] = not any("lm_head." in name for name in names) if tied is None else tied
    return own


def quantization_settings(config: Mapping[str, Any]) -> Any:
    """Return what config.json says of its quantisation, for all of it or for its language model."""
    tables = (config, config["text_config"]) if is_multimodal(config) else (config,)
    keys = ("quantization_config", "compression_config")  # the second is compressed-tensors' first
    found = (table.get(key) for table in tables for key in keys)
    return next((settings for settings in found if settings is not None), None)


def language_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the language model's tensors under the names that they have without a wrapper.

    Those of a wrapper's other parts are left out by name; names that are of no known part are kept,
    so that whoever asks for tensors finds them. A language model that was taken out of a wrapper
    may have kept the wrapper's names. Raises ModelFileError for two tensors of one name.
    """
    wraps = is_multimodal(config)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if wraps and _OTHERS.match(name):
            continue
        plain = _OUTPUT.sub("", _LANGUAGE.sub("model.", name))
        if plain in found:
            raise ModelFileError(f"Two of the file's tensors are the language model's {plain}.")
        found[plain] = tensor
    return found
