"""Gemma as its makers and llama.cpp write it, where transformers saves it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import furthest, loaded, prefill_logits

from dure.models.config import Config
from dure.models.gemma3 import Gemma3Config


def test_a_config_of_the_hub_is_the_one_that_transformers_saves(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """A base for each kind of layers, the scaling of one, and a pattern for the layers' kinds."""
    small = tiny("gemma3")
    config = json.loads((small.folder / "config.json").read_text())
    text = config["text_config"]
    del text["layer_types"]
    tables = text.pop("rope_parameters")
    full, local = tables["full_attention"], tables["sliding_attention"]
    text["rope_theta"], text["rope_local_base_freq"] = full["rope_theta"], local["rope_theta"]
    text["rope_scaling"] = {"rope_type": "linear", "factor": full["factor"]}
    text["sliding_window_pattern"] = 2
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = "model.safetensors"
    (tmp_path / weights).write_bytes((small.folder / weights).read_bytes())
    actual = prefill_logits(loaded(tmp_path), small.sequences[0])
    assert furthest(prefill_logits(small.model, small.sequences[0]), actual) == 0.0


SIZES = {
    "vocab_size": 256,
    "hidden_size": 1024,
    "intermediate_size": 96,
    "num_hidden_layers": 62,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 8,
}


def read(*, is_gguf: bool = True, **changes: Any) -> Gemma3Config:
    """The config of these values and `changes`."""
    return Gemma3Config.read(Config({**SIZES, **changes}, "it", is_gguf=is_gguf))


def test_a_gguf_knows_the_scale_of_scores_by_its_layers() -> None:
    assert read().scale == pytest.approx(64**-0.5)  # as of Gemma 3 27B, whose heads are 128 wide
    assert read(num_hidden_layers=34).scale == pytest.approx(128**-0.5)
    assert read(is_gguf=False, query_pre_attn_scalar=168).scale == pytest.approx(168**-0.5)
    assert read(is_gguf=False).scale == pytest.approx(256**-0.5)


def test_a_gguf_says_windows_by_a_number_a_list_or_nothing() -> None:
    def where(**changes: Any) -> list[int]:
        windows = read(num_hidden_layers=12, **changes).windows
        return np.flatnonzero([each is None for each in windows]).tolist()

    assert where() == [5, 11]
    assert where(sliding_window_pattern=4) == [3, 7, 11]
    kinds = ["full_attention", *["sliding_attention"] * 11]
    assert where(layer_types=kinds) == [0]
    assert where(sliding_window=None) == where(sliding_window=0) == list(range(12))


def test_what_makers_leave_out_is_what_transformers_takes() -> None:
    config = Config(
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}, "config.json"
    )
    read = Gemma3Config.read(config)
    assert (read.vocab_size, read.heads, read.kv_heads, read.head_dim) == (262208, 8, 4, 256)
    assert (read.rope.theta, read.sliding_rope.theta) == (1e6, 1e4)
    assert (read.context_length, read.tied, read.windows[0]) == (131072, True, 4096)
