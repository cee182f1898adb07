"""What a Python caller may pass by mistake: one sentence, and never a guess or a raw TypeError."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_model import ScriptModel, loaded, reply

import dure.hub
import dure.llm
from dure import LLM, SamplingParams
from dure.chat.request import ChatRequest, Format, Thinking, ToolChoice
from dure.errors import InvalidRequestError

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(reply("ok"))))
    return LLM("fake")


@pytest.mark.parametrize(
    "prompts",
    [
        None, 5, 1.5, {"a": 1}, b"bytes", {"x"}, object(),
        [None], [5], [1.5], [b"x"], [{"a": 1}], [[]], [[1.7]], [["1"]], [[True]],
        [[1, True]], [[1, 2.0]], [[None]], [[[1]]], [[-1]], [[10**9]], [[10**30]],
        np.array(5), [np.array(5)], list, [list],
        [np.array([[1]])], [np.array([1.0])], [np.array([True])], [bytearray(b"x")], [{1, 2}],
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts)


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), range(1, 3), np.array([1, 2]), [np.int64(1), 2]])
def test_what_is_a_list_of_ids_is_taken(llm: LLM, ids: Any) -> None:
    [answer] = llm.generate([ids], SamplingParams(max_tokens=1))
    assert 2 == answer.prompt_tokens
    assert 2 == len(llm.logits(ids))


@pytest.mark.parametrize(
    "messages",
    [
        "hi", None, 5, {"role": "user", "content": "hi"}, [], ["hi"], [5], [None],
        [{"content": "hi"}], [{"role": "user"}], [{"role": 5, "content": "hi"}],
        [{"role": "robot", "content": "hi"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"text": "hi"}}], b"hi", [*MESSAGES, "and you?"],
    ],
)  # fmt: skip
def test_what_is_no_chat_is_refused_and_never_completed_as_text(llm: LLM, messages: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: llm.chat(messages),
        lambda: llm.chat_prompt(messages),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"params": {"max_tokens": 3}}, {"params": 3}, {"params": "greedy"},
        {"tools": "x"}, {"tools": [1]}, {"tools": [{}]}, {"tools": {"a": 1}},
        {"think": "yes"}, {"think": -1}, {"think": 1.5},
        {"format": "json"}, {"format": {"type": "json_object"}},
    ],
)  # fmt: skip
def test_options_of_a_wrong_type_are_refused(llm: LLM, options: dict[str, Any]) -> None:
    for call in (llm.chat, llm.stream):
        with pytest.raises(InvalidRequestError):
            call(MESSAGES, **options)  # type: ignore[operator]


def test_other_calls_refuse_what_they_cannot_use(llm: LLM) -> None:
    calls: list[Callable[[], object]] = [
        lambda: llm.stream(MESSAGES, on_prefill=5),  # type: ignore[arg-type]
        lambda: llm.logits("text"),  # type: ignore[arg-type]
        lambda: llm.logits([1.5]),  # type: ignore[list-item]
        lambda: llm.logits(5),  # type: ignore[arg-type]
        lambda: llm.generate(["a", "b"], [SamplingParams()]),
        lambda: llm.generate(["a"], [{"max_tokens": 1}]),  # type: ignore[list-item]
        lambda: llm.check_think("no"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"model": 5}, {"threads": "2"}, {"threads": True}, {"threads": 0}, {"threads": 1.5},
        {"context": "big"}, {"context": 0}, {"exact": "no"}, {"quantize": "q5"}, {"quantize": 4},
        {"cache_bytes": 1.5}, {"cache_bytes": -1}, {"cache_dtype": "int4"}, {"cache_dtype": None},
        {"max_sequences": None}, {"max_sequences": 0}, {"conversations": "2"},
        {"load_progress": "bar"}, {"download_progress": 1},
        {"memory": "a lot"}, {"memory": 8}, {"memory": True}, {"memory": 1e10}, {"memory": -1},
    ],
)  # fmt: skip
def test_a_wrong_option_of_the_constructor_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(dure.hub, "resolve", lambda *_, **__: pytest.fail("began to load"))
    with pytest.raises(InvalidRequestError):
        LLM(**{"model": "fake", **options})


def test_the_models_defaults_cannot_be_changed_from_outside(llm: LLM) -> None:
    with pytest.raises(TypeError):
        llm.sampling_defaults["temperature"] = 2.0  # type: ignore[index]


def _ask(llm: LLM, queue: Any) -> None:
    said = []
    for call in (
        lambda: llm.generate(["hi"], SamplingParams(max_tokens=1)),
        lambda: llm.chat(MESSAGES),
        lambda: llm.logits([1]),
        lambda: LLM("fake"),
    ):
        try:
            call()
            said.append("answered")
        except InvalidRequestError as error:
            said.append(str(os.getppid()) in error.message and "spawn" in error.hint)
    queue.put(said)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_each_call_says_so_in_one_sentence_and_none_waits_for_ever(llm: LLM) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_ask, args=(llm, queue))
    child.start()
    assert [True] * 4 == queue.get(timeout=60)
    child.join(60)
    assert 0 == child.exitcode


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChatRequest(iter(MESSAGES)),  # type: ignore[arg-type]
        lambda: ChatRequest({"role": "user"}),  # type: ignore[arg-type]
        lambda: ChatRequest(5),  # type: ignore[arg-type]
        lambda: ChatRequest(["hi"]),  # type: ignore[list-item]
        lambda: ChatRequest(MESSAGES, tools=5),  # type: ignore[arg-type]
        lambda: ChatRequest(MESSAGES, tool_choice="auto"),  # type: ignore[arg-type]
        lambda: ChatRequest(MESSAGES, thinking=True),  # type: ignore[arg-type]
        lambda: ChatRequest(MESSAGES, format={"type": "json"}),  # type: ignore[arg-type]
        lambda: ChatRequest(MESSAGES, template_variables=[1]),  # type: ignore[arg-type]
        lambda: ChatRequest(MESSAGES, template_variables={1: 2}),  # type: ignore[dict-item]
        lambda: ChatRequest(MESSAGES, continue_final="yes"),  # type: ignore[arg-type]
        lambda: Thinking(budget="3"),  # type: ignore[arg-type]
        lambda: Thinking(effort=np.array([])),  # type: ignore[arg-type]
        lambda: ToolChoice("named", 5),  # type: ignore[arg-type]
        lambda: Format(np.array([1])),  # type: ignore[arg-type]
    ],
)
def test_a_chat_request_of_other_types_is_refused_when_it_is_made(
    make: Callable[[], object],
) -> None:
    with pytest.raises(InvalidRequestError):
        make()


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": None}, {"prompt": 5}, {"params": []}, {"params": np.array([1, 2])},
        {"format": {}}, {"format": np.array([])}, {"cache_salt": 5}, {"priority": 1.5},
        {"priority": True},
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_refused(llm: LLM, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        llm.prepare(**{"prompt": "ab", **options})


@pytest.mark.parametrize("tools", [np.array([1, 2]), {"a": 1}, "now", 5])
def test_tools_that_are_no_list_are_refused(llm: LLM, tools: Any) -> None:
    with pytest.raises(InvalidRequestError):
        llm.chat(MESSAGES, tools=tools)
    with pytest.raises(InvalidRequestError):
        llm.chat_prompt(MESSAGES, tools=tools)
