"""What a config.json leaves out, or says twice, means what transformers takes it for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_configs import MODELS
from tiny_models import (
    furthest,
    loaded,
    oracle_logits,
    oracle_of,
    prefill_logits,
    reopened,
    saved_as,
)

from dure.formats.context import one_rotation, stretched_context

ABSENT = object()
TOKENS = list(range(3, 43))
LONG = [each % 250 for each in range(600)]  # beyond the window of another class
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
PLAIN = {"rope_type": "default", "rope_theta": 300.0}

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
    path.write_text(json.dumps(config))
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
