"""What a store or a preset says of a model is in its prompts; and a driver that is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_model import ScriptModel, alphabet, loaded
from tiny_gguf import config_of, parameters_of, write_gguf

import dure.llm
from dure import LLM, hub
from dure.hub import ModelSettings
from dure.loading.load import load

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


def test_a_context_that_is_less_than_the_preset_wants_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home"))
    config = config_of("qwen2", max_position_embeddings=512)
    write_gguf(tmp_path / "tiny.gguf", config, parameters_of(config))
    hub.create(hub.Preset("long", str(tmp_path / "tiny.gguf"), ModelSettings(context=10_000)))
    said = "num_ctx is 10,000, and the context is 512 tokens: the most that the model was made for"
    for asked, notes in ((None, [said]), (256, [])):
        made = load("long", context=asked, with_tokenizer=False)
        assert [note for note in made.notes if "num_ctx" in note] == notes


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
