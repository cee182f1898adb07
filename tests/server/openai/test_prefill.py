"""A last message of the assistant is the beginning of the answer, in every API that has it so."""

from __future__ import annotations

import json
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
ASK = {"role": "user", "content": "Count."}
ANSWER = "One, two, three."


def goes_on(text: str) -> str | None:
    """Answers with ANSWER, from wherever the prompt has begun it."""
    said = text.rpartition("<|im_start|>assistant\n")[2]
    return ANSWER[len(said)] if ANSWER.startswith(said) and len(said) < len(ANSWER) else None


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(goes_on)


def begun(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [ASK, {"role": "assistant", "content": text}], **more}


def said(path: str, answer: Any) -> str:
    body = answer.json
    if path == CHAT:
        return body["choices"][0]["message"]["content"]
    if path == "/v1/messages":
        return "".join(block["text"] for block in body["content"])
    return body["message"]["content"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {}),
        (CHAT, {"continue_final_message": True}),
        (CHAT, {"continue_final_message": True, "add_generation_prompt": False}),
        (CHAT, {"add_generation_prompt": False}),
        ("/v1/messages", {"max_tokens": 100}),
        ("/api/chat", {"stream": False}),
    ],
)
def test_the_answer_goes_on_where_the_last_message_ends(server, path, more) -> None:
    answer = server.post(path, begun("One, two", **more))
    assert said(path, answer) == ", three."
    prompt = server.post("/apply-template", begun("One, two")).json["prompt"]
    assert prompt.endswith("<|im_start|>assistant\nOne, two")
    assert server.post("/tokenize", begun("One, two")).json["tokens"] == list(
        server.post("/tokenize", {"prompt": prompt}).json["tokens"]
    )


@pytest.mark.parametrize(
    "more", [{"continue_final_message": False}, {"add_generation_prompt": True}]
)
def test_a_new_turn_is_begun_where_the_request_says_so(server, more) -> None:
    assert said(CHAT, server.post(CHAT, begun("One, two", **more))) == ANSWER
    prompt = server.post("/apply-template", begun("One, two", **more)).json["prompt"]
    assert prompt.endswith("One, two<|im_end|>\n<|im_start|>assistant\n")


def test_both_at_once_or_neither_is_refused(server) -> None:
    for value in (True, False):
        more = {"continue_final_message": value, "add_generation_prompt": value}
        answer = server.post(CHAT, begun("One", **more))
        assert answer.status == 400
        assert "add_generation_prompt" in answer.json["error"]["message"]
    alone = server.post(CHAT, {"messages": [ASK], "add_generation_prompt": False})
    assert alone.status == 400
    assert "add_generation_prompt" in alone.json["error"]["message"]


def test_white_space_at_the_end_is_refused_as_anthropic_does(server) -> None:
    for content in ("One, ", [{"type": "text", "text": "One,"}, {"type": "text", "text": "\n"}]):
        answer = server.post("/v1/messages", begun(content, max_tokens=9))
        assert answer.status == 400
        assert "white space" in answer.json["error"]["message"]


def test_the_blocks_of_a_beginning_are_one_text(server) -> None:
    blocks = [{"type": "text", "text": "One, t"}, {"type": "text", "text": "wo"}]
    answer = server.post("/v1/messages", begun(blocks, max_tokens=100))
    assert said("/v1/messages", answer) == ", three."
    assert said(CHAT, server.post(CHAT, begun(blocks))) == ", three."


def formatted(path: str, schema: Any) -> dict[str, Any]:
    if path == CHAT:
        form = {"type": "json_schema", "json_schema": {"schema": schema}}
        return {"response_format": form}
    if path == "/v1/messages":
        return {"output_format": {"type": "json_schema", "schema": schema}, "max_tokens": 100}
    return {"format": schema, "stream": False}


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_a_format_holds_for_the_beginning_and_the_rest_together(server, path) -> None:
    content = '{"city": "O'
    answer = server.post(path, begun(content, **formatted(path, SCHEMA)))
    assert json.loads(content + said(path, answer)) == {"city": "Oslo"}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_a_beginning_that_breaks_the_format_is_refused(server, path) -> None:
    answer = server.post(path, begun("Sure:", **formatted(path, SCHEMA)))
    assert answer.status == 400
    assert "does not allow the beginning" in answer.body.decode()
