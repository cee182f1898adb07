"""A scripted model behind a real chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chat_requests import MakeLLM, template
from fake_model import ScriptModel, loaded, reply

import dure.llm
from dure import LLM


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLLM]:
    """A function from a template's name, and what the model says, to an LLM; idle at the end."""
    made: list[LLM] = []

    def make(name: str = "qwen3", words: Any = "hm", **options: Any) -> LLM:
        script = reply(words) if isinstance(words, str) else words
        model = ScriptModel(script, context_length=16384)
        given = {"context": 16384, "num_blocks": 600, "template": template(name), **options}
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **given))
        made.append(LLM("fake"))
        return made[-1]

    yield make
    for llm in made:
        assert not llm.engine.has_work
