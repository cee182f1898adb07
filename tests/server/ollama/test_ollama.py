"""Ollama's bodies as chats, and answers as lines."""

from __future__ import annotations

import time
from typing import Any

import pytest
from said import ASKED, call, chunks, text, thought

from dure.chat.request import Format, Thinking
from dure.errors import InvalidRequestError
from dure.server.ollama import request as reading
from dure.server.ollama.chat import LineWriter
from dure.server.ollama.schemas import ChatBody, GenerateBody


def body(*messages: dict[str, Any], **more: Any) -> ChatBody:
    listed = list(messages) or [{"role": "user", "content": "Hi"}]
    return ChatBody.model_validate({"model": "m", "messages": listed, **more})


def test_results_find_their_calls_without_ids() -> None:
    calls = [
        {"function": {"name": "weather", "arguments": {"city": "Bern"}}},
        {"function": {"name": "time", "arguments": {}}},
    ]
    request = reading.chat_request(
        body(
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
            {"role": "tool", "content": "noon", "tool_name": "time"},
            {"role": "tool", "content": "3°"},
        )
    )
    assistant, noon, cold = request.messages
    ids = [each["id"] for each in assistant["tool_calls"]]
    assert len(set(ids)) == 2
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"city": "Bern"}'
    assert assistant["reasoning_content"] == "Hm."
    assert [noon["tool_call_id"], cold["tool_call_id"]] == [ids[1], ids[0]]


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (None, Thinking()),
        (True, Thinking("on")),
        (False, Thinking("off")),
        ("high", Thinking(effort="high")),
    ],
)
def test_think_is_a_switch_or_an_effort(think: Any, expected: Thinking) -> None:
    assert reading.thinking(body(think=think)) == expected


def test_formats_are_json_or_a_schema() -> None:
    assert reading.format_of(body(format="json")) == Format("json_object")
    assert reading.format_of(body(format="")) is None
    schema = {"type": "object"}
    assert reading.format_of(body(format=schema)) == Format("json_schema", schema)
    with pytest.raises(InvalidRequestError, match="yaml"):
        reading.format_of(body(format="yaml"))


def test_options_become_sampling() -> None:
    options = {
        "num_predict": 5,
        "temperature": 0,
        "repeat_penalty": 1.1,
        "stop": ["\n"],
        "seed": 3,
        "num_thread": 8,
        "mirostat": 0,
    }
    params = reading.sampling(body(options=options))
    assert (params.max_tokens, params.temperature, params.seed) == (5, 0.0, 3)
    assert (params.repetition_penalty, tuple(params.stop)) == (1.1, ("\n",))
    for unlimited in (-1, 0):
        assert reading.sampling(body(options={"num_predict": unlimited})).max_tokens is None
    assert reading.sampling(body(options={"top_p": 0})).top_p == 1e-6
    assert reading.sampling(body(options={"repeat_penalty": 1.3, "repeat_last_n": 0})) == (
        reading.sampling(body(options={"repeat_penalty": 1.0}))
    )


def test_a_context_larger_than_there_is_gets_an_error_not_a_cut() -> None:
    reading.check_context(body(options={"num_ctx": 4096}), 4096)
    with pytest.raises(InvalidRequestError, match=r"8,192.*4,096"):
        reading.check_context(body(options={"num_ctx": 8192}), 4096)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        ("0", 0.0),
        (90, 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("500ms", 0.5),
        (-1, -1.0),
        ("-1m", -1.0),
    ],
)
def test_keep_alive_is_seconds_or_a_time(value: Any, seconds: float | None) -> None:
    assert reading.keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["soon", "10 m", "m", "", "1x"])
def test_a_keep_alive_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive"):
        reading.keep_alive(value)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}, "images"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "robot"),
    ],
)
def test_what_is_not_done_is_refused_by_name(bad: dict[str, Any], named: str) -> None:
    asked = body(**bad)
    with pytest.raises(InvalidRequestError, match=named):
        reading.chat_request(asked)
        reading.sampling(asked)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": ["aGk="]}, "images"),
        ({"raw": True, "system": "x"}, "system"),
    ],
)
def test_generate_refuses_by_name_too(bad: dict[str, Any], named: str) -> None:
    asked = GenerateBody.model_validate({"model": "m", "prompt": "Hi", **bad})
    with pytest.raises(InvalidRequestError, match=named):
        reading.check_generate(asked)


def lines(answer: list[Any], *, chat: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    writer = LineWriter("m", chat=chat, began=time.perf_counter(), tokenizer=None)
    made = [line for chunk in answer for line in writer.push(chunk)]
    return made, writer.whole()


def test_lines_join_to_the_whole() -> None:
    answer = chunks([*thought("Let me."), *text("Cold."), *call("f", '{"a": 1}')])
    made, whole = lines(answer)
    messages = [line["message"] for line in made]
    assert "".join(message.get("thinking", "") for message in messages) == "Let me."
    assert "".join(message["content"] for message in messages) == "Cold."
    assert whole["message"]["content"] == "Cold."
    assert whole["message"]["thinking"] == "Let me."
    function = {"index": 0, "name": "f", "arguments": {"a": 1}}
    assert whole["message"]["tool_calls"] == [{"id": "call_0", "function": function}]
    assert [line["done"] for line in made] == [False] * (len(made) - 1) + [True]
    last = made[-1]
    assert last["done_reason"] == "stop"
    assert last["prompt_eval_count"] == ASKED
    assert last["prompt_eval_duration"] == 500_000_000
    assert last["eval_duration"] == 250_000_000
    assert last["total_duration"] >= 0


def test_generate_has_a_response_in_place_of_a_message() -> None:
    made, whole = lines(chunks(text("Cold."), reason="length"), chat=False)
    assert "".join(line["response"] for line in made) == whole["response"] == "Cold."
    assert "message" not in whole
    assert whole["done_reason"] == "length"


def test_a_call_that_was_cut_short_is_text() -> None:
    _, whole = lines(chunks(call("f", '{"a', whole=False), reason="length"))
    assert whole["message"]["content"] == 'f({"a'
    assert "tool_calls" not in whole["message"]


def test_the_assistants_last_message_is_gone_on_from() -> None:
    begun = {"role": "assistant", "content": "One,"}
    assert reading.chat_request(body({"role": "user", "content": "Count"}, begun)).continue_final
