"""A config that makes no sense is refused by its key, before any weight is looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import config_of
from tiny_models import MODELS

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import Checkpoint
from dure.formats.tensors import TensorInfo
from dure.models import load_model
from dure.models.config import Config, read_config

FAMILIES = sorted({model_type for model_type, _ in MODELS.values()})

NO_COUNT = (0, -1, 2**40, 10**400, 4.0, "4", True, None, [4], {}, float("nan"))

# key -> values that every family refuses; None where a value has no default.
WRONG: dict[str, tuple[Any, ...]] = {
    "hidden_size": NO_COUNT,
    "num_hidden_layers": (*NO_COUNT, 10**9),
    "num_attention_heads": NO_COUNT,
    "vocab_size": NO_COUNT,
    "num_key_value_heads": (0, -2, 3, 8, "2", 2.0, [2]),
    "head_dim": (0, -2, 15, 2**31 - 2, "24", 16.0),
    "max_position_embeddings": (0, -5, "256", 2**70),
    "rms_norm_eps": (0, 0.0, -1e-6, "1e-6", True, float("nan"), float("inf"), 10**400, []),
    "tie_word_embeddings": ("yes", 1, []),
    "rope_theta": (0, -1, 1, "10000", float("nan"), float("inf"), 10**400, [], False),
    "rope_scaling": ("yarn", [], {"type": "llama3"}, {"type": "linear", "factor": -1}, {"type": 3}),
    "partial_rotary_factor": (0, -0.5, 2, 2e307, "half", float("nan")),
}
WRONG_IN_ONE: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {"intermediate_size": NO_COUNT, "attention_bias": (1, "no")},
    "qwen2": {
        "intermediate_size": NO_COUNT,
        "use_sliding_window": (1, "no"),
        "max_window_layers": (-1, "1"),
    },
    "qwen3": {"intermediate_size": NO_COUNT, "attention_bias": (1, "no")},
    "qwen3_moe": {
        "num_experts": (0, -1, 10**9, "8", None),
        "num_experts_per_tok": (0, -1, 9, "3", None),
        "moe_intermediate_size": NO_COUNT,
        "norm_topk_prob": ("yes", 0),
        "decoder_sparse_step": (0, -1, "1"),
        "mlp_only_layers": ("0", [0.5], ["1"], {"0": 1}, 3, [True]),
    },
    "qwen2_moe": {"shared_expert_intermediate_size": (0, -1, "5"), "qkv_bias": (1, "no")},
    "ernie4_5_moe": {"moe_layer_interval": (0, -1, "1"), "moe_layer_end_index": (-2, "1")},
    "hunyuan_v1_moe": {"num_shared_expert": (2, 0, [2, 2]), "moe_intermediate_size": ([4, 8],)},
    "gemma3": {
        "intermediate_size": NO_COUNT,
        "sliding_window": (0, -1, "8"),
        "query_pre_attn_scalar": (0, -1, "16", float("nan")),
        "final_logit_softcapping": (-1, "30", float("inf")),
        "rope_local_base_freq": (0, "10000"),
    },
    "gemma4_text": {
        "global_head_dim": (0, -2, 15, "32"),
        "num_kv_shared_layers": (-1, 4, 2, "1"),
        "hidden_size_per_layer_input": (-1, "16"),
        "sliding_window": (0, -1, "8"),
        "num_experts": (0, -1, 10**9, "8", None),
        "top_k_experts": (0, -1, 9, "3", None),
        "per_layer_config": (3, [], {"1": 5}),
    },
    "minimax_m2": {"attn_type_list": (0, [0, 1], [0, 0])},
    "olmoe": {
        "intermediate_size": NO_COUNT,
        "num_experts": (0, -1, 10**9, "8", None),
        "num_experts_per_tok": (0, -1, 9, "3", None),
        "norm_topk_prob": ("yes", 0),
    },
    "mixtral": {
        "intermediate_size": NO_COUNT,
        "num_experts": (0, -1, 10**9, "8"),
        "num_experts_per_tok": (0, -1, 9, "3"),
        "sliding_window": (0, -1, "8"),
    },
    "pangu_embedded": {"bias": (1, "no")},
    "dots1": {"sliding_window": (0, -1, "8"), "max_window_layers": (-1, "1")},
    "exaone_moe": {
        "sliding_window": (0, -1, "8"),
        "sliding_window_pattern": (0, "LLLG"),
        "mlp_layer_types": (["dense"], "dense", 3),
    },
    "hy_v3": {"mlp_layer_types": (["dense"], "dense", ["dense", "moe", "sparse"], 3)},
    "deepseek_v2": {key: (0, -1, "4", True, [4]) for key in ("kv_lora_rank", "q_lora_rank")},
    "glm4_moe": {"n_group": (0, -1, 3, "4"), "use_qk_norm": (1, "no"), "n_shared_experts": (-1,)},
    "kimi_linear": {"linear_head_dim": (0, "16"), "linear_conv_kernel_dim": (0, 17)},
    "bailing_hybrid": {
        "kda_lower_bound": (0, 5, -1e9, "-5", True, float("nan")),
        "kda_safe_gate": (1, "yes"),
        "layer_group_size": (0, "3"),
        "linear_head_dim": (0, "16", 2000),
    },
    "deepseek_v3": {"n_group": (0, -1, 3, "4"), "topk_group": (0, 9), "norm_topk_prob": (1, "no")},
}
# Heads over latents have other sizes, and do not read these.
NOT_READ = {"num_key_value_heads", "head_dim"}
OVER_LATENTS = {"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"}
OVER_LATENTS |= {"kimi_linear", "bailing_hybrid", "minicpm3"}
NOT_RUN: tuple[tuple[str, Any], ...] = (
    ("hidden_act", "gelu"),
    ("hidden_act", "quick_gelu"),
    ("hidden_act", ["silu"]),
    ("hidden_act", "x" * 10**6),
    ("rope_scaling", {"type": "spiral", "factor": 2.0}),
)
NOT_RUN_BY: tuple[tuple[str, str, Any], ...] = (
    ("bailing_hybrid", "gated_attention_proj_granularity_type", "element_wise"),
    ("bailing_hybrid", "no_kda_lora", False),
    ("bailing_hybrid", "use_mla_nope", True),
    ("bailing_hybrid", "value_norm", True),
    ("kimi_linear", "mla_use_nope", False),
    ("kimi_linear", "moe_router_activation_func", "softmax"),
    ("llama", "sliding_window", 64),
    ("pangu_embedded", "mlp_bias", True),
    ("ernie4_5_moe", "moe_norm_min", 0.4),
    ("gemma3", "use_bidirectional_attention", True),
    ("gemma4_text", "use_bidirectional_attention", "all"),
    ("hunyuan_v1_dense", "use_qk_norm", False),
    ("hunyuan_v1_moe", "use_cla", True),
    ("hunyuan_v1_moe", "moe_layer_num_skipped", 1),
    ("olmoe", "clip_qkv", 8.0),
    ("olmoe", "head_dim", 24),
    ("minimax_m2", "scoring_func", "softmax"),
    ("minimax_m2", "use_routing_bias", False),
    ("minimax_m2", "qk_norm_type", "per_head"),
    ("minimax_m2", "shared_intermediate_size", 64),
    ("qwen2_moe", "use_sliding_window", True),
    ("pangu_pro_moe", "norm_topk_prob", True),
    ("glm4_moe", "hidden_act", "gelu"),
    ("mimo", "num_nextn_predict_layers", 3),
    ("deepseek_v2", "topk_method", "noaux_tc"),
    ("deepseek_v2", "norm_topk_prob", True),
    ("deepseek_v2", "moe_layer_freq", 2),
    ("deepseek_v3", "scoring_func", "softmax"),
    ("deepseek_v3", "mlp_bias", True),
    ("dots1", "scoring_func", "softmax"),
    ("hy_v3", "route_norm", False),
    ("solar_open", "first_k_dense_replace", 1),
    ("solar_open", "use_qk_norm", True),
)

# Whose activation is GELU, under a key of their own, and whose makers leave out usual sizes.
GEMMAS = {"gemma3", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified_text"}
LEFT_OUT = {"num_attention_heads", "vocab_size"}
# Which Gemma 4 has never had at the top of its config.
IN_TABLES = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
# Keys that a class passes over: LFM2's is norm_eps, and Ministral 3 has its base in a table.
PASSED_OVER = {("lfm2", "rms_norm_eps"), ("lfm2_moe", "rms_norm_eps"), ("ministral3", "rope_theta")}


def wrong(family: str) -> Iterator[tuple[str, Any]]:
    """Every key of a family with a value that makes no sense: a hundred of each family."""
    for key, values in (WRONG | WRONG_IN_ONE.get(family, {})).items():
        if key in NOT_READ and family in OVER_LATENTS:
            continue
        if key in IN_TABLES and family.startswith("gemma4"):
            continue
        if (family, key) in PASSED_OVER:
            continue
        for value in values:
            if not (value is None and key in LEFT_OUT and family in GEMMAS):
                yield key, value


def load(config: dict[str, Any]) -> None:
    """Tries to load a model of the config from a checkpoint that has no tensors."""
    load_model(Checkpoint(Path("tiny"), "safetensors", {}, config=config))


def refusal(kind: type[DureError], config: dict[str, Any]) -> str:
    """What the config is refused with, by an error of this kind; nothing if it is not."""
    try:
        load(config)
    except kind as error:
        return error.message
    return ""


def plain(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json of before transformers 5, with rope_theta at its top."""
    config = config_of(family)
    del config["rope_parameters"]
    return {**config, "rope_theta": 10000.0, **changes}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_config_is_followed_by_the_search_for_weights(family: str) -> None:
    with pytest.raises(
        ModelFileError, match=r"lacks .* tensors that the model needs: model\.embed"
    ):
        load(plain(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_that_makes_no_sense_is_refused_by_name(family: str) -> None:
    said = {
        "rope_theta": "theta",
        "rope_local_base_freq": "theta",
        "global_head_dim": "head_dim",
        "rope_scaling": "RoPE|rope|`type`",
        "partial_rotary_factor": "",
    }
    for key, value in wrong(family):
        message = refusal(ModelFileError, plain(family, **{key: value}))
        case = (key, str(value)[:60], message)
        assert any(word in message for word in said.get(key, key).split("|")), case
        assert "tensors that the model needs" not in message, case
        assert 0 < len(message) < 250, case


def not_run(family: str) -> Iterator[tuple[str, Any]]:
    """What no family computes, under this family's keys."""
    for key, value in NOT_RUN:
        if family in GEMMAS and key == "hidden_act":
            yield "hidden_activation", "silu" if value == "gelu_pytorch_tanh" else value
        elif family.startswith("gemma4") and key == "rope_scaling":
            yield "rope_parameters", {"full_attention": value}
        else:
            yield key, value


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_computed_is_refused(family: str) -> None:
    for key, value in not_run(family):
        message = refusal(UnsupportedModelError, plain(family, **{key: value}))
        assert 0 < len(message) < 250, (key, str(value)[:60], message)


@pytest.mark.parametrize(("family", "key", "value"), NOT_RUN_BY)
def test_what_one_family_does_not_compute_is_refused_by_name(
    family: str, key: str, value: Any
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{key} = {value!r}"):
        load(plain(family, **{key: value}))


ROPE_KEYS = (
    *("type", "rope_type", "factor", "beta_fast", "low_freq_factor", "attention_factor", "alpha"),
    *("original_max_position_embeddings", "rope_theta", "full_attention", "mscale_all_dim"),
)
KEYS = sorted(
    {key for table in (WRONG, *WRONG_IN_ONE.values()) for key in table}
    | {"rope_parameters", "layer_types", "sliding_window", "num_local_experts", "hidden_act"}
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, 1, 2, 4, 2**31, 10**400, 1e308, "yarn", "llama3", "sliding_attention"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROPE_KEYS), inner, max_size=4)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("multiplier", [0, -1, "1", 1e308, float("inf")])
def test_an_mlp_wider_than_any_is_refused(multiplier: Any) -> None:
    config = plain("lfm2", block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=multiplier)
    with pytest.raises(ModelFileError, match="block_ffn_dim_multiplier"):
        load(config)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(KEYS), values), st.booleans())
def test_no_config_ends_in_anything_but_our_own_errors(
    family: str, changes: dict[str, Any], slides: bool
) -> None:
    with pytest.raises(DureError):
        load(plain(family, **{"use_sliding_window": slides, **changes}))


def test_what_transformers_5_calls_local_experts_are_the_experts() -> None:
    config = {"model_type": "qwen3_moe", "num_local_experts": 8}
    checkpoint = Checkpoint(Path("tiny"), "safetensors", {}, config=config)
    assert read_config(checkpoint).integer("num_experts") == 8


def test_layers_slide_by_their_kinds_or_from_max_window_layers_on() -> None:
    def windows(**values: Any) -> tuple[int | None, ...]:
        return Config(values, "config.json").windows(3)

    on = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    nowhere = (None, None, None)
    assert windows() == nowhere
    assert windows(**{**on, "use_sliding_window": False, "layer_types": kinds}) == nowhere
    assert windows(**{**on, "sliding_window": None}) == nowhere
    assert windows(use_sliding_window=True) == nowhere  # the first of 28 slides
    assert windows(use_sliding_window=True, max_window_layers=2) == (None, None, 4096)
    assert windows(**on) == (None, 8, 8)
    assert windows(**on, layer_types=kinds) == (8, None, None)
    for wrong in (kinds[:2], "sliding_attention", ["chunked_attention"] * 3, [["full_attention"]]):
        with pytest.raises(ModelFileError, match="layer_types"):
            windows(**on, layer_types=wrong)


def gguf_checkpoint(**keys: Any) -> Checkpoint:
    """A GGUF checkpoint of the llama architecture with these keys."""
    metadata = {"general.architecture": "llama"}
    metadata |= {f"llama.{key.replace('__', '.')}": value for key, value in keys.items()}
    embedding = TensorInfo("token_embd.weight", "F32", (256, 64), None, 0, 65536)  # type: ignore[arg-type]
    return Checkpoint(Path("a.gguf"), "gguf", {"token_embd.weight": embedding}, metadata=metadata)


def test_gguf_keys_come_under_the_names_of_config_json() -> None:
    keys = {
        "embedding_length": 64,
        "attention__head_count": 4,
        "attention__head_count_kv": 2,
        "attention__layer_norm_rms_epsilon": 1e-5,
        "rope__freq_base": 5e5,
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 64,
    }
    values = read_config(gguf_checkpoint(**keys)).values
    expected = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "value_head_dim": 16,
        "rotary_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "vocab_size": 256,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }
    assert expected == values


def test_a_gguf_key_with_one_value_a_layer_is_read_if_they_are_equal() -> None:
    heads = {"attention__head_count": 4}
    equal = np.array([2, 2, 2], np.int32)
    assert read_config(gguf_checkpoint(**heads, attention__head_count_kv=equal)).heads() == (4, 2)
    for different in (np.array([2, 4, 2], np.int32), np.array([], np.int32)):
        with pytest.raises(UnsupportedModelError, match=r"head_count_kv.*all layers"):
            read_config(gguf_checkpoint(**heads, attention__head_count_kv=different))


@pytest.mark.parametrize(
    "value", [["2"], "2", np.array([2.5, 2.5]), np.array([True, True]), 2**63, -1, 0]
)
def test_a_gguf_key_of_the_wrong_kind_is_refused_by_its_name(value: Any) -> None:
    checkpoint = gguf_checkpoint(attention__head_count=4, attention__head_count_kv=value)
    with pytest.raises(ModelFileError, match="num_key_value_heads"):
        read_config(checkpoint).heads()


def test_a_key_that_must_not_be_there_is_refused_in_a_whole_sentence() -> None:
    Config({"clip_qkv": None}, "it").expect("clip_qkv")
    with pytest.raises(UnsupportedModelError, match=r"8\.0, which.* it runs models without it\.$"):
        Config({"clip_qkv": 8.0}, "it").expect("clip_qkv")


@pytest.mark.parametrize(("written", "read"), [(8, 8), ([8, 8, 8], 8), (None, 3)])
def test_a_number_may_be_written_for_every_layer(written: Any, read: int) -> None:
    assert Config({"moe_topk": written}, "it").same_for_all("moe_topk", 3, 3) == read


@pytest.mark.parametrize(
    "written", [[8, 8, 9], [8, 8], [], [True] * 3, ["8"] * 3, 0, [0] * 3, [17] * 3, 8.0]
)
def test_layers_that_differ_are_refused(written: Any) -> None:
    with pytest.raises(ModelFileError, match="moe_topk"):
        Config({"moe_topk": written}, "it").same_for_all("moe_topk", 3, high=16)
