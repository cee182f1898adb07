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
from memory_group import memory_group

from dure.errors import NotEnoughMemoryError
from dure.loading.memory import parse_size

SCRIPT = Path(streamed.__file__)
BUDGET = 330_000_000
TOKENS = 12
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, VOCAB_SIZE, length).tolist() for length in (200, 3, 40)]


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
def whole(mixture: Path) -> dict[str, list[str]]:
    """What the model answers with all of it in memory, by the type of its cache."""
    return {
        dtype: streamed.answers(streamed.opened(mixture, cache_dtype=dtype), PROMPTS, TOKENS)
        for dtype in ("f16", "q8")
    }


def command(model: Path, **options: Any) -> list[str]:
    asked = {"model": str(model), "memory": BUDGET, "prompts": PROMPTS, "tokens": TOKENS}
    return [sys.executable, str(SCRIPT), json.dumps({**asked, "options": options})]


@pytest.mark.parametrize("dtype", ["f16", "q8"])
def test_a_process_keeps_its_budget_and_answers_with_the_bits_of_the_whole_model(
    mixture: Path, whole: dict[str, list[str]], dtype: str
) -> None:
    with memory_group(BUDGET) as group:
        if group is None:
            pytest.skip("no control group of version 1 can be made here: it takes root")
        done = group.run(command(mixture, cache_dtype=dtype))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["answers"] == whole[dtype]
        assert found["memory"]["streamed"]
        assert found["stats"]["misses"] > 0
        assert (group.peak <= BUDGET, group.refusals) == (True, 0)


def test_a_process_keeps_its_budget_by_its_own_account(
    mixture: Path, whole: dict[str, list[str]]
) -> None:
    """Where no control group can be made: without the page cache, which nobody can count then."""
    done = subprocess.run(command(mixture), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["answers"] == whole["f16"]
    assert found["memory"]["streamed"]
    assert found["peak_rss"] <= BUDGET


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
