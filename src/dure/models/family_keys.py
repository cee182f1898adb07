"""What do families call the keys of config.json that others have by other names, and which keys do
they pass over?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A family's own key -> the key that most families use.
_SYNONYMS = {
    "num_local_experts": "num_experts",
    "moe_num_experts": "num_experts",
    "moe_k": "num_experts_per_tok",
    "moe_topk": "num_experts_per_tok",
    "moe_num_shared_experts": "n_shared_experts",
    "moe_layer_start_index": "first_k_dense_replace",
    "n_routed_experts": "num_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "router_scaling_factor": "routed_scaling_factor",
}

# Families in which their own names, which are these, go before the common ones where a config.json
# has both; but that of the number of experts. Names of other families say nothing in them.
_DELTA_NAMES = {
    *("model_max_length", "moe_renormalize", "num_expert_group", "num_experts_per_token"),
    *("num_local_experts", "num_mtp_layers", "num_shared_experts"),
}
_OWN_NAMES = {
    "bailing_hybrid": _DELTA_NAMES,
    "hy_v3": {"num_local_experts", "num_shared_experts", "router_scaling_factor"},
    "kimi_linear": _DELTA_NAMES,
}

# model_type -> what its class passes over, and its relatives obey.
_PASSED_OVER = {"hy_v3": ("n_group", "norm_topk_prob", "routed_scaling_factor", "topk_group")}
# model_type of a wrapper -> what its class passes over and the language model's alone would obey.
_NOT_IN_WRAPPERS = {"gemma3": ("final_logit_softcapping",)}


def by_common_names(own: Mapping[str, Any], wrapper: str | None) -> dict[str, Any]:
    """Return the language model's config by the names that most families use.

    wrapper: the model_type of the folder where `own` is a table of its config; None if it is all.
    """
    family = str(own.get("model_type"))
    dropped = (*_PASSED_OVER.get(family, ()), *_NOT_IN_WRAPPERS.get(wrapper or "", ()))
    own = {key: each for key, each in own.items() if key not in dropped}
    first = _OWN_NAMES.get(family)
    known = _SYNONYMS if first is None else first
    named = {_SYNONYMS[key]: each for key, each in own.items() if key in known}
    values = {**named, **{key: each for key, each in own.items() if key not in _SYNONYMS}}
    if first is not None:
        values |= {key: each for key, each in named.items() if key != "num_experts"}
    return values
