"""Real layers with a window give the same bits from its blocks alone as from the whole past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE

from dure.benchmark import DirectRunner
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import SamplingParams
from dure.engine.windows import window_span

NAMES = [
    "dots1-sliding",
    "exaone4",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "gpt_oss",
    "gpt_oss-full",
    "gpt_oss-narrow",
    "mimo_v2_flash",
    "mistral-sliding",
    "olmo3",
    "qwen3_moe-sliding",
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in (
            *("ministral3-plain", "phi3-short", "qwen2-sliding", "qwen3-sliding"),
            *("smollm3-listed", "mixtral-sliding", "exaone_moe", "exaone_moe-listed"),
        )
    ),
]
PARAMS = SamplingParams(max_tokens=60, temperature=0.8, seed=1, logprobs=8, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (150, 75, 5)
]


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()
        engine.scheduler.check()


def whole_past(model: Any) -> list[Any]:
    """What each prompt gets where window layers share the blocks of the others, one at a time."""
    runner = ModelRunner(model, num_blocks=20, cache_dtype="f32")
    runner.window = runner.num_window_blocks = 0
    engine = Engine(runner, max_batch_tokens=512)
    found = []
    for index, prompt in enumerate(PROMPTS):
        request = engine.add(prompt, PARAMS, cache_salt=str(index))
        finish(engine)
        assert request.num_cached_tokens == 0
        found.append((request.output_ids, request.logprobs))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_the_whole_past(tiny: Callable[[str], Any], name: str) -> None:
    model = tiny(name).model
    span = window_span(max(spec.window or 0 for spec in model.kv_cache_specs))
    runner = ModelRunner(model, num_blocks=10, num_window_blocks=2 * span + 1, cache_dtype="f32")
    engine = Engine(runner, max_batch_tokens=33)
    requests = [engine.add(prompt, PARAMS) for prompt in PROMPTS]
    finish(engine)
    assert engine.stats.preemptions > 0
    expected = whole_past(model)
    assert [(r.output_ids, r.logprobs) for r in requests] == expected
    roomy = Engine(ModelRunner(model, num_blocks=20, cache_dtype="f32"), max_batch_tokens=33)
    for cached in (0, 149):
        request = roomy.add(PROMPTS[0], PARAMS)
        finish(roomy)
        assert request.num_cached_tokens == cached
        assert (request.output_ids, request.logprobs) == expected[0]


@pytest.mark.parametrize("name", ["gpt_oss-full", "mimo_v2_flash"])
def test_fixed_tokens_go_round_in_a_windows_blocks(tiny: Callable[[str], Any], name: str) -> None:
    model = tiny(name).model
    tokens = np.random.default_rng(4).integers(0, VOCAB_SIZE, 900).tolist()
    run = DirectRunner(model, tokens=900, cache_dtype="f32")
    near = {len(a) for a, s in zip(run.runner.storage.arrays, model.kv_cache_specs, strict=True)}
    assert len(near) == 2  # layers with a window have fewer blocks
    found = np.concatenate(list(run.logits(tokens)))
    whole = DirectRunner(model, tokens=900, cache_dtype="f32", chunk=1024)
    assert whole.runner.num_window_blocks == whole.runner.num_blocks
    assert (found == np.concatenate(list(whole.logits(tokens)))).all()
    run.fill(tokens[:700])
    at = range(700, 900)
    assert (run.forward(tokens[700:], at, [0] * 200, range(200)) == found[700:]).all()
