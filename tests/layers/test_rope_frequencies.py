"""dure.layers.rope against the rotary frequencies of transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_dense.configuration_hunyuan_v1_dense import (
    HunYuanDenseV1Config,
)
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import (
    HunYuanDenseV1RotaryEmbedding,
)
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dure.errors import ModelFileError, UnsupportedModelError
from dure.layers.rope import ROPE_TYPES, RopeConfig, magnitude_scale, rope_frequencies

HEAD_DIM = 64
LEGACY: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 1e6},
    "linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
    "yarn-deepseek": {
        "rope_theta": 1e4,
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    },
    "yarn-attention-factor": {
        "rope_theta": 1e4,
        "max_position_embeddings": 4096,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "attention_factor": 1.25,
        },
    },
    "yarn-untruncated": {
        "rope_theta": 150000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    },
    "llama3": {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "dynamic": {
        "rope_theta": 1e4,
        "max_position_embeddings": 2048,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
}


def oracle(config: dict[str, Any], head_dim: int) -> tuple[np.ndarray, float]:
    """What transformers computes for the same config.json."""
    hf = LlamaConfig(
        hidden_size=head_dim * 4, num_attention_heads=4, head_dim=head_dim, **as_keywords(config)
    )
    kind = hf.rope_parameters["rope_type"]
    function = (
        LlamaRotaryEmbedding.compute_default_rope_parameters
        if kind == "default"
        else ROPE_INIT_FUNCTIONS[kind]
    )
    frequencies, multiplier = function(hf)
    return frequencies.numpy(), multiplier


def as_keywords(config: dict[str, Any]) -> dict[str, Any]:
    """A deep enough copy: transformers writes into the tables it is given."""
    return {key: dict(v) if isinstance(v, dict) else v for key, v in config.items()}


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """The same config in the form that transformers 5 writes."""
    config = as_keywords(config)
    parameters = config.pop("rope_scaling", {"rope_type": "default"})
    if "type" in parameters:
        parameters["rope_type"] = parameters.pop("type")
    return {**config, "rope_parameters": {**parameters, "rope_theta": config.pop("rope_theta")}}


@pytest.mark.parametrize("head_dim", [24, 64, 128])
@pytest.mark.parametrize("name", LEGACY)
def test_frequencies_and_multiplier_are_those_of_transformers(name: str, head_dim: int) -> None:
    expected, expected_multiplier = oracle(LEGACY[name], head_dim)

    actual, multiplier = rope_frequencies(RopeConfig.from_hf(LEGACY[name], head_dim))

    assert np.float32 == actual.dtype
    # Two roundings of float32 (2^-24 each) is all that separates the two ways to take a power.
    np.testing.assert_allclose(actual, expected, rtol=2.4e-7, atol=0)
    assert math.isclose(expected_multiplier, multiplier, rel_tol=1e-12)


@pytest.mark.parametrize("name", LEGACY)
def test_the_old_and_the_new_form_of_a_config_read_the_same(name: str) -> None:
    assert RopeConfig.from_hf(LEGACY[name], HEAD_DIM) == RopeConfig.from_hf(
        modern(LEGACY[name]), HEAD_DIM
    )


def test_partial_rotation_takes_the_first_fraction_of_the_head() -> None:
    config = {**LEGACY["linear"], "partial_rotary_factor": 0.5}
    expected, _ = oracle(config, HEAD_DIM)

    frequencies, _ = rope_frequencies(RopeConfig.from_hf(config, HEAD_DIM))

    assert frequencies.shape == (16,)
    np.testing.assert_allclose(frequencies, expected, rtol=2.4e-7)
    assert RopeConfig.from_hf({"rope_theta": 1e4, "rotary_dim": 32}, HEAD_DIM).dim == 32
    nested = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}
    assert RopeConfig.from_hf(nested, HEAD_DIM).dim == 16


def test_hunyuan_alpha_stretches_the_base_as_transformers_does() -> None:
    config = {
        "rope_theta": 1e4,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    }
    hf = HunYuanDenseV1Config(
        hidden_size=256, num_attention_heads=2, head_dim=128, **as_keywords(config)
    )
    expected = HunYuanDenseV1RotaryEmbedding(hf).inv_freq.numpy()

    ours = RopeConfig.from_hf(config, 128)
    frequencies, multiplier = rope_frequencies(ours)

    assert ours.type == "ntk-alpha"
    assert multiplier == 1.0
    np.testing.assert_allclose(frequencies, expected, rtol=2.4e-7)


def test_each_kind_of_layer_reads_its_own_table() -> None:
    config = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    assert RopeConfig.from_hf(config, HEAD_DIM, layer_type="full_attention").theta == 1e6
    assert RopeConfig.from_hf(config, HEAD_DIM, layer_type="sliding_attention").theta == 1e4
    with pytest.raises(UnsupportedModelError, match="'chunked'"):
        RopeConfig.from_hf(config, HEAD_DIM, layer_type="chunked")


def test_a_config_without_rope_keys_is_plain_rotation() -> None:
    assert RopeConfig("default", 10000.0, HEAD_DIM) == RopeConfig.from_hf({}, HEAD_DIM)
    assert RopeConfig.from_hf({}, HEAD_DIM, default_theta=5e5).theta == 5e5
    assert RopeConfig.from_hf({"rope_scaling": None}, HEAD_DIM).type == "default"


def test_text_of_an_image_model_rotates_plainly() -> None:
    config = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    assert RopeConfig("default", 1e6, 128) == RopeConfig.from_hf(config, 128)


def test_the_multiplier_of_deepseek_is_the_ratio_of_its_two_scales() -> None:
    assert math.isclose(1.3688879454, magnitude_scale(40.0), rel_tol=1e-9)
    assert magnitude_scale(0.5) == 1.0
    config = RopeConfig(
        "yarn", 1e4, 64, factor=40.0, original_context=4096, mscale=1.0, mscale_all_dim=1.0
    )
    assert rope_frequencies(config)[1] == 1.0


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError) as from_config:
        RopeConfig.from_hf({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, HEAD_DIM)
    with pytest.raises(UnsupportedModelError) as direct:
        rope_frequencies(RopeConfig("spiral", 1e4, HEAD_DIM))
    for error in (from_config.value, direct.value):
        assert all(name in str(error) for name in ROPE_TYPES)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": "10000"},
        {"rope_theta": True},
        {"rope_theta": math.nan},
        {"rope_theta": 10**400},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"type": 3}},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}},
        {"partial_rotary_factor": 0.0},
        {"partial_rotary_factor": 1.5},
        {"rotary_dim": 65},
    ],
)
def test_a_config_with_a_value_that_is_no_number_in_range_is_refused(
    config: dict[str, Any],
) -> None:
    with pytest.raises(ModelFileError):
        RopeConfig.from_hf(config, HEAD_DIM)


@pytest.mark.parametrize(
    "config",
    [
        RopeConfig("yarn", 1e4, 7, factor=4.0, original_context=64),
        RopeConfig("default", 1e4, 0),
        RopeConfig("default", 0.0, 64),
        RopeConfig("default", math.inf, 64),
        RopeConfig("linear", 1e4, 64, factor=0.0),
        RopeConfig("yarn", 1e4, 64, factor=4.0),
        RopeConfig("yarn", 1e4, 64, factor=4.0, original_context=4096, beta_fast=0.0),
        RopeConfig("llama3", 1e4, 64, factor=8.0),
        RopeConfig("llama3", 1e4, 64, original_context=8192, high_freq_factor=1.0),
        RopeConfig("ntk-alpha", 1e4, 64),
        RopeConfig("ntk-alpha", 1e4, 2, alpha=50.0),
    ],
)
def test_numbers_that_make_no_rotation_are_refused(config: RopeConfig) -> None:
    with pytest.raises(ModelFileError):
        rope_frequencies(config)


def test_one_number_alone_may_turn() -> None:
    frequencies, _ = rope_frequencies(RopeConfig("default", 1e4, 1))
    assert frequencies.tolist() == [1.0]
