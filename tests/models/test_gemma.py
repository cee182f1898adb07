"""Gemma as its makers and llama.cpp write it, where transformers saves it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import read_folder, write_folder
from tiny_models import (
    MODELS,
    PagedRun,
    furthest,
    loaded,
    oracle_of,
    prefill_logits,
    random_sequences,
)

from dure.batch import Batch
from dure.errors import UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.hub.facts import read_facts
from dure.models import load_model
from dure.models.config import Config
from dure.models.gemma3 import Gemma3Config
from dure.weights.streaming_pool import StreamingExpertPool


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


def written(folder: Path, config: dict[str, Any], parameters: dict[str, np.ndarray]) -> Any:
    """Our model of a folder with this config.json and these tensors."""
    return loaded(write_folder(folder, config, parameters))


def test_gemma_4_of_the_hub_has_a_key_for_full_attention_and_tensors_that_nobody_uses(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny("gemma4")
    config, parameters = read_folder(small.folder)
    del config["per_layer_config"]
    config |= {"global_head_dim": 32, "num_global_key_value_heads": None}
    for name in [name for name in parameters if ".layers.2.self_attn.k_" in name]:
        parameters[name.replace(".2.", ".5.")] = np.full_like(parameters[name], 7)
    actual = prefill_logits(written(tmp_path, config, parameters), small.sequences[0])
    assert prefill_logits(small.model, small.sequences[0]).tobytes() == actual.tobytes()


@pytest.mark.parametrize(
    "table, said", [({"2": {"sliding_window": 4}}, "sliding_window"), ({"6": {}}, "'6'")]
)
def test_what_single_layers_may_not_differ_in_is_refused(
    tiny: Callable[[str], Any], tmp_path: Path, table: dict[str, Any], said: str
) -> None:
    config, parameters = read_folder(tiny("gemma4").folder)
    with pytest.raises(UnsupportedModelError, match=said):
        written(tmp_path, {**config, "per_layer_config": table}, parameters)


def test_layers_that_share_keys_and_values_have_no_cache_of_their_own(
    tiny: Callable[[str], Any],
) -> None:
    specs = tiny("gemma4").model.kv_cache_specs
    assert [(each.kind, each.head_dim) for each in specs] == [
        *[("window", 16)] * 2,
        ("gqa", 32),
    ]


def test_only_the_rows_asked_for_go_through_layers_that_share(tiny: Callable[[str], Any]) -> None:
    small = tiny("gemma4")
    run = PagedRun(small.model, small.sequences[1:2])
    (full,) = run.finish([(40,)])
    count = np.arange(40, dtype=np.int32)
    for rows in ([39, 3, 3], []):
        batch = Batch(
            tokens=run.sequences[0],
            positions=count,
            sequences=np.zeros(40, np.int32),
            block_tables=run.tables,
            logit_rows=np.array(rows, np.int32),
        )
        assert small.model.forward(batch, run.cache).tobytes() == full[rows].tobytes()


def test_embeddings_of_layers_stay_on_disk_where_experts_do(tmp_path: Path) -> None:
    settings = {**MODELS["gemma4_text"][1], "hidden_size_per_layer_input": 16}
    model = oracle_of("gemma4_text", {**settings, "vocab_size_per_layer_input": 256})
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    (tokens,) = random_sequences(60)
    expected = prefill_logits(load_model(checkpoint, exact=True), tokens)
    pool = StreamingExpertPool()
    streamed = load_model(checkpoint, exact=True, expert_pool=pool)
    pool.open(pool.least_bytes, rows=len(tokens))
    for _ in range(2):
        assert prefill_logits(streamed, tokens).tobytes() == expected.tobytes()
    assert pool.stats.misses > 8
    assert pool.left_bytes >= 256 * 4 * 16 * 4  # the table's, float32


def test_what_is_said_of_a_mixture_counts_the_experts_of_a_token(
    tiny: Callable[[str], Any],
) -> None:
    facts = read_facts(tiny("gemma4_text").folder)
    assert (facts.experts, facts.experts_used) == (8, 2)
    assert facts.active_parameters < facts.parameters
