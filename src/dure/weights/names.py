"""Parameter names: translates those of GGUF files and folders to the ones that families use."""

from __future__ import annotations

import re
from collections.abc import Mapping

# GGUF's tensor names -> those of transformers' checkpoints; {} is the layer.
GGUF_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "cls.output.weight": "score.weight",
    "cls.output.bias": "score.bias",
    "rope_freqs.weight": "rope_freqs.weight",
    "rope_factors_long.weight": "rope_factors_long.weight",
    "rope_factors_short.weight": "rope_factors_short.weight",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_q_a": "model.layers.{}.self_attn.q_a_proj",
    "blk.{}.attn_q_a_norm": "model.layers.{}.self_attn.q_a_layernorm",
    "blk.{}.attn_q_b": "model.layers.{}.self_attn.q_b_proj",
    "blk.{}.attn_kv_a_mqa": "model.layers.{}.self_attn.kv_a_proj_with_mqa",
    "blk.{}.attn_kv_a_norm": "model.layers.{}.self_attn.kv_a_layernorm",
    "blk.{}.attn_kv_b": "model.layers.{}.self_attn.kv_b_proj",
    "blk.{}.attn_k_b": "model.layers.{}.self_attn.k_b_proj",
    "blk.{}.attn_v_b": "model.layers.{}.self_attn.v_b_proj",
    "blk.{}.indexer.attn_q_b": "model.layers.{}.self_attn.indexer.wq_b",
    "blk.{}.indexer.attn_k": "model.layers.{}.self_attn.indexer.wk",
    "blk.{}.indexer.k_norm": "model.layers.{}.self_attn.indexer.k_norm",
    "blk.{}.indexer.proj": "model.layers.{}.self_attn.indexer.weights_proj",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_qkv": "model.layers.{}.linear_attn.in_proj_qkv",
    "blk.{}.attn_gate": "model.layers.{}.linear_attn.in_proj_z",
    "blk.{}.ssm_in": "model.layers.{}.linear_attn.in_proj_qkvz",
    "blk.{}.ssm_ba": "model.layers.{}.linear_attn.in_proj_ba",
    "blk.{}.ssm_alpha": "model.layers.{}.linear_attn.in_proj_a",
    "blk.{}.ssm_beta": "model.layers.{}.linear_attn.in_proj_b",
    "blk.{}.ssm_conv1d": "model.layers.{}.linear_attn.conv1d",
    "blk.{}.ssm_conv1d_q": "model.layers.{}.self_attn.q_conv1d",
    "blk.{}.ssm_conv1d_k": "model.layers.{}.self_attn.k_conv1d",
    "blk.{}.ssm_conv1d_v": "model.layers.{}.self_attn.v_conv1d",
    "blk.{}.ssm_f_a": "model.layers.{}.self_attn.f_a_proj",
    "blk.{}.ssm_f_b": "model.layers.{}.self_attn.f_b_proj",
    "blk.{}.ssm_g_a": "model.layers.{}.self_attn.g_a_proj",
    "blk.{}.ssm_g_b": "model.layers.{}.self_attn.g_b_proj",
    "blk.{}.ssm_a": "model.layers.{}.linear_attn.A",
    "blk.{}.ssm_dt.bias": "model.layers.{}.linear_attn.dt_bias",
    "blk.{}.ssm_norm": "model.layers.{}.linear_attn.norm",
    "blk.{}.ssm_out": "model.layers.{}.linear_attn.out_proj",
    "blk.{}.shortconv.conv": "model.layers.{}.conv.conv",
    "blk.{}.shortconv.in_proj": "model.layers.{}.conv.in_proj",
    "blk.{}.shortconv.out_proj": "model.layers.{}.conv.out_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    "blk.{}.ffn_gate_inp": "model.layers.{}.mlp.gate",
    "blk.{}.ffn_gate_exps": "model.layers.{}.mlp.experts.gate_proj",
    "blk.{}.ffn_up_exps": "model.layers.{}.mlp.experts.up_proj",
    "blk.{}.ffn_gate_up_exps": "model.layers.{}.mlp.experts.gate_up_proj",
    "blk.{}.ffn_down_exps": "model.layers.{}.mlp.experts.down_proj",
    "blk.{}.ffn_gate_shexp": "model.layers.{}.mlp.shared_experts.gate_proj",
    "blk.{}.ffn_up_shexp": "model.layers.{}.mlp.shared_experts.up_proj",
    "blk.{}.ffn_down_shexp": "model.layers.{}.mlp.shared_experts.down_proj",
    "blk.{}.ffn_gate_inp_shexp": "model.layers.{}.mlp.shared_expert_gate",
    # A bias for the choice of experts, not for a product: there is no matrix of this name.
    "blk.{}.exp_probs_b.bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
    "blk.{}.exp_probs_b": "model.layers.{}.mlp.gate.e_score_correction_bias",
}


# Where GGUF has two names for one parameter, we write the first: most architectures have it.
_INTO_GGUF: Mapping[str, str] = {
    **{ours: theirs for theirs, ours in reversed([*GGUF_NAMES.items()])},
    # Read in three parts (formats/gguf_fused.py), and not by this name.
    "model.layers.{}.self_attn.qkv_proj": "blk.{}.attn_qkv",
}


_SHOWN = 5  # names in an error

# Tables that old checkpoints carry and every model computes for itself.
_RECOMPUTED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")


def canonical_name(name: str, is_gguf: bool, tensor_aliases: Mapping[str, str]) -> str:
    """Return the name by which a family asks for the tensor that a file calls `name`.

    tensor_aliases: parts of names -> as the family asks for them. Those that begin with `blk.{}.`
    are GGUF's names, and come before GGUF_NAMES.
    """
    if is_gguf:
        name = _from_gguf(name, tensor_aliases)
    for theirs, ours in tensor_aliases.items():
        name = name.replace(theirs, ours)
    return name


def _from_gguf(name: str, own: Mapping[str, str]) -> str:
    """Translate a GGUF tensor's name; unknown names are kept, so that `check` reports them."""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    match = re.fullmatch(
        r"blk\.(\d+)\.(((?:(?:indexer|shortconv)\.)?\w+)(?:\.(weight|bias|scale))?)", name
    )
    if match is None:
        return name
    layer, whole, kind, suffix = match.groups()
    exact = own.get(f"blk.{{}}.{whole}") or GGUF_NAMES.get(f"blk.{{}}.{whole}")
    if exact is not None:
        return exact.format(layer)
    pattern = own.get(f"blk.{{}}.{kind}") or GGUF_NAMES.get(f"blk.{{}}.{kind}")
    return f"{pattern.format(layer)}.{suffix}" if pattern else name


def plain_name(name: str, tensor_aliases: Mapping[str, str]) -> str | None:
    """Return a folder's tensor name as its family asks for it; None for a computed table."""
    return None if is_recomputed(name) else canonical_name(name, False, tensor_aliases)


def gguf_name(name: str, tensor_aliases: Mapping[str, str]) -> str | None:
    """Return GGUF's name of the parameter that a family asks for as `name`; None without one."""
    if name in _INTO_GGUF:
        return _INTO_GGUF[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return _whole_model(name, tensor_aliases)
    layer, whole = match.groups()
    own = {ours: theirs for theirs, ours in tensor_aliases.items() if theirs.startswith("blk.{}.")}
    exact = own.get(f"model.layers.{{}}.{whole}") or _INTO_GGUF.get(f"model.layers.{{}}.{whole}")
    if exact is not None:
        return exact.format(layer)
    kind, _, suffix = whole.rpartition(".")
    ours = f"model.layers.{{}}.{kind}"
    pattern = own.get(ours) or _INTO_GGUF.get(ours)
    return f"{pattern.format(layer)}.{suffix}" if pattern else None


def _whole_model(name: str, tensor_aliases: Mapping[str, str]) -> str | None:
    """Return a family's own GGUF name of a parameter that is of no layer; None without one."""
    for theirs, ours in tensor_aliases.items():
        of_gguf = theirs[0].isalpha() and not theirs.startswith(("blk.", "model."))
        if of_gguf and ours.startswith("model.") and name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return None


def from_gguf(name: str) -> str:
    """Return a GGUF tensor's name as a family asks for it."""
    return canonical_name(name, True, {})


def is_recomputed(name: str) -> bool:
    """Check whether the tensor is a table in old checkpoints that every model computes itself."""
    return _RECOMPUTED.fullmatch(name) is not None


def few(what: list[str], separator: str = ", ") -> str:
    """Join the first few names of a list, with an ellipsis if there are more."""
    return separator.join([*what[:_SHOWN], *(["…"] if len(what) > _SHOWN else [])])
