"""What a config.json leaves out, or says twice, means what transformers takes it for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_configs import COMMON, MODELS
from tiny_models import (
    NUMPY,
    STAND_INS,
    furthest,
    loaded,
    oracle_logits,
    oracle_of,
    prefill_logits,
    reopened,
    saved_as,
)
from transformers import AutoConfig, AutoModelForCausalLM

from dure.errors import ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.formats.context import one_rotation, stretched_context
from dure.formats.tensors import TensorInfo
from dure.models import families, family_of
from dure.models.config import read_config

ABSENT = object()
TOKENS = list(range(3, 43))
LONG = [each % 250 for each in range(600)]  # beyond the window of another class
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PLAIN = {"rope_type": "default", "rope_theta": 300.0}
FULL = {"full_attention": {**YARN, "rope_theta": 300.0}, "sliding_attention": None}
SLIDING = {"sliding_attention": PLAIN}

# name in tiny_configs, what else it is, and what its config.json says instead
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "smollm3 without a base": ("smollm3", {}, {"rope_parameters": ABSENT}),
    "ministral3 with a base alone": (
        "ministral3",
        {},
        {"rope_parameters": ABSENT, "rope_theta": 300.0},
    ),
    "qwen3-vl without a base": ("qwen3_vl", {}, {"rope_parameters": ABSENT}),
    "qwen3-vl has no windows": (
        "qwen3_vl",
        {},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
    "qwen3-vl mixtures normalise": ("qwen3_vl_moe", {}, {"norm_topk_prob": ABSENT}),
    "qwen3-vl mixtures always normalise": ("qwen3_vl_moe", {}, {"norm_topk_prob": False}),
    "qwen3-vl mixtures have no windows": (
        "qwen3_vl_moe",
        {},
        {"use_sliding_window": True, "sliding_window": 4},
    ),
    "qwen3-vl mixtures without a head's size": (
        "qwen3_vl_moe",
        {"head_dim": 16},
        {"head_dim": ABSENT},
    ),
    "a first context beside the table": (
        "exaone4",
        {"rope_parameters": {**YARN, "rope_theta": 300.0}},
        {"original_max_position_embeddings": 32},
    ),
    "silu by another name": ("llama", {}, {"hidden_act": "swish"}),
    "a GELU by another name": ("qwen3", {}, {"hidden_act": "gelu_new"}),
    "a GELU by a third name": ("qwen3", {}, {"hidden_act": "gelu_python_tanh"}),
    "seed-oss, a head's size is null": ("seed_oss", {"head_dim": 16}, {"head_dim": None}),
    "ernie, a head's size is null": ("ernie4_5", {"head_dim": 16}, {"head_dim": None}),
    "lfm2, another norm's epsilon": ("lfm2", {}, {"norm_eps": ABSENT, "rms_norm_eps": 0.3}),
    "lfm2-moe, another norm's epsilon": ("lfm2_moe", {}, {"norm_eps": ABSENT, "rms_norm_eps": 0.3}),
    "ernie, no least sum of shares": ("ernie4_5_moe", {}, {"moe_norm_min": 0.0}),
    "internlm3 without an epsilon": ("internlm3", {}, {"rms_norm_eps": ABSENT}),
    "gemma4-unified without a window": (
        "gemma4_unified_text",
        {"sliding_window": 1024},
        {"sliding_window": ABSENT},
    ),
    "yarn added beside a table": (
        "qwen3",
        {},
        {"rope_parameters": PLAIN, "rope_theta": 300.0, "rope_scaling": YARN},
    ),
    "yarn whose bounds are not rounded": (
        "qwen3",
        {},
        {"rope_parameters": {**YARN, "rope_theta": 300.0, "truncate": None}},
    ),
    "yarn added beside tables of kinds": ("gemma3_text", {}, {"rope_scaling": YARN}),
    "yarn added beside olmo's tables": ("olmo3", {}, {"rope_scaling": YARN}),
    "deepseek-v2 rotates neighbours": ("deepseek_v2", {}, {"rope_interleave": False}),
    "deepseek-v3, null is false": (
        "deepseek_v3",
        {},
        {"rope_interleave": None, "norm_topk_prob": None},
    ),
    "no table for olmo's layers with a window": ("olmo3", {}, {"rope_parameters": FULL}),
    "no table for olmo's layers without one": ("olmo3", {}, {"rope_parameters": SLIDING}),
    "kimi-linear's own names": (
        "kimi_linear-groups",
        {},
        {"norm_topk_prob": False, "n_group": 1, "num_experts_per_tok": 1},
    ),
    "ling's own names": (
        "bailing_hybrid",
        {},
        {"norm_topk_prob": False, "n_group": 1, "num_experts_per_tok": 1},
    ),
    "exaone's own names": ("exaone", {}, {"layer_norm_epsilon": 0.3, "rms_norm_eps": 1e-5}),
    "internlm3's own names of biases": (
        "internlm3",
        {"attention_bias": True, "mlp_bias": True},
        {"attention_bias": False, "mlp_bias": False, "qkv_bias": True, "bias": True},
    ),
    "llama has no qwen's biases": ("llama", {}, {"attention_bias": ABSENT, "qkv_bias": True}),
    "olmo2 has no windows": (
        "olmo2",
        {},
        {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
    ),
    "gemma 3 that sees has no cap": ("gemma3", {}, {"final_logit_softcapping": 2.0}),
    "qwen3.5 always normalises": ("qwen3_5_moe", {}, {"norm_topk_prob": False}),
    "hy3 has no groups and always normalises": (
        "hy_v3",
        {},
        {
            **{"norm_topk_prob": False, "moe_renormalize": False, "n_group": 4, "topk_group": 1},
            "routed_scaling_factor": 0.5,
        },
    ),
    "hy3 without a factor of its own": (
        "hy_v3",
        {},
        {"router_scaling_factor": ABSENT, "routed_scaling_factor": 0.5},
    ),
    "ling has no hy3's factor": ("bailing_hybrid", {}, {"router_scaling_factor": 2.2}),
    "ling, null is true": ("bailing_hybrid", {}, {"rope_interleave": None}),
    "deepseek-v3.2, null is true": ("deepseek_v32", {}, {"rope_interleave": None}),
    "mimo, the makers' epsilon beside transformers'": (
        "mimo_v2_flash",
        {},
        {"layernorm_epsilon": 0.3},
    ),
    "mimo, no token before the query": ("mimo_v2_flash", {}, {"sliding_window_size": 0}),
    "mimo, a scaled rotation of no named part": (
        "mimo_v2_flash",
        {},
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 300.0}, **SLIDING}},
    ),
    "mimo, a part that only the config names": (
        "mimo_v2_flash",
        {},
        {
            "rope_parameters": {"full_attention": PLAIN, **SLIDING},
            "partial_rotary_factor": 0.75,
        },
    ),
    "mimo, a part that is looked for": (
        "mimo_v2_flash",
        {},
        {
            "rope_parameters": {"full_attention": {**YARN, "rope_theta": 300.0}, **SLIDING},
            "partial_rotary_factor": 0.75,
        },
    ),
    "glm-5, whose layers that draft are listed": (
        "glm_moe_dsa",
        {},
        {
            "indexer_types": ["full", "full", "shared", "shared", "full", "shared"],
            "num_nextn_predict_layers": 1,
        },
    ),
    "yarn beside a table of nothing": (
        "llama",
        {},
        {"rope_parameters": {}, "rope_theta": 300.0, "rope_scaling": YARN},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_config_means_what_transformers_reads_in_it(case: str, tmp_path: Path) -> None:
    name, settings, edits = CASES[case]
    family, own = MODELS[name]
    saved_as(family, oracle_of(family, {**own, **settings}), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text |= edits
    for key in [key for key, value in text.items() if value is ABSENT]:
        del text[key]
    path.write_text(json.dumps(config, sort_keys=True))  # as transformers does
    tokens = LONG if "unified" in case else TOKENS
    expected = oracle_logits(reopened(tmp_path), tokens)
    assert furthest(expected, prefill_logits(loaded(tmp_path), tokens)) < 1e-4


def test_a_scaling_beside_a_table_keeps_the_tables_base() -> None:
    """transformers then takes the class's base, by which no such file was trained."""
    both = {"rope_parameters": PLAIN, "rope_scaling": YARN, "max_position_embeddings": 32}
    merged = {"max_position_embeddings": 32, "rope_parameters": {"rope_theta": 300.0, **YARN}}
    assert one_rotation(both) == merged
    assert stretched_context(both, 32) == stretched_context(merged, 32) == 64
    for kept in (
        {"rope_parameters": PLAIN, "rope_scaling": None},
        {"rope_parameters": None, "rope_scaling": YARN},
        {"rope_parameters": {"full_attention": PLAIN}, "rope_scaling": YARN},
    ):
        assert one_rotation(kept) == kept


# Families whose heads share one latent, or have a number for each kind of layers.
NO_KV_HEADS = {
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3"),
    *("kimi_linear", "bailing_hybrid", "gemma4", "gemma4_text", "gemma4_unified_text"),
}
# Families of GGUF, but those whose heads share a latent, or differ from layer to layer.
IN_GGUF = {each.GGUF_ARCHITECTURE for each in families().values() if each.GGUF_ARCHITECTURE}
IN_GGUF -= {
    "deepseek2",
    "deepseek32",
    "glm-dsa",
    "minicpm3",
    "kimi-linear",
    "bailingmoe3",
    "gemma4",
}
# Where transformers, too, needs to be told.
NO_CHOICE = {"deepseek_v2", "dots1", "gemma4", "gemma4_text"}
FAMILIES = {model_type for model_type, _ in MODELS.values()} - {*STAND_INS, *NUMPY}
HEADS = "num_key_value_heads"
# What families call the experts of a layer, and of a token.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


class _AskedError(Exception):
    """The sizes are read, and now a weight is wanted."""


class _NoWeights:
    def __init__(self, is_gguf: bool) -> None:
        self.is_gguf = is_gguf

    def has(self, name: str) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise _AskedError


def usual(family: str) -> Any:
    """The config of a family's class, of which nothing is said."""
    return AutoConfig.for_model(family).get_text_config()


def sizes_of(family: str, left_out: Sequence[str] = (), **said: Any) -> Any:
    """What the family's file reads in the config of a tiny model."""
    return read_model(checkpoint_of(family, left_out, **said))


def checkpoint_of(family: str, left_out: Sequence[str] = (), **said: Any) -> Checkpoint:
    """A folder without weights, with the config of a tiny model of the family."""
    values = {**COMMON, **dict(MODELS.values())[family], "model_type": family, **said}
    config = {key: value for key, value in values.items() if key not in left_out}
    return Checkpoint(Path("tiny"), "safetensors", {}, config=config)


def read_model(checkpoint: Checkpoint) -> Any:
    """What the family's file reads in a checkpoint's config."""
    made = family_of(checkpoint).Model
    model = made.__new__(made)
    with pytest.raises(_AskedError):
        model.__init__(read_config(checkpoint), _NoWeights(checkpoint.kind == "gguf"))
    return model.config


@pytest.mark.parametrize("family", sorted(FAMILIES - NO_KV_HEADS))
def test_kv_heads_that_are_left_out_are_those_of_the_class(family: str) -> None:
    expected = getattr(type(usual(family)), HEADS) or 64
    wide = {"num_attention_heads": 64, "hidden_size": 1024, "swa_num_key_value_heads": 8}
    wide["layer_types"] = None  # so that MiMo's first layer has no window
    read = [sizes_of(family, [HEADS], **wide), sizes_of(family, **wide, num_key_value_heads=None)]
    if family == "mimo_v2_flash":
        read = [sizes.kinds[0] for sizes in read]
    assert [sizes.kv_heads for sizes in read] == [expected, 64]


@pytest.mark.parametrize("family", sorted(FAMILIES - NO_KV_HEADS))
def test_kv_heads_of_the_class_that_do_not_divide_the_heads_are_refused(family: str) -> None:
    """transformers then computes nothing, either; it may only be that the file forgot to say."""
    few = getattr(type(usual(family)), HEADS)
    if few is None:
        return
    checkpoint = checkpoint_of(family, [HEADS], num_attention_heads=few + 1, head_dim=16)
    with pytest.raises(ModelFileError, match=f"does not say {HEADS}, and the {few} that"):
        read_model(checkpoint)


def test_transformers_computes_nothing_with_kv_heads_that_do_not_divide_the_heads() -> None:
    values = {**COMMON, "num_attention_heads": 12, "hidden_size": 96, "head_dim": 8}
    del values[HEADS]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mistral", **values), attn_implementation="eager"
    )
    with pytest.raises(RuntimeError, match="12"):
        oracle_logits(model, TOKENS)


def gguf_of(architecture: str, **more: Any) -> Checkpoint:
    """A GGUF without weights, of 5 heads and a hidden size of 80; two underscores are a dot."""
    sizes = {"embedding_length": 80, "attention__head_count": 5, "attention__head_count_kv": 1}
    sizes |= {"feed_forward_length": 64, "expert_count": 8, "expert_used_count": 2}
    sizes |= {"expert_feed_forward_length": 32, "context_length": 128, "block_count": 4}
    keys = {**sizes, "attention__value_scale": 1.0, **more}
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    metadata["general.architecture"] = architecture
    embedding = TensorInfo("token_embd.weight", "F32", (256, 80), None, 0, 81920)  # type: ignore[arg-type]
    return Checkpoint(Path("a"), "gguf", {embedding.name: embedding}, metadata=metadata)


@pytest.mark.parametrize("architecture", sorted(IN_GGUF))
def test_heads_of_a_gguf_that_says_nothing_of_them_are_as_in_llama_cpp(architecture: str) -> None:
    model = read_model(gguf_of(architecture))
    assert (model.head_dim, model.rope.dim, model.rope.theta) == (16, 16, 10000.0)


def test_layers_with_a_window_have_a_base_of_10000_in_a_gguf_that_says_none_for_them() -> None:
    model = read_model(gguf_of("mimo2", rope__freq_base=5e6, attention__sliding_window=8))
    found = {kind.window: kind.rope.theta for kind in model.kinds}
    assert found == {None: 5e6, 8: 10000.0}


@pytest.mark.parametrize("architecture", sorted(IN_GGUF))
def test_a_part_of_a_head_that_a_gguf_rotates_is_no_other_here(architecture: str) -> None:
    checkpoint = gguf_of(architecture, rope__dimension_count=8)
    if architecture == "gpt-oss":
        with pytest.raises(UnsupportedModelError, match="rotates 8 of the 16"):
            read_model(checkpoint)
        return
    model = read_model(checkpoint)
    assert model.rope.dim == getattr(model, "sliding_rope", model.rope).dim == 8


@pytest.mark.parametrize("family", sorted(FAMILIES - NO_CHOICE))
def test_experts_that_are_left_out_are_those_of_the_class(family: str) -> None:
    config = usual(family)
    if not hasattr(config, "num_experts_per_tok"):
        return
    sizes = sizes_of(family, [*EXPERTS, *CHOSEN])
    experts = next(getattr(config, key) for key in EXPERTS if hasattr(config, key))
    found = sizes.routing.top_k if hasattr(sizes, "routing") else sizes.experts_per_token
    assert sizes.experts == experts
    assert {*np.ravel(found)} == {config.num_experts_per_tok}  # HunYuan has one for each layer
