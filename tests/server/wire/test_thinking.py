"""Thinking over HTTP: budgets, "answer now", and thoughts that come back, in every API."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fake_model import ScriptModel, reply

TEMPLATES = Path(__file__).parents[2] / "chat" / "templates"
ALICE, BOB = "alices-own-key", "bobs-other-key"
ASK = [{"role": "user", "content": "How is the weather in Oslo?"}]
CLOSING = len("\n</think")  # bytes of it that are thoughts still
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
THOUGHT = "Oslo, then."
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}


def options(template: str = "qwen3") -> dict[str, Any]:
    """Of fake_model.loaded, for a thinking model's template."""
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return {"template": source, "context": 16384, "num_blocks": 600}


def ponder(text: str) -> str | None:
    """Thinks for ever; once made to stop, answers 42."""
    said = text.rpartition("assistant\n")[2]
    if "</think>" in said:
        return {"": "4", "4": "2"}.get(said.rpartition("</think>\n\n")[2])
    opening = "<think>"
    return opening[len(said)] if len(said) < len(opening) else "h"


@pytest.fixture(scope="module")
def thinker(serve_module: Callable[..., Any]) -> Any:
    """A server of a model that thinks until it is stopped."""
    model = ScriptModel(ponder, context_length=16384)
    return serve_module(model, model_options=options())


def of_chat(body: Any) -> tuple[str, str, int]:
    """The thoughts, the answer, and the tokens of thoughts."""
    message = body["choices"][0]["message"]
    assert message.get("reasoning") == message.get("reasoning_content")
    counted = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return message.get("reasoning_content", ""), message["content"], counted


def of_messages(body: Any) -> tuple[str, str, int]:
    blocks = {block["type"]: block for block in body["content"]}
    counted = body["usage"]["output_tokens_details"]["thinking_tokens"]
    return blocks.get("thinking", {}).get("thinking", ""), blocks["text"]["text"], counted


def of_responses(body: Any) -> tuple[str, str, int]:
    said = {item["type"]: item["content"][0]["text"] for item in body["output"]}
    counted = body["usage"]["output_tokens_details"]["reasoning_tokens"]
    return said.get("reasoning", ""), said["message"], counted


def of_ollama(body: Any) -> tuple[str, str, None]:
    message = body.get("message", {"content": body.get("response"), **body})
    return message.get("thinking", ""), message["content"], None


Read = Callable[[Any], tuple[str, str, "int | None"]]
CHAT: tuple[str, dict[str, Any], Read] = ("/v1/chat/completions", {"messages": ASK}, of_chat)
MESSAGES: tuple[str, dict[str, Any], Read] = (
    "/v1/messages",
    {"model": "fake", "messages": ASK, "max_tokens": 400},
    of_messages,
)
RESPONSES: tuple[str, dict[str, Any], Read] = (
    "/v1/responses",
    {"input": ASK[0]["content"]},
    of_responses,
)
OLLAMA: tuple[str, dict[str, Any], Read] = (
    "/api/chat",
    {"model": "fake", "messages": ASK, "stream": False},
    of_ollama,
)
GENERATE: tuple[str, dict[str, Any], Read] = (
    "/api/generate",
    {"model": "fake", "prompt": ASK[0]["content"], "stream": False},
    of_ollama,
)


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (CHAT, {"thinking_budget": 12}),
        (CHAT, {"thinking_token_budget": 12}),
        (CHAT, {"reasoning_budget_tokens": 12}),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 12}}),
        (CHAT, {"reasoning": {"max_tokens": 12}}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 12}}),
        (MESSAGES, {"thinking_budget": 12}),
        (RESPONSES, {"reasoning": {"max_tokens": 12}}),
        (RESPONSES, {"thinking_budget": 12}),
        (OLLAMA, {"think": 12}),
        (GENERATE, {"think": 12}),
    ],
)
def test_a_budget_ends_the_thoughts_and_the_answer_follows(
    thinker: Any, api: tuple[str, dict[str, Any], Read], said: dict[str, Any]
) -> None:
    path, body, read = api
    thoughts, answer, counted = read(thinker.post(path, {**body, **said}).json)
    assert (thoughts, answer) == ("h" * 12, "42")
    assert counted in (12 + CLOSING, None)


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (CHAT, {"reasoning_effort": "none"}),
        (CHAT, {"enable_thinking": False}),
        (CHAT, {"thinking": {"type": "disabled"}}),
        (CHAT, {"thinking_budget": 0}),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
        (CHAT, {"messages": [{"role": "user", "content": "How? /no_think"}]}),
        (MESSAGES, {}),
        (RESPONSES, {"reasoning": {"effort": "none"}}),
        (RESPONSES, {"chat_template_kwargs": {"enable_thinking": False}}),
        (OLLAMA, {"think": False}),
        (GENERATE, {"prompt": "How? /no_think"}),
    ],
)
def test_thinking_is_turned_off_by_any_of_its_names(
    thinker: Any, api: tuple[str, dict[str, Any], Read], said: dict[str, Any]
) -> None:
    path, body, read = api
    thoughts, answer, counted = read(thinker.post(path, {**body, **said}).json)
    assert (thoughts, answer) == ("", "42")
    assert counted in (0, None)


class Held(ScriptModel):
    """Ponders, and after ten letters waits in the midst of a step until it may go on."""

    def __init__(self) -> None:
        super().__init__(self.say, context_length=16384)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def say(self, text: str) -> str | None:
        if text.endswith("<think>" + 10 * "h"):
            self.reached.set()
            assert self.go_on.wait(20)
        return ponder(text)


def events(answer: Any) -> Iterator[Any]:
    """The JSON of each event of a stream, as it comes."""
    while line := answer.readline():
        text = line.decode().strip().removeprefix("data: ")
        if text.startswith("{"):
            yield json.loads(text)


def told_to_answer(server: Any, model: Held, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream whose model is told to answer while it thinks its eleventh letter."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", path, json.dumps({**body, "stream": True}))
    stream = events(connection.getresponse())
    first = next(stream)
    name = first.get("id") or first.get("message", first.get("response"))["id"]
    assert model.reached.wait(20)
    asked = {"id": name, "action": "reasoning_end"}
    told = server.post("/v1/chat/completions/control", asked)
    model.go_on.set()
    assert (told.status, told.json["success"]) == (200, True)
    found = list(stream)
    connection.close()
    return found


def test_answer_now_closes_the_thoughts_at_the_next_token(serve: Callable[..., Any]) -> None:
    model = Held()
    server = serve(model, model_options=options())
    body = {"messages": ASK, "stream_options": {"include_usage": True}}
    chunks = told_to_answer(server, model, "/v1/chat/completions", body)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    said = {
        field: "".join(delta.get(field) or "" for delta in deltas)
        for field in ("reasoning_content", "reasoning", "content")
    }
    assert said == {"reasoning_content": 11 * "h", "reasoning": 11 * "h", "content": "42"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    details = chunks[-1]["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == 11 + CLOSING


def test_answer_now_reaches_an_anthropic_message(serve: Callable[..., Any]) -> None:
    model = Held()
    server = serve(model, model_options=options())
    body = {**MESSAGES[1], "thinking": {"type": "enabled", "budget_tokens": 200}}
    deltas = [event.get("delta", {}) for event in told_to_answer(server, model, MESSAGES[0], body)]
    assert "".join(delta.get("thinking", "") for delta in deltas) == 11 * "h"
    assert "".join(delta.get("text", "") for delta in deltas) == "42"


def test_answer_now_reaches_a_response(serve: Callable[..., Any]) -> None:
    model = Held()
    server = serve(model, model_options=options())
    said = told_to_answer(server, model, *RESPONSES[:2])[-1]["response"]
    assert of_responses(said) == (11 * "h", "42", 11 + CLOSING)


def test_a_word_to_an_answer_that_is_over_is_a_400(thinker: Any) -> None:
    over = thinker.post("/v1/chat/completions", {"messages": ASK, "thinking_budget": 1}).json
    asked = {"id": over["id"], "action": "reasoning_end"}
    assert thinker.post("/v1/chat/completions/control", asked).status == 400


# --- thoughts that a client dropped --------------------------------------------------------------


def agent(text: str) -> str | None:
    """Thinks and calls; with the result says whether it can still see what it thought."""
    said = text.rpartition("assistant\n")[2]
    words = f"<think>\n{THOUGHT}\n</think>\n\n{CALL}"
    if "\n<tool_response>" in text:
        words = "seen" if THOUGHT in text else "forgotten"
    return words[len(said)] if words.startswith(said) and len(said) < len(words) else None


@pytest.fixture(scope="module")
def caller(serve_module: Callable[..., Any]) -> Any:
    """A server of a model that thinks, and calls a tool; two keys open it."""
    model = ScriptModel(agent, context_length=16384)
    return serve_module(model, model_options=options(), keys=(ALICE, BOB))


def again_chat(server: Any, second_key: str) -> str:
    function = {"name": "get_weather", "parameters": PARAMETERS}
    body: dict[str, Any] = {"tools": [{"type": "function", "function": function}]}
    first = server.post("/v1/chat/completions", {**body, "messages": ASK}).json
    message = first["choices"][0]["message"]
    assert message["reasoning_content"] == THOUGHT
    [call] = message["tool_calls"]
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "cold"}
    headers = {"Authorization": f"Bearer {second_key}"}
    body["messages"] = [*ASK, turn, result]
    later = server.post("/v1/chat/completions", body, headers=headers).json
    return str(later["choices"][0]["message"]["content"])


def again_messages(server: Any, second_key: str) -> str:
    body: dict[str, Any] = {
        "model": "fake",
        "max_tokens": 400,
        "thinking": {"type": "enabled", "budget_tokens": 100},
        "tools": [{"name": "get_weather", "input_schema": PARAMETERS}],
    }
    first = server.post("/v1/messages", {**body, "messages": ASK}).json
    thinking, call = first["content"]
    assert thinking["thinking"] == THOUGHT
    turn = {"role": "assistant", "content": [call]}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "cold"}
    headers = {"Authorization": f"Bearer {second_key}"}
    body["messages"] = [*ASK, turn, {"role": "user", "content": [result]}]
    later = server.post("/v1/messages", body, headers=headers).json
    return str(later["content"][-1]["text"])


def again_responses(server: Any, second_key: str) -> str:
    tool = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
    first = server.post("/v1/responses", {"tools": [tool], "input": ASK}).json
    reasoning, call = first["output"]
    assert reasoning["content"][0]["text"] == THOUGHT
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "cold"}
    body = {"tools": [tool], "input": [*ASK, call, result]}
    headers = {"Authorization": f"Bearer {second_key}"}
    later = server.post("/v1/responses", body, headers=headers).json
    return str(later["output"][-1]["content"][0]["text"])


def again_ollama(server: Any, second_key: str) -> str:
    function = {"name": "get_weather", "description": "", "parameters": PARAMETERS}
    tools = [{"type": "function", "function": function}]
    body: dict[str, Any] = {"model": "fake", "stream": False, "tools": tools}
    first = server.post("/api/chat", {**body, "messages": ASK}).json["message"]
    assert first["thinking"] == THOUGHT
    turn = {"role": "assistant", "content": "", "tool_calls": first["tool_calls"]}
    result = {"role": "tool", "tool_name": "get_weather", "content": "cold"}
    headers = {"Authorization": f"Bearer {second_key}"}
    body["messages"] = [*ASK, turn, result]
    later = server.post("/api/chat", body, headers=headers).json
    return str(later["message"]["content"])


@pytest.mark.parametrize("again", [again_chat, again_messages, again_responses, again_ollama])
def test_thoughts_that_a_client_dropped_come_back_to_their_own_key_alone(
    caller: Any, again: Callable[[Any, str], str]
) -> None:
    assert again(caller, ALICE) == "seen"
    assert again(caller, BOB) == "forgotten"


def test_a_response_that_goes_on_has_its_thoughts(caller: Any) -> None:
    tool = {"type": "function", "name": "get_weather", "parameters": PARAMETERS}
    first = caller.post("/v1/responses", {"tools": [tool], "input": ASK}).json
    output = {
        "type": "function_call_output",
        "call_id": first["output"][1]["call_id"],
        "output": "cold",
    }
    body = {"tools": [tool], "input": [output], "previous_response_id": first["id"]}
    later = caller.post("/v1/responses", body).json
    assert later["output"][-1]["content"][0]["text"] == "seen"


@pytest.fixture(scope="module")
def unthinking(serve_module: Callable[..., Any]) -> Any:
    """A server of a model that cannot think."""
    return serve_module(reply("plain"))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"enable_thinking": True}),
        ("/v1/chat/completions", {"reasoning_effort": "high"}),
        ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": True}}),
        ("/v1/responses", {"reasoning": {"effort": "low"}}),
        ("/api/chat", {"think": True}),
        ("/api/chat", {"think": "high"}),
        ("/api/generate", {"think": True, "prompt": "hi"}),
    ],
)
def test_thinking_asked_of_a_model_that_cannot_is_refused(
    unthinking: Any, path: str, body: dict[str, Any]
) -> None:
    question = {"input": "hi"} if path == "/v1/responses" else {"messages": ASK}
    question = {} if "prompt" in body else question
    answer = unthinking.post(path, {"model": "fake", **question, **body})
    assert answer.status == 400
    assert "fake has no switch for thinking in its chat template" in answer.body.decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"enable_thinking": False}),
        ("/v1/chat/completions", {"reasoning_effort": "none"}),
        ("/v1/chat/completions", {"thinking_budget": 100}),  # at most: it is kept to
        ("/api/chat", {"think": False, "stream": False}),
        ("/v1/messages", {"max_tokens": 5}),
    ],
)
def test_a_model_that_cannot_think_may_be_told_not_to(
    unthinking: Any, path: str, body: dict[str, Any]
) -> None:
    answer = unthinking.post(path, {"model": "fake", "messages": ASK, **body})
    assert answer.status == 200
    assert "x-dure-ignored" not in answer.headers


def test_a_message_is_answered_without_thoughts_and_a_header_says_so(unthinking: Any) -> None:
    """Claude Code asks every model for thoughts."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body = {"model": "fake", "max_tokens": 2048, "messages": ASK, "thinking": thinking}
    for stream in (False, True):
        answer = unthinking.post("/v1/messages", {**body, "stream": stream})
        assert answer.status == 200
        assert answer.headers["x-dure-ignored"] == "thinking"
