"""A model that is larger than its budget answers with the bits of the whole model, and the process
never has more memory than the budget: page cache, interpreter and buffers included."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamed
from big_mixture import Mixture
from fake_model import VOCAB_SIZE
from gguf import GGMLQuantizationType as Kind
from memory_group import memory_group
from tiny_gguf import config_of, is_plain, parameters_of, write_gguf

from dure import kernels, machine, models
from dure.errors import NotEnoughMemoryError
from dure.formats.checkpoint import open_checkpoint
from dure.loading.memory import gigabytes, parse_size, streaming_sentence
from dure.planning.memory import footprint
from dure.planning.work import work_of
from dure.weights.streaming_pool import StreamingExpertPool

SCRIPT = Path(streamed.__file__)
BUDGET = 330_000_000
TOKENS = 12
ROOMY = {"context": 3072, "cache_tokens": 3072}
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, VOCAB_SIZE, length).tolist() for length in (2200, 3, 40)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file larger than the budget."""
    path = Mixture().write(tmp_path_factory.mktemp("budget") / "big.gguf")
    assert path.stat().st_size > BUDGET
    return path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every process begins without knowing which experts are used most."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def whole(mixture: Path) -> list[str]:
    """What the model answers with all of it in memory."""
    return streamed.answers(streamed.opened(mixture, **ROOMY), PROMPTS, TOKENS)


def command(model: Path) -> list[str]:
    asked = {"model": str(model), "memory": BUDGET, "prompts": PROMPTS, "tokens": TOKENS}
    return [sys.executable, str(SCRIPT), json.dumps({**asked, "options": ROOMY})]


def test_a_process_keeps_its_budget_and_answers_with_the_bits_of_the_whole_model(
    mixture: Path, whole: list[str]
) -> None:
    """By its own account; and with the page cache where a control group (version 1, and root) can
    be made, which counts that, too."""
    with memory_group(BUDGET) as group:
        if group is None:
            done = subprocess.run(command(mixture), capture_output=True, text=True, check=False)
        else:
            done = group.run(command(mixture))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["answers"] == whole
        assert found["memory"]["streamed"]
        assert found["stats"]["misses"] > 0
        assert found["peak_rss"] <= BUDGET
        assert group is None or (group.peak <= BUDGET, group.refusals) == (True, 0)


def test_a_prompt_that_takes_more_than_planned_leaves_the_experts_the_least(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "process_bytes", lambda: 10 * BUDGET)
    model = streamed.opened(mixture, BUDGET, **ROOMY)
    pool = model.expert_pool
    assert isinstance(pool, StreamingExpertPool)
    streamed.answers(model, [PROMPTS[0]], 1)
    assert 0 < pool.stats.resident_bytes <= pool.least_bytes


def test_no_expert_is_in_memory_twice_when_many_ask_and_others_are_guessed(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "process_bytes", lambda: None)  # the tests' own holds much else
    model = streamed.opened(mixture, BUDGET, **ROOMY)
    pool = model.expert_pool
    assert isinstance(pool, StreamingExpertPool)
    prompts = [RNG.integers(0, VOCAB_SIZE, 5).tolist() for _ in range(16)]
    streamed.answers(model, prompts, TOKENS)
    pool.collect(1.0)  # what is still on its way
    assert pool.stats.resident == sum(
        layer.experts.is_resident(expert)
        for layer in pool._layers
        for expert in range(layer.experts.count)
        if pool.is_here(layer.first + expert)
    )
    used = sum(buffer.record_bytes for buffer in pool._buffers.values())
    assert pool._memory.taken == used + pool._memory.free_bytes
    assert pool.stats.guessed_right > 0


def test_a_budget_of_the_whole_model_reads_nothing_from_disk(mixture: Path) -> None:
    assert not streamed.opened(mixture, 10**9).memory.streamed


@pytest.mark.parametrize("options", [{}, {"cache_tokens": 4096}, {"context": 1024}])
def test_a_budget_below_what_must_be_resident_is_refused_with_one_that_would_do(
    mixture: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(NotEnoughMemoryError) as caught:
        streamed.opened(mixture, 180_000_000, **options)
    match = re.match(r"a budget of (\S+) would do", caught.value.hint)
    assert match is not None
    enough = parse_size(match[1])
    assert enough < mixture.stat().st_size
    model = streamed.opened(mixture, enough, **options)
    assert model.memory.streamed
    streamed.answers(model, [PROMPTS[1]], 2)
    with pytest.raises(NotEnoughMemoryError):
        streamed.opened(mixture, enough - 20_000_000, **options)


WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "head_dim": 64}
LATENT = {
    **{"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256},
    **{"n_routed_experts": 64, "n_shared_experts": 1, "norm_topk_prob": True},
    **{"routed_scaling_factor": 2.5, "q_lora_rank": 256, "kv_lora_rank": 256, "v_head_dim": 64},
}
DELTA = {"linear_key_head_dim": 32, "linear_value_head_dim": 64}
KINDS = {
    "attention": config_of("qwen3_moe", **WIDE, num_experts=64),
    "recurrent": config_of(
        "qwen3_next", **WIDE, **DELTA, num_experts=64, shared_expert_intermediate_size=256
    ),
    "latent": config_of("deepseek_v3", **LATENT),
}


def types(name: str) -> Kind:
    """Q4_K and Q6_K; Q8_0 where rows are short."""
    if is_plain(name):
        return Kind.F32
    return Kind.Q8_0 if "k_b_proj" in name else Kind.Q6_K if "down_proj" in name else Kind.Q4_K


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("attention", "q8"), ("recurrent", "f16"), ("latent", "f16")],
)
def test_the_least_budget_gives_the_bits_of_the_whole_model_with_every_kind_of_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    for name in streamed.OVERHEADS:
        monkeypatch.setattr(name, 0)  # else a tiny model fits in any budget
    path = tmp_path / "model.gguf"
    write_gguf(path, KINDS[kind], parameters_of(KINDS[kind]), types)
    prompts = [RNG.integers(0, 256, length).tolist() for length in (60, 3, 20)]
    options: dict[str, Any] = {"context": 128, "cache_tokens": 512, "cache_dtype": dtype}
    expected = streamed.answers(streamed.opened(path, **options), prompts, TOKENS)
    with pytest.raises(NotEnoughMemoryError) as caught:
        streamed.opened(path, 1 << 20, **options)
    match = re.match(r"a budget of (\S+) would do", caught.value.hint)
    assert match is not None
    model = streamed.opened(path, parse_size(match[1]), **options)
    assert model.memory.streamed
    assert model.expert_pool is not None
    for rows in (512, 7):
        assert streamed.answers(model, prompts, TOKENS, max_batch_tokens=rows) == expected
    assert model.expert_pool.stats.misses > model.expert_pool.stats.resident  # some had to go


DENSE = {
    **{"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 2048},
    "max_position_embeddings": 512,
}
DENSE_OPTIONS: dict[str, Any] = {"context": 512, "cache_tokens": 512, "cache_dtype": "q8"}


@pytest.fixture
def dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a dense model, of which a budget may take all but the weights and the cache."""
    for name in ("planner.OVERHEAD_BYTES", "memory.OVERHEAD_BYTES"):
        monkeypatch.setattr(f"dure.loading.{name}", 0)
    config = config_of("qwen2", **DENSE, tie_word_embeddings=False)
    path = tmp_path / "dense.gguf"
    write_gguf(path, config, parameters_of(config), types)
    return path


def test_a_dense_model_that_does_not_fit_whole_reads_its_embeddings_by_row(dense: Path) -> None:
    whole = streamed.opened(dense, **DENSE_OPTIONS)
    assert whole.memory.left_bytes == 0
    assert streaming_sentence("dense", whole.memory) == ""
    budget = whole.memory.resident_bytes + whole.memory.cache_bytes - 1
    model = streamed.opened(dense, budget, **DENSE_OPTIONS)
    left = model.memory.left_bytes
    assert left == kernels.packed_bytes("Q4_K", 2048, 256)
    assert model.memory.resident_bytes == whole.memory.resident_bytes - left
    assert not model.memory.streamed
    assert "its embeddings (0.00 GB) stay on disk" in streaming_sentence("dense", model.memory)
    plan = footprint(
        open_checkpoint(dense),
        work_of(open_checkpoint(dense), "dense"),
        context=512,
        budget=budget,
        cache_dtype="q8",
    )
    assert plan.fits
    assert plan.weight_bytes == model.memory.resident_bytes
    prompts = [RNG.integers(0, 2048, length).tolist() for length in (60, 3, 20)]
    assert streamed.answers(model, prompts, TOKENS) == streamed.answers(whole, prompts, TOKENS)
    least = budget + 1 - left
    with pytest.raises(NotEnoughMemoryError) as caught:
        streamed.opened(dense, least, **{**DENSE_OPTIONS, "cache_dtype": "f16"})
    assert f"or --cache q8, with which it needs {gigabytes(least)}" in caught.value.hint
    assert streamed.opened(dense, least, **DENSE_OPTIONS).memory.left_bytes == left
    with pytest.raises(NotEnoughMemoryError):
        streamed.opened(dense, budget - left, **DENSE_OPTIONS)


def test_memory_that_is_gone_while_weights_are_read_has_them_read_again_without_embeddings(
    dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = models.load_model
    calls: list[Any] = []

    def load_model(*given: Any, **options: Any) -> Any:
        model = read(*given, **options)
        calls.append(options["expert_pool"])
        if len(calls) == 1:  # as under `ulimit -v`, which no plan can know
            raise NotEnoughMemoryError("there is no memory for 9 bytes of dense.gguf.")
        return model

    monkeypatch.setattr(models, "load_model", load_model)
    assert streamed.opened(dense, **DENSE_OPTIONS).memory.left_bytes > 0
    assert len(calls) == 2
