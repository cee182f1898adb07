"""A model in stages: the bits of the whole, and each stage reads its own tensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCAB_SIZE, oracle, saved

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.pipeline import Pipeline, StagesHere
from dure.engine.pooling import PoolingParams
from dure.engine.request import SamplingParams
from dure.engine.stage import Stage
from dure.errors import ModelFileError
from dure.formats.checkpoint import open_checkpoint
from dure.models import header_model, load_model
from dure.weights.span import Span

SIZES: dict[str, Any] = {
    "num_blocks": 9,
    "num_window_blocks": 8,
    "num_states": 8,
    "cache_dtype": "f32",
}
PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=1, logprobs=8, ignore_eos=True)
PROMPTS = [
    np.random.default_rng(length).integers(0, VOCAB_SIZE, length).tolist()
    for length in (100, 71, 40, 5, 1)
]
# A name of tiny_configs, and what makes it deeper: dense with a tied head, a mixture, latent
# attention, recurrent layers of two kinds, windows, shared choices, and shared keys and values.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3-tied-bias": {"num_hidden_layers": 5},
    "qwen3_moe": {"num_hidden_layers": 4},
    "deepseek_v3": {"num_hidden_layers": 5},
    "qwen3_next": {},
    "kimi_linear": {},
    "gpt_oss": {},
    "glm_moe_dsa": {},
    "gemma4_unified_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2,
    },
}


def folder_of(name: str, where: Path) -> Path:
    return saved(name, oracle(name, **FAMILIES[name]), where)


def stages_of(folder: Path, starts: tuple[int, ...]) -> list[Stage]:
    checkpoint = open_checkpoint(folder)
    layers = len(header_model(checkpoint)[0].layers)
    made = []
    for span in Span.cut(layers, starts):
        model: Any = load_model(checkpoint, exact=True, span=span)
        made.append(Stage(model, span, **SIZES))
    return made


def pipeline_of(folder: Path, starts: tuple[int, ...], passes: int) -> Pipeline:
    *before, last = stages_of(folder, starts)
    chain = StagesHere(before) if before else None
    return Pipeline(chain, last, **SIZES, passes=passes)


def answers(runner: Any) -> list[tuple[Any, ...]]:
    """What requests get that share prefixes, are preempted, scored and pooled."""
    engine = Engine(runner, max_batch_tokens=70, max_sequences=4)
    scored = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=2, logprobs=2)
    added = [engine.add(prompt, PARAMS) for prompt in [*PROMPTS, PROMPTS[0][:90]]]
    added.append(engine.add(PROMPTS[1], scored))
    pooled = engine.add_pooling(PROMPTS[2], PoolingParams(("mean",)))
    while engine.has_work:
        engine.step()
        engine.scheduler.check()
    found = [(each.output_ids, each.logprobs, each.prompt_logprobs) for each in added]
    assert all(each.error is None for each in added)
    return [*found, (pooled.pooler.result().tobytes(),)]


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_have_the_bits_of_the_whole_model(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    whole: Any = load_model(open_checkpoint(folder), exact=True)
    expected = answers(ModelRunner(whole, **SIZES))
    cuts, layers = tuple(whole.cuts), len(whole.layers)
    assert cuts
    spread = tuple(cuts[i * len(cuts) // 3] for i in range(min(3, len(cuts))))
    starts = [((), 1), (cuts[-1:], 2), (spread, len(spread) + 1), ((layers,), 3)]
    for each, passes in starts:
        assert answers(pipeline_of(folder, each, passes)) == expected, (each, passes)


def test_a_stage_reads_its_own_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of("qwen3_moe", tmp_path)
    checkpoint = open_checkpoint(folder)
    _, weights = header_model(checkpoint)
    whole = {each.name: each.nbytes for each in weights.asked()}
    total = 0
    for span in Span.cut(4, (1, 3)):
        _, part = header_model(checkpoint, span=span)
        names = {each.name for each in part.asked()}
        layers = {int(name.split(".")[2]) for name in names if ".layers." in name}
        assert layers == set(range(span.first, span.last))
        assert ("model.embed_tokens.weight" in names) == span.embeds
        assert ("lm_head.weight" in names) == span.ends
        total += sum(whole[name] for name in names)
        told: list[tuple[int, int]] = []
        load_model(checkpoint, span=span, progress=lambda *each: told.append(each))  # noqa: B023
        done, all_bytes = told[-1]
        assert done == all_bytes < 0.7 * sum(t.size_bytes for t in checkpoint.tensors.values())
    assert total == sum(whole.values())


def test_a_tied_embedding_is_in_the_first_and_the_last_stage(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder_of("qwen3-tied-bias", tmp_path))
    has_it = [
        "model.embed_tokens.weight" in {each.name for each in weights.asked()}
        for span in Span.cut(5, (2, 3))
        for _, weights in [header_model(checkpoint, span=span)]
    ]
    assert has_it == [True, False, True]


def test_a_tensor_that_another_stage_reads_is_missed_too(tmp_path: Path) -> None:
    folder = folder_of("qwen3_moe", tmp_path)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    old, new = b"layers.0.self_attn.q_norm", b"layers.0.self_attn.q_nerm"
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ModelFileError, match="q_norm"):
        load_model(open_checkpoint(folder), span=Span(2, 4, 4))


def test_where_each_layer_embeds_the_tokens_there_is_no_cut(tmp_path: Path) -> None:
    model, _ = header_model(open_checkpoint(saved("gemma4", oracle("gemma4"), tmp_path)))
    assert model.config.own_width > 0
    assert list(model.cuts) == []
