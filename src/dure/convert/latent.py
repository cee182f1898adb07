"""The families with latent attention, DeepSeek's and those made of its layers, in llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dure.convert.family import WITHOUT_BIAS, Family, long_rope, routed
from dure.convert.kda import delta_values
from dure.convert.tensors import Layout, otherwise
from dure.models import glm_moe_dsa

if TYPE_CHECKING:
    from dure.models.config import Config

_LITE_LAYERS = (26, 27)


def latent_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make the values of latent attention, which llama.cpp sees as one head of keys."""
    if sizes.query_latent is None and sizes.layers not in _LITE_LAYERS:
        raise otherwise(
            f"{config.source} has no q_lora_rank and {sizes.layers} layers, and llama.cpp knows "
            "DeepSeek-V2-Lite, which has none either, by its 27 layers."
        )
    return _over_latents(config, sizes)


def _over_latents(config: Config, sizes: Any) -> dict[str, Any]:
    """Make the values of latent attention and of DeepSeek's router."""
    return {
        "num_key_value_heads": 1,
        "head_dim": sizes.latent + sizes.rotated,
        "value_head_dim": sizes.latent,
        "qk_head_dim": sizes.plain + sizes.rotated,
        "v_head_dim": sizes.value,
        "q_lora_rank": sizes.query_latent,
        "kv_lora_rank": sizes.latent,
        "first_k_dense_replace": dense_in_front(config, sizes),
        **routed(sizes.routing),
    }


def dense_in_front(config: Config, sizes: Any) -> int:
    """Return how many dense layers there are; llama.cpp needs all in front of the mixtures."""
    dense: int = sizes.dense_layers
    if not all(sizes.sparse_layers[dense:]):
        raise otherwise(
            f"{config.source} has dense layers behind mixtures of experts (mlp_layer_types), and "
            "llama.cpp has them only in front."
        )
    return dense


def _delta_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make the values of Kimi-Linear and Ling-3.0: latents, and recurrent layers beside them."""
    return {**_over_latents(config, sizes), **delta_values(config, sizes)}


def _indexed_values(config: Config, sizes: Any, heads: int) -> dict[str, Any]:
    """Make the values of layers with an indexer: those of latents, and the indexers' sizes."""
    return {
        **latent_values(config, sizes),
        "index_n_heads": config.integer("index_n_heads", heads),
        "index_head_dim": config.integer("index_head_dim", 128),
        "index_topk": config.integer("index_topk", 2048),
    }


def _deepseek_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make DeepSeek-V3.2's values."""
    return _indexed_values(config, sizes, 64)


def _glm_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make GLM-5's values, with the layers that have an indexer of their own."""
    if sizes.rope.type != "default":
        raise otherwise(
            f"{config.source} scales its rotation ({sizes.rope.type}), which llama.cpp does not do "
            "for this family."
        )
    full = glm_moe_dsa.own_indexers(config, sizes.layers, drafts=sizes.extra_layers)
    return {**_indexed_values(config, sizes, 32), "indexer_types": full}


def _minicpm_values(config: Config, sizes: Any) -> dict[str, Any]:
    """Make MiniCPM3's values; its scales have no keys, and llama.cpp takes those of the 4B."""
    if sizes.query_latent is None:
        raise otherwise(
            f"{config.source} has no q_lora_rank, and llama.cpp has queries of latents only."
        )
    for key, value, taken in (
        ("scale_emb", sizes.embedding_scale, 12.0),
        ("scale_depth", sizes.residual_scale * sizes.layers**0.5, 1.4),
        ("dim_model_base", sizes.hidden / sizes.logit_divisor, 256.0),
    ):
        if not math.isclose(value, taken):
            raise otherwise(
                f"{config.source} scales by {key} = {value:g}, and llama.cpp computes minicpm3 "
                f"only with {taken:g}."
            )
    return {
        "num_key_value_heads": sizes.heads,
        "head_dim": sizes.plain + sizes.rotated,
        "value_head_dim": sizes.value,
        "q_lora_rank": sizes.query_latent,
        "kv_lora_rank": sizes.latent,
        **long_rope(sizes.rope),
    }


_NEEDS = {**WITHOUT_BIAS, "rope_interleave": (True, True)}
_DELTA = {**_NEEDS, "norm_topk_prob": (True, True)}
LATENT: Mapping[str, Family] = {
    "glm4_moe_lite": Family(architecture="deepseek2", needs=_NEEDS, values=latent_values),
    # Groups it knows by the sum of their best two, as V3 has them and V2 does not.
    "deepseek_v2": Family(
        needs={**_NEEDS, "topk_method": ("greedy", "greedy")}, values=latent_values
    ),
    "deepseek_v3": Family(architecture="deepseek2", needs=_NEEDS, values=latent_values),
    "deepseek_v32": Family(needs=_NEEDS, values=_deepseek_values),
    "glm_moe_dsa": Family(needs=_NEEDS, values=_glm_values),
    "kimi_linear": Family(
        needs={**_DELTA, "tie_word_embeddings": (False, False)}, values=_delta_values
    ),
    "minicpm3": Family(
        Layout(whole=True), needs=WITHOUT_BIAS, values=_minicpm_values, ropes=("longrope",)
    ),
    "bailing_hybrid": Family(needs={**_DELTA, "kda_safe_gate": (True, True)}, values=_delta_values),
}
