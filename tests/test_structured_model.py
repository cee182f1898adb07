"""Required calls and JSON of a schema, by a real model: all of them must be what was demanded."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dure import LLM

BENCH = Path(__file__).parent.parent / "bench"
pytestmark = [pytest.mark.model, pytest.mark.long]


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b"])
def llm(request: pytest.FixtureRequest) -> LLM:
    """SmolLM2; and, if $DURE_TEST_MODELS has it, Qwen2.5-Coder: 491 MB are not fetched for it."""
    if request.param == "smollm2-135m":
        return LLM(request.getfixturevalue("smollm2"), context=2048)
    default = Path.home() / ".cache" / "dure-test-models"
    folder = Path(os.environ.get("DURE_TEST_MODELS", default)).expanduser()
    path = folder / f"{request.param}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return LLM(path, context=2048)


@pytest.fixture
def structured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bench/structured.py as a module."""
    monkeypatch.syspath_prepend(BENCH)
    yield importlib.import_module("structured")
    sys.modules.pop("structured", None)


@pytest.mark.parametrize("kind", ["required", "schema"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_answer_is_what_was_demanded(
    llm: LLM, structured: Any, kind: str, temperature: float
) -> None:
    result = structured.run(llm, 20, kind, temperature=temperature)
    assert result["valid"] == 20, result["wrong"]
