"""Every family computes what transformers computes, in whatever pieces the tokens come; through the
engine, too: chunked, batched, from a reused prefix, and after it was preempted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import read_folder, write_folder
from tiny_models import (
    MODELS,
    RECURRENT,
    PagedRun,
    furthest,
    loaded,
    oracle,
    oracle_logits,
    prefill_logits,
    random_sequences,
    reopened,
)

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams

TOLERANCE = 1e-4
RECURRENT_TOLERANCE = 5e-4  # a state carries float32 rounding through every token

# How the 75 tokens of one sequence are cut. (At once: test_pieces_and_company_change_no_bit.)
CUTS = {"one by one": [1] * 75, "unevenly": [7, 1, 32, 1, 1, 31, 2]}

# What the engine does with a model follows from the kinds of its layers' caches, not from names,
# biases or rotations. (Of every family two configs: test_unusual_configs.py, of the long tests.)
OF_EACH_CACHE = (
    *("llama", "qwen3_moe", "pangu_pro_moe", "phi3", "qwen3_vl", "granite"),
    *("qwen2-sliding", "qwen3_moe-sliding", "mistral-sliding", "dots1-sliding", "ministral3-plain"),
    *("gemma3_text", "gemma3", "gemma4", "gemma4_text", "gemma4_unified_text"),
    *("exaone4", "olmo3", "gpt_oss", "gpt_oss-full", "mimo_v2_flash", "mimo_v2_flash-groups"),
    *("deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite"),
    *("deepseek_v32", "deepseek_v32-40", "glm_moe_dsa"),
    *("qwen3_next", "qwen3_next-mixed", "qwen3_next-dense", "qwen3_5_text", "qwen3_5_moe"),
    *("qwen3_5-attention", "qwen3_5_moe-states", "kimi_linear", "kimi_linear-groups"),
    *("bailing_hybrid", "lfm2", "lfm2_moe-plain"),
)

# Four sequences of 75, 40, 5 and 33 tokens: prompts in chunks beside single decode rows.
TOGETHER = [
    (0, 35, 5, 0),
    (32, 1, 0, 7),
    (32, 1, 0, 1),
    (1, 1, 0, 25),
    (1, 1, 0, 0),
    (9, 1, 0, 0),
]


def tolerance(name: str) -> float:
    """How far logits may be from transformers'."""
    return RECURRENT_TOLERANCE if MODELS[name][0] in RECURRENT else TOLERANCE


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *((name, "unevenly") for name in MODELS),
        *((name, "one by one") for name in OF_EACH_CACHE),
    ],
)
def test_logits_are_transformers_however_the_prompt_is_cut(
    tiny: Callable[[str], Any], name: str, cut: str
) -> None:
    small = tiny(name)
    run = PagedRun(small.model, small.sequences[:1])
    (actual,) = run.finish([(count,) for count in CUTS[cut]])
    assert furthest(small.expected[0], actual) < tolerance(name)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_transformers_when_prompts_and_decoding_share_a_batch(
    tiny: Callable[[str], Any], name: str
) -> None:
    small = tiny(name)
    actual = PagedRun(small.model, small.sequences, seed=1).finish(TOGETHER)
    for expected, logits in zip(small.expected, actual, strict=True):
        assert furthest(expected, logits) < tolerance(name)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_and_company_change_no_bit(tiny: Callable[[str], Any], name: str) -> None:
    small = tiny(name)
    together = PagedRun(small.model, small.sequences, seed=1).finish(TOGETHER)
    for tokens, actual in zip(small.sequences, together, strict=True):
        expected = prefill_logits(small.model, tokens)
        assert expected.tobytes() == actual.tobytes()


def finish(engine: Engine) -> None:
    """Step until nothing is left to do."""
    while engine.has_work:
        engine.step()


def distance(request: Request, oracle: Any) -> float:
    """How far the 20 highest log-probabilities of any output are from the oracle's, at most."""
    start = len(request.prompt_ids)
    logits = oracle_logits(oracle, [*request.prompt_ids, *request.output_ids])[start - 1 : -1]
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert len(request.logprobs) == len(expected) == len(request.output_ids)
    return max(
        abs(row[token] - value)
        for row, told in zip(expected, request.logprobs, strict=True)
        for token, value in (*told.top, (told.token_id, told.logprob))
    )


@pytest.mark.parametrize("name", OF_EACH_CACHE)
def test_logprobs_are_transformers_after_prefix_reuse_and_preemption(
    tiny: Callable[[str], Any], name: str
) -> None:
    small = tiny(name)
    engine = Engine(
        ModelRunner(small.model, num_blocks=5, num_states=128, cache_dtype="f32"),
        max_batch_tokens=33,
    )
    prompt, other, short, _ = small.sequences
    params = SamplingParams(max_tokens=36, temperature=0.8, seed=1, logprobs=20, ignore_eos=True)
    engine.add(prompt, SamplingParams(max_tokens=1))
    finish(engine)
    requests = [engine.add([*prompt[:70], *short], params) for short in (short, other[:9])]
    requests += [engine.add(each, params) for each in (other, short)]
    finish(engine)
    assert max(request.num_cached_tokens for request in requests) >= 64
    assert engine.stats.preemptions > 0 == engine.stats.failed
    assert max(distance(request, small.oracle) for request in requests) < tolerance(name)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
def test_threads_and_the_fast_mode_change_no_bit_of_float_weights(
    tiny: Callable[[str], Any], name: str
) -> None:
    small = tiny(name)
    expected = prefill_logits(small.model, small.sequences[0])
    for threads, exact in ((2, True), (1, False), (3, False)):
        model = loaded(small.folder, threads=threads, exact=exact)
        assert expected.tobytes() == prefill_logits(model, small.sequences[0]).tobytes()


@pytest.mark.parametrize("name", ["llama", "qwen2-sliding", "qwen3", "qwen3_moe", "deepseek_v3"])
def test_a_float16_cache_costs_little(tiny: Callable[[str], Any], name: str) -> None:
    """Keys and values keep 11 bits: 2 ** -11 of logits whose spread is about 1."""
    small = tiny(name)
    actual = prefill_logits(small.model, small.sequences[0], dtype=np.float16)
    distance = furthest(small.expected[0], actual)
    assert 0 < distance < 0.01


def test_only_the_rows_asked_for_come_back(tiny: Callable[[str], Any]) -> None:
    small = tiny("qwen3")
    run = PagedRun(small.model, small.sequences[1:2])
    forward = small.model.forward
    batches: list[Any] = []

    class Spy:
        vocab_size = small.model.vocab_size

        def forward(self, batch: Any, cache: Any) -> np.ndarray:
            batches.append(batch)
            return forward(batch, cache)

    run.model = Spy()  # type: ignore[assignment]
    (full,) = run.finish([(40,)])
    (batch,) = batches
    rows = np.array([39, 3, 3], np.int32)
    some = forward(type(batch)(**{**vars(batch), "logit_rows": rows}), run.cache)
    assert full[rows].tobytes() == some.tobytes()
    none = forward(type(batch)(**{**vars(batch), "logit_rows": rows[:0]}), run.cache)
    assert none.shape == (0, small.model.vocab_size)


@pytest.mark.parametrize(
    "name",
    [
        "llama-tied",
        "qwen2-tied",
        "qwen3_moe",
        "qwen3_moe-mixed",
        "ernie4_5_moe",
        "hunyuan_v1_moe",
        "minimax_m2",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_next",
        "deepseek_v3",
    ],
)
@pytest.mark.parametrize(
    "options",
    [{"save_original_format": False}, {"max_shard_size": "30KB"}],
    ids=["names as in memory", "sharded"],
)
def test_every_way_that_transformers_saves_loads(
    tiny: Callable[[str], Any], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    small = tiny(name)
    oracle(name).save_pretrained(tmp_path, **options)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert ("max_shard_size" in options) == (len(files) > 1)
    actual = prefill_logits(loaded(tmp_path), small.sequences[0])
    assert prefill_logits(small.model, small.sequences[0]).tobytes() == actual.tobytes()


def test_fused_experts_were_among_the_files_above(tmp_path: Path) -> None:
    from safetensors import safe_open  # noqa: PLC0415

    oracle("qwen3_moe").save_pretrained(tmp_path, save_original_format=False)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert "model.layers.0.mlp.experts.gate_up_proj" in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "name",
    [
        *("llama-bias-llama3", "qwen2", "qwen3-tied-bias", "qwen3_moe", "deepseek_v3"),
        *("qwen3_5-sees-tied", "qwen3_5_moe_text", "qwen3_vl_moe"),
    ],
)
def test_half_precision_files_are_what_transformers_reads_from_them(
    tmp_path: Path, name: str, dtype: str
) -> None:
    oracle(name).to(getattr(torch, dtype)).save_pretrained(tmp_path)
    assert dtype == json.loads((tmp_path / "config.json").read_text())["dtype"]
    (tokens,) = random_sequences(50)
    expected = oracle_logits(reopened(tmp_path), tokens)
    assert furthest(expected, prefill_logits(loaded(tmp_path), tokens)) < tolerance(name)


@pytest.mark.parametrize(
    "name", ["llama-bias-llama3", "qwen2-yarn", "qwen2-sliding", "qwen3", "deepseek_v2"]
)
def test_configs_of_before_transformers_5_are_understood(
    tiny: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    """rope_theta and rope_scaling at the top, `type` for `rope_type`, no layer_types."""
    small = tiny(name)
    config = json.loads((small.folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = "model.safetensors"
    (tmp_path / weights).write_bytes((small.folder / weights).read_bytes())
    actual = prefill_logits(loaded(tmp_path), small.sequences[0])
    assert furthest(small.expected[0], actual) < TOLERANCE


def test_ernies_layer_for_drafting_is_passed_over(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    small = tiny("ernie4_5_moe")
    config, parameters = read_folder(small.folder)
    names = ["emb_norm.0.weight", "linear_proj.0.weight", "block.0.self_attn.q_proj.weight"]
    parameters |= {f"model.mtp_{name}": np.full((64, 64), np.nan, np.float32) for name in names}
    folder = write_folder(tmp_path, {**config, "num_nextn_predict_layers": 1}, parameters)
    expected = prefill_logits(small.model, small.sequences[0])
    assert expected.tobytes() == prefill_logits(loaded(folder), small.sequences[0]).tobytes()


def test_the_window_and_the_context_are_what_the_config_says(tiny: Callable[[str], Any]) -> None:
    model = tiny("qwen2-sliding").model
    assert [layer.window for layer in model.kv_cache_specs] == [None, 8]
    assert (model.context_length, model.vocab_size) == (256, 256)
    assert [layer.kind for layer in model.kv_cache_specs] == ["gqa", "window"]
    assert [
        (layer.num_kv_heads, layer.head_dim) for layer in tiny("qwen3").model.kv_cache_specs
    ] == [(2, 24)] * 2


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_5", "qwen3_next"])
def test_what_mlx_lm_converts_without_quantising_is_the_same_model(
    tiny: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    """It adds the 1 to norms, and turns convolutions: taps before the one input channel."""
    small = tiny(name)
    config, parameters = read_folder(small.folder)
    for key, values in parameters.items():
        if key.endswith("conv1d.weight"):
            parameters[key] = np.ascontiguousarray(values.swapaxes(1, 2))
        elif key.endswith("norm.weight") and ".linear_attn." not in key:
            parameters[key] = values + np.float32(1)
    actual = prefill_logits(loaded(write_folder(tmp_path, config, parameters)), small.sequences[0])
    assert furthest(prefill_logits(small.model, small.sequences[0]), actual) < 1e-5
