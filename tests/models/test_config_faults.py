"""Configs that say less, or more, than a family needs are read as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import furthest, loaded, oracle, oracle_of, prefill_logits

from dure.errors import UnsupportedModelError
from dure.layers.rope import RopeConfig


# The last four are of families that look at several keys at once.
@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("qwen3", {}),
        ("olmo3", {}),
        ("mimo_v2_flash", {}),
        ("gpt_oss", {"rope_parameters": None}),
        ("exaone", {"layer_norm_epsilon": 1e-5}),
    ],
)
def test_settings_of_single_layers_that_nobody_reads_are_refused_by_name(
    tiny: Callable[[str], Any], tmp_path: Path, name: str, edits: dict[str, Any]
) -> None:
    config, parameters = read_folder(tiny(name).folder)
    config |= edits
    different = {**config, "per_layer_config": {"01": {"head_dim": 48}}}
    with pytest.raises(UnsupportedModelError, match="per_layer_config"):
        loaded(write_folder(tmp_path / "different", different, parameters))
    loaded(write_folder(tmp_path / "none", {**config, "per_layer_config": {}}, parameters))


@pytest.mark.parametrize("rope_type", ["yarn", "linear", "llama3"])
def test_a_scaled_rotation_of_a_part_is_refused_where_heads_turn_whole(rope_type: str) -> None:
    """transformers' classes then fail over the shapes; without a scaling they rotate the whole."""
    rope = {
        "rope_type": rope_type,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
    }
    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor"):
        RopeConfig.from_hf({"rope_parameters": rope}, 32, partial=False)
    plain = {"rope_type": "default", "partial_rotary_factor": 0.5}
    assert RopeConfig.from_hf({"rope_parameters": plain}, 32, partial=False).dim == 32
    assert RopeConfig.from_hf({"rope_parameters": plain}, 32).dim == 16
    assert RopeConfig.from_hf({"rotary_dim": 8}, 32, fraction=0.5).dim == 8
    assert RopeConfig.from_hf({}, 32, fraction=0.5).dim == 16


def test_a_qwen2_mixture_in_gguf_has_the_biases_that_its_tensors_say(tmp_path: Path) -> None:
    from tiny_configs import MODELS  # noqa: PLC0415

    model = oracle_of("qwen2_moe", {**MODELS["qwen2_moe"][1], "qkv_bias": False})
    model.save_pretrained(tmp_path / "folder")
    config, parameters = read_folder(tmp_path / "folder")
    assert not any(name.endswith("q_proj.bias") for name in parameters)
    write_gguf(tmp_path / "model.gguf", config, parameters)
    tokens = list(range(40))
    expected = prefill_logits(loaded(tmp_path / "folder"), tokens)
    assert furthest(expected, prefill_logits(loaded(tmp_path / "model.gguf"), tokens)) <= 1e-5


def test_a_router_with_a_bias_for_the_choice_is_v3s_where_a_gguf_does_not_say(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """GLM-4.7-Flash as transformers saves it: neither the router's kind nor its dense layers."""
    import gguf  # noqa: PLC0415

    small = tiny("glm4_moe_lite")
    path = tmp_path / "model.gguf"
    write_gguf(path, *read_folder(small.folder))
    keys = gguf.GGUFReader(path).fields
    assert "deepseek2.expert_gating_func" not in keys
    assert keys["deepseek2.leading_dense_block_count"].contents() == 0
    expected = prefill_logits(small.model, small.sequences[0])
    assert furthest(expected, prefill_logits(loaded(path), small.sequences[0])) <= 1e-5


def test_kimi_k2_and_moonlight_are_deepseek_v3(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Their config.json as published: one group, every key of the router, no mlp_layer_types."""
    small = oracle("deepseek_v3", n_group=1, topk_group=1, q_lora_rank=None)
    small.save_pretrained(tmp_path / "deepseek")
    config, parameters = read_folder(tmp_path / "deepseek")
    for key in ("rope_interleave", "mlp_layer_types"):
        config.pop(key, None)
    kimi = {
        **config,
        "model_type": "kimi_k2",
        "architectures": ["DeepseekV3ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 0,
    }
    tokens = list(range(40))
    expected = prefill_logits(loaded(tmp_path / "deepseek"), tokens)
    folder = write_folder(tmp_path / "kimi", kimi, parameters)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "kimi_k2"
    assert np.array_equal(expected, prefill_logits(loaded(folder), tokens))


def test_kimi_k25_is_read_from_its_wrapper(tmp_path: Path) -> None:
    """As makers publish it: text_config, language_model.model. and language_model.lm_head."""
    small = oracle("deepseek_v3", n_group=1, topk_group=1)
    small.save_pretrained(tmp_path / "text")
    config, parameters = read_folder(tmp_path / "text")
    tokens = list(range(40))
    expected = prefill_logits(loaded(tmp_path / "text"), tokens)
    seeing = {f"language_model.{name}": each for name, each in parameters.items()}
    seeing["vision_tower.patch_embed.proj.weight"] = np.ones((4, 4), np.float32)
    seeing["mm_projector.proj.0.weight"] = np.ones((4, 4), np.float32)
    for inner in ("kimi_k2", "deepseek_v3"):
        wrapper = {"model_type": "kimi_k25", "text_config": {**config, "model_type": inner}}
        folder = write_folder(tmp_path / inner, wrapper, seeing)
        assert np.array_equal(expected, prefill_logits(loaded(folder), tokens))
