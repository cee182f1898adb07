"""What DeepSeek's checkpoints have beside what every family has: layers that are not run, keys that
change the maths, and a cache of one entry a token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import config_of, read_folder, write_folder, write_gguf
from tiny_models import furthest, loaded, prefill_logits

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.models.config import Config
from dure.models.deepseek_config import V2, V3, DeepseekConfig


def test_the_layer_that_predicts_further_is_recognised_and_not_run(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny("deepseek_v3")
    config, parameters = read_folder(small.folder)
    extra = {
        name.replace("layers.2.", "layers.3."): values
        for name, values in parameters.items()
        if ".layers.2." in name
    }
    extra["model.layers.3.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    extra["model.layers.3.enorm.weight"] = np.ones(64, np.float32)
    assert config["num_nextn_predict_layers"] == 1
    model = loaded(write_folder(tmp_path, config, parameters | extra))
    tokens = small.sequences[0]
    assert prefill_logits(model, tokens).tobytes() == prefill_logits(small.model, tokens).tobytes()
    with pytest.raises(UnsupportedModelError, match=r"layers\.3"):
        loaded(
            write_folder(tmp_path, {**config, "num_nextn_predict_layers": 0}, parameters | extra)
        )


def test_a_token_takes_one_entry_of_the_cache(tiny: Callable[[str], Any]) -> None:
    (cache, *_) = tiny("deepseek_v2").model.kv_cache_specs
    assert (cache.kind, cache.block_shape()) == ("latent", (1, 32 * (32 + 8)))
    assert cache.bytes_per_token("f16") == 2 * (32 + 8)
    assert cache.bytes_per_token("q8") == 32 + 8 + 2 * 4  # two groups have a scale each


def test_a_file_that_does_not_say_groups_has_those_of_its_model(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """GGUF files of before the keys: 8 experts are no model of known groups, so there are none."""
    config, parameters = read_folder(tiny("deepseek_v3").folder)
    ungrouped = {**config, "n_group": 1, "topk_group": 1}
    expected = loaded(write_folder(tmp_path / "folder", ungrouped, parameters))
    write_gguf(tmp_path / "model.gguf", {**config, "n_group": None}, parameters)
    tokens = tiny("deepseek_v3").sequences[1]
    actual = prefill_logits(loaded(tmp_path / "model.gguf"), tokens)
    assert furthest(prefill_logits(expected, tokens), actual) < 1e-5
    assert furthest(prefill_logits(tiny("deepseek_v3").model, tokens), actual) > 1e-3


def sizes(changes: Mapping[str, Any], *, version: int) -> DeepseekConfig:
    """What is read of a tiny config after these changes."""
    config = config_of(f"deepseek_v{version}")
    config["num_experts"] = config.pop("n_routed_experts")
    return DeepseekConfig.read(Config({**config, **changes}, "a"), V3 if version > 2 else V2)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"moe_layer_freq": 2},
        {"scoring_func": "sqrtsoftplus"},
        {"topk_method": "hash"},
    ],
    ids=str,
)
def test_what_changes_the_maths_stops_the_load_by_name(
    changes: dict[str, Any], version: int
) -> None:
    sizes({}, version=version)
    with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
        sizes(changes, version=version)


def test_versions_do_not_take_each_others_routers() -> None:
    for version, changes in (
        (2, {"topk_method": "noaux_tc"}),
        (2, {"scoring_func": "sigmoid"}),
        (2, {"norm_topk_prob": True}),
        (3, {"topk_method": "greedy"}),
        (3, {"scoring_func": "softmax"}),
    ):
        with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
            sizes(changes, version=version)


@pytest.mark.parametrize(
    "changes",
    [{"n_group": 3, "topk_group": 2}, {"n_group": 8, "topk_group": 1}, {"topk_group": 5}],
    ids=str,
)
def test_groups_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="group"):
        sizes(changes, version=3)


def test_an_unknown_rotation_is_refused(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    config, parameters = read_folder(tiny("deepseek_v2").folder)
    config["rope_parameters"]["rope_type"] = "spiral"
    with pytest.raises(DureError, match="spiral"):
        loaded(write_folder(tmp_path, config, parameters))


def test_the_published_models_are_read() -> None:
    """The keys of V2-Lite's and V3's config.json, as far as they decide something."""
    rope = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    lite = {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "q_lora_rank": None,
        "max_position_embeddings": 163840,
        "rope_scaling": {**rope, "mscale": 0.707, "mscale_all_dim": 0.707},
    }
    read = DeepseekConfig.read(Config(lite, "a"), V2)
    assert (read.query_latent, read.latent, read.plain, read.rotated) == (None, 512, 128, 64)
    assert read.scale == pytest.approx(192**-0.5 * (0.0707 * np.log(40) + 1) ** 2)
    assert (read.routing.group_rule, read.routing.score) == ("none", "softmax")
    large = {
        **json.loads(json.dumps(lite)),
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "q_lora_rank": 1536,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_scaling": {**rope, "mscale": 1.0, "mscale_all_dim": 1.0},
    }
    read = DeepseekConfig.read(Config(large, "a"), V3)
    assert (read.routing.group_rule, read.routing.groups, read.routing.kept_groups) == (
        "top2",
        8,
        4,
    )
    assert read.scale == pytest.approx(192**-0.5 * 1.36889**2, rel=1e-5)
