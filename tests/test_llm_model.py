"""The Python API and the command line over a real model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dure
from dure import LLM, SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.model

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 40


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> LLM:
    """SmolLM2-135M with a small context."""
    return LLM(smollm2, threads=2, context=1024)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dure", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(dure.__file__).parent.parent)},
    )


def test_a_real_model_goes_on_as_any_reader_would(llm: LLM) -> None:
    [count] = llm.generate(["1, 2, 3, 4, 5, 6,"], SamplingParams(max_tokens=12, temperature=0))
    assert count.text.startswith(" 7, 8, 9, 10")
    assert count.finish_reason == "length"


def test_an_answer_is_the_same_alone_and_among_others(llm: LLM) -> None:
    prompts = ["Once upon a time", "def fibonacci(n):", "The capital of Italy is", "1, 2, 3,"]
    params = SamplingParams(max_tokens=16, temperature=0.8, seed=3, logprobs=2)
    together = llm.generate(prompts, params)
    alone = [llm.generate(prompt, params)[0] for prompt in prompts]
    assert [each.token_ids for each in alone] == [each.token_ids for each in together]
    assert [each.logprobs for each in alone] == [each.logprobs for each in together]


def _loss(logits: NDArray[np.float32], ids: list[int]) -> float:
    """Mean negative log-likelihood of each of `ids` but the first, in nats."""
    wide = logits[:-1].astype(np.float64)
    chosen = wide[np.arange(len(wide)), ids[1:]]
    return float((np.log(np.exp(wide).sum(axis=1)) - chosen).mean())


def test_a_cache_of_bytes_takes_half_the_memory_and_says_nearly_the_same(
    llm: LLM, smollm2: Path
) -> None:
    small = LLM(smollm2, threads=2, context=1024, cache_dtype="q8")
    taken = [each.engine.runner.cache_bytes for each in (small, llm)]
    assert taken[0] / taken[1] == small.engine.pool.num_blocks / llm.engine.pool.num_blocks * 0.5625
    ids = llm.tokenizer.encode(TEXT)[:300]
    losses = [_loss(each.logits(ids), ids) for each in (small, llm)]
    assert 0 < abs(losses[0] - losses[1]) < 0.01  # nats a token: 1 % of perplexity
    [count] = small.generate(["1, 2, 3, 4, 5, 6,"], SamplingParams(max_tokens=12, temperature=0))
    assert count.text.startswith(" 7, 8, 9, 10")


def test_a_second_turn_prefills_only_what_is_new(llm: LLM) -> None:
    params = SamplingParams(max_tokens=24, temperature=0)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Name three colours. " * 8}]
    first = llm.chat(messages, params)
    messages += [{"role": "assistant", "content": first.text}]
    messages += [{"role": "user", "content": "Which is the darkest?"}]
    second = llm.chat(messages, params)
    assert first.cached_tokens < first.prompt_tokens
    assert second.cached_tokens >= first.prompt_tokens + len(first.token_ids) - 2
    assert second.prompt_tokens - second.cached_tokens < 20


def test_logprobs_of_an_answer_are_those_of_logits(llm: LLM) -> None:
    ids = llm.tokenizer.encode("The cat sat on the")
    [answer] = llm.generate([ids], SamplingParams(max_tokens=3, temperature=0, logprobs=0))
    logits = llm.logits([*ids, *answer.token_ids])
    assert answer.logprobs is not None
    for position, said in enumerate(answer.logprobs):
        row = logits[len(ids) - 1 + position].astype(np.float64)
        assert said is not None
        assert int(row.argmax()) == said.token_id
        expected = row[said.token_id] - row.max() - math.log(np.exp(row - row.max()).sum())
        assert said.logprob == pytest.approx(expected, abs=1e-4)


def test_exact_arithmetic_is_near_and_not_the_same(llm: LLM, smollm2: Path) -> None:
    ids = llm.tokenizer.encode("The cat sat on the mat.")
    fast, exact = llm.logits(ids), LLM(smollm2, context=64, exact=True).logits(ids)
    difference = np.abs(fast - exact)
    assert difference.max() > 0
    assert difference.mean() < 0.5  # of logits that span about 40


def test_run_prints_one_json_object(smollm2: Path) -> None:
    done = command("run", str(smollm2), "Say hi.", "--json", "--max-tokens", "4", "--seed", "1")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["model"] == smollm2.name
    assert value["tokens"]["completion"] <= 4
    assert value["text"]


def test_bench_prints_speeds_of_what_was_asked(smollm2: Path) -> None:
    sizes = ["--prompt", "16", "--decode", "2", "--depth", "8", "--batch", "2", "--repeat", "1"]
    done = command("bench", str(smollm2), *sizes, "--threads", "1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["prefill_tps"] > 0
    assert value["decode_tps"] > 0
    asked = {"prompt": 16, "decode": 2, "depth": 8, "batch": 2, "repeat": 1, "threads": 1}
    assert asked == {name: value[name] for name in asked}


@pytest.mark.parametrize("other", ["prompt", "decode"])
def test_bench_measures_one_of_the_two_alone(smollm2: Path, other: str) -> None:
    sizes = [f"--{other}", "0", "--repeat", "1", "--threads", "1", "--json"]
    measured = {"prompt": "decode", "decode": "prompt"}[other]
    done = command("bench", str(smollm2), f"--{measured}", "4", *sizes)
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    speeds = {"prompt": value["prefill_tps"], "decode": value["decode_tps"]}
    assert speeds[measured] > 0
    assert speeds[other] is None


def test_perplexity_of_a_repeated_text_is_low(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    done = command("perplexity", str(smollm2), str(path), "--window", "128", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    windows = value["tokens"] // 128
    assert value["scored"] == windows * 64
    assert 1 < value["perplexity"] < 3


def test_a_model_without_room_is_refused_before_it_is_packed(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dure.weights.loader.Weights.finish", lambda *_: pytest.fail("it was packed")
    )
    monkeypatch.setattr("dure.machine.memory_available", lambda: 300 << 20)
    with pytest.raises(dure.NotEnoughMemoryError) as caught:
        LLM(smollm2, context=8192)
    assert "0.31 GB is available" in caught.value.message
    assert "tokens fits" in caught.value.hint
    monkeypatch.setattr("dure.machine.memory_available", lambda: 100 << 20)
    with pytest.raises(dure.NotEnoughMemoryError):
        LLM(smollm2)
