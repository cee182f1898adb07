"""gpt-oss in the forms that it is published and saved in; what of it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packings import gpt_oss_experts
from tiny_gguf import read_folder, write_folder, write_gguf
from tiny_models import (
    furthest,
    loaded,
    oracle,
    oracle_logits,
    prefill_logits,
    random_sequences,
    reopened,
)

from dure.errors import DureError, ModelFileError, UnsupportedModelError
from dure.formats.checkpoint import open_checkpoint
from dure.models import checked_model, load_model, memory_needed
from dure.weights.streaming_pool import StreamingExpertPool

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def published(folder: Path, config: dict[str, Any], parameters: dict[str, Any]) -> tuple[Path, Any]:
    """A folder with experts in MXFP4 as the makers' is, and the parameters it stands for."""
    stored, meant = gpt_oss_experts(parameters)
    write_folder(folder, {**config, "quantization_config": MXFP4}, stored)
    return folder, meant


def test_experts_in_mxfp4_are_what_transformers_makes_of_their_values(tmp_path: Path) -> None:
    oracle("gpt_oss-tied").save_pretrained(tmp_path / "plain")
    config, parameters = read_folder(tmp_path / "plain")
    folder, meant = published(tmp_path / "published", config, parameters)
    model = reopened(write_folder(tmp_path / "meant", config, meant))
    (tokens,) = random_sequences(60)
    ours = loaded(folder)
    assert furthest(oracle_logits(model, tokens), prefill_logits(ours, tokens)) < 1e-4
    experts = ours.layers[0].mlp.experts  # type: ignore[attr-defined]
    # 17 bytes for 32 weights, in whole pages a record.
    assert experts.record_bytes <= 3 * 64 * 64 * 17 // 32 + 4096
    fast = prefill_logits(load_model(open_checkpoint(folder)), tokens)
    errors = np.linalg.norm(fast - oracle_logits(model, tokens), axis=1)
    assert 1e-5 < np.median(errors / np.linalg.norm(fast, axis=1)) < 0.03


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt_oss", "gpt_oss-factor"])
def test_half_precision_saves_are_what_transformers_reads_from_them(
    tmp_path: Path, name: str, dtype: str
) -> None:
    oracle(name).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    (tokens,) = random_sequences(50)
    expected = oracle_logits(reopened(tmp_path), tokens)
    assert furthest(expected, prefill_logits(loaded(tmp_path), tokens)) < 1e-4


def test_the_makers_config_is_understood(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """rope_scaling and rope_theta at the top; layer_types need not be there."""
    small = tiny("gpt_oss")
    config, parameters = read_folder(small.folder)
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config |= {"initial_context_length": 4096, "experts_per_token": 2}
    actual = prefill_logits(loaded(write_folder(tmp_path, config, parameters)), small.sequences[0])
    assert actual.tobytes() == prefill_logits(small.model, small.sequences[0]).tobytes()


def test_experts_that_are_read_from_disk_have_their_biases(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small, path = tiny("gpt_oss"), tmp_path / "model.gguf"
    write_gguf(path, *read_folder(small.folder))
    pool = StreamingExpertPool()
    model = load_model(open_checkpoint(path), exact=True, expert_pool=pool)
    pool.open(pool.nbytes // 4, rows=75)
    for tokens in small.sequences:
        expected = prefill_logits(loaded(path), tokens)
        assert expected.tobytes() == prefill_logits(model, tokens).tobytes()
    assert pool.stats is not None
    assert pool.stats.misses > 16  # the experts of both layers: some were read again


def test_quantised_on_loading_it_stays_near(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    small = tiny("gpt_oss")
    checkpoint = open_checkpoint(small.folder)
    model = load_model(checkpoint, quantize="q8")
    expected, actual = small.expected[0], prefill_logits(model, small.sequences[0])
    errors = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Rounding can make a token choose another expert, so few rows may be further off.
    assert 1e-5 < np.median(errors) < 0.03
    assert np.quantile(errors, 0.9) < 0.2
    assert memory_needed(checkpoint, quantize="q8") < 0.5 * memory_needed(checkpoint)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden_act": "gelu"}, UnsupportedModelError),
        ({"swiglu_limit": 0}, ModelFileError),
        ({"layer_types": ["chunked_attention"] * 2}, ModelFileError),
        ({"partial_rotary_factor": 0.5, "rope_parameters": None}, UnsupportedModelError),
        ({"num_experts_per_tok": 9}, ModelFileError),
    ],
)
def test_what_it_does_not_compute_is_refused(
    tiny: Callable[[str], Any], tmp_path: Path, change: dict[str, Any], error: type[DureError]
) -> None:
    config, parameters = read_folder(tiny("gpt_oss").folder)
    folder = write_folder(tmp_path, {**config, **change}, parameters)
    with pytest.raises(error, match=next(iter(change)) if len(change) == 1 else "rotates 8 of"):
        checked_model(open_checkpoint(folder))


def test_experts_that_gates_and_ups_do_not_share_evenly_are_refused(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    config, parameters = read_folder(tiny("gpt_oss").folder)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    parameters[name] = np.ascontiguousarray(parameters[name][..., :-1])
    folder = write_folder(tmp_path, config, parameters)
    with pytest.raises(ModelFileError, match="share evenly"):
        checked_model(open_checkpoint(folder))


def test_a_bias_that_is_missing_is_named(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    config, parameters = read_folder(tiny("gpt_oss").folder)
    del parameters["model.layers.1.mlp.experts.down_proj_bias"]
    folder = write_folder(tmp_path, config, parameters)
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.experts\.down_proj\.bias"):
        checked_model(open_checkpoint(folder))


def test_the_released_sizes_are_read() -> None:
    """config.json of gpt-oss-20b, as far as it says sizes, and no tensors: they are all missing."""
    from dure.models.config import Config  # noqa: PLC0415
    from dure.models.gpt_oss import GptOssConfig  # noqa: PLC0415

    released = json.loads("""{"attention_bias": true, "head_dim": 64, "hidden_size": 2880,
        "hidden_act": "silu", "intermediate_size": 2880, "max_position_embeddings": 131072,
        "num_attention_heads": 64, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "num_experts": 32, "num_experts_per_tok": 4, "rms_norm_eps": 1e-05, "rope_theta": 150000,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
        "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
        "sliding_window": 128, "swiglu_limit": 7.0, "vocab_size": 201088}""")
    sizes = GptOssConfig.read(Config(released, "config.json"), gguf=False)
    assert sizes.windows == (128, None) * 12
    assert (sizes.rope.type, sizes.rope.truncate, sizes.rope.dim) == ("yarn", False, 64)
    assert (sizes.context_length, sizes.experts, sizes.limit) == (131072, 32, 7.0)
