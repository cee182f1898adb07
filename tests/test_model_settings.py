"""What a store or a preset says of a model is in its prompts; and a driver that is interrupted."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import ScriptModel, alphabet, loaded

import dure.llm
from dure import LLM
from dure.hub import ModelSettings

HELLO = [{"role": "user", "content": "hello"}]
OWN = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def llm_with(monkeypatch: pytest.MonkeyPatch, **options: Any) -> LLM:
    model = ScriptModel(alphabet)
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **options))
    return LLM("fake")


def test_a_presets_messages_stand_before_those_of_every_chat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = llm_with(monkeypatch)
    llm = llm_with(monkeypatch, settings=ModelSettings(system="Be brief.", messages=tuple(OWN)))
    system = {"role": "system", "content": "Be brief."}
    assert llm.chat_prompt(HELLO) == plain.chat_prompt([system, *OWN, *HELLO])
    other = {"role": "system", "content": "Be long."}
    assert llm.chat_prompt([other, *HELLO]) == plain.chat_prompt([other, *OWN, *HELLO])
    prepared = llm.prepare(dure.ChatRequest(HELLO))
    assert prepared.token_ids == plain.prepare(dure.ChatRequest([system, *OWN, *HELLO])).token_ids


def test_a_stream_ends_where_its_driver_is_interrupted_and_the_next_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = llm_with(monkeypatch)
    stream = llm.stream("u")
    first = next(stream)
    llm.driver.interrupted.set()
    assert [first.text, *(chunk.text for chunk in stream)] == ["v"]
    assert not llm.engine.has_work
    llm.driver.interrupted.clear()
    assert llm.generate("u")[0].text == "vwxyz"


def test_a_pass_is_given_up_while_its_driver_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm = llm_with(monkeypatch)
    asked: list[bool] = []

    def step(interrupted: Any = None) -> list[Any]:
        llm.driver.interrupted.set()  # as another thread does, in the midst of the pass
        asked.append(interrupted())
        return []

    monkeypatch.setattr(llm.engine, "step", step)
    assert list(llm.stream("u")) == []
    assert asked == [True]
