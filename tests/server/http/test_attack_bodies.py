"""Bodies and heads that cost more than they seem: refused in words, and nothing is kept of them."""

from __future__ import annotations

import json

import pytest
from apis import APIS
from fake_model import reply
from wire import read_until, rest

from dure.server import limits
from dure.server.errors import HTTPError
from dure.server.serving.response_store import Store, StoredResponse
from dure.server.wire.body import parse_object
from dure.server.wire.json_size import JSONSize, json_size

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
MANY = limits.MAX_JSON_VALUES + 10


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": HELLO, "x": [[]] * MANY}, "values"),
        ({"messages": HELLO, "logit_bias": {str(i): 1 for i in range(MANY)}}, "values"),
        ({"messages": HELLO, "logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
        ({"messages": HELLO, "json_schema": {"enum": ["a"] * 60000}}, "schema"),
        ({"messages": HELLO, "json_schema": {"enum": ["a" * 90000]}}, "schema"),
    ],
)
def test_a_body_of_too_many_values_is_refused_by_name(serve_module, body, words) -> None:
    answer = serve_module(reply("ok")).post(CHAT, body)
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/api/chat"])
def test_a_tool_of_too_large_a_schema_is_refused_by_its_name(serve_module, path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x" * 99] * 700}}}
    tool = {"type": "function", "function": {"name": "big", "parameters": schema}}
    if path == "/v1/messages":
        tool = {"name": "big", "input_schema": schema}
    if path == "/v1/responses":
        tool = {"type": "function", "name": "big", "parameters": schema}
    answer = serve_module(reply("ok")).post(path, APIS[path]("hi", tools=[tool]))
    assert answer.status == 400
    assert "big" in answer.body.decode()
    assert "65,536" in answer.body.decode()


def test_a_long_text_of_commas_and_brackets_is_few_values() -> None:
    text = ',[{"\\\\' * 200_000
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize("pad", [0, 1, (1 << 18) - 3, (1 << 18) - 1, 1 << 18])
def test_depth_and_values_are_counted_across_blocks(pad) -> None:
    text = json.dumps({"p": "x" * pad, "a": [[[1, 2], "[[[[,,,"]] * 50, "z": "," * 300_000})
    values = 1 + 1 + 2 + 1 + 100 + 49 + 50 + 50
    assert json_size(text.encode()) == JSONSize(4, values, 3, 0)


def test_depth_is_bounded_in_any_block() -> None:
    deep = "[" * 65 + "]" * 65
    with pytest.raises(HTTPError, match="nested"):
        parse_object(('{"p": "' + "x" * (1 << 18) + '", "a": ' + deep + "}").encode())


def test_unfinished_bodies_share_one_budget(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_UNPARSED_BYTES", 300_000)
    server = serve(reply("ok"))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400000\r\n\r\n".encode()
    bodies = server.server.bodies
    first = server.connect()
    first.sendall(head + b" " * 200_000)
    server.wait_until(lambda: bodies.bytes == 200_000)
    second = server.connect()
    second.sendall(head + b" " * 200_000)
    assert b"503" in read_until(second, b"Try again later")
    rest(second)
    first.close()
    server.wait_until(lambda: bodies.bytes == 0)
    assert server.chat("hi").status == 200


def test_a_head_that_comes_in_one_packet_is_bounded(serve_module) -> None:
    connection = serve_module(reply("ok")).connect()
    lines = "".join(f"x-{i}: {'y' * 1000}\r\n" for i in range(40))
    connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
    answer = rest(connection)  # the server ends the connection
    assert answer.split()[1] in (b"431", b"400")
    assert b"16,384" in answer


def test_a_request_of_two_lengths_is_refused_and_ends_its_connection(serve_module) -> None:
    connection = serve_module(reply("ok")).connect()
    connection.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    )
    answer = rest(connection)
    assert answer.split()[1] == b"400"
    assert b"not both" in answer


def test_no_tenant_pushes_out_the_responses_of_another() -> None:
    store = Store(most=4)
    store.keep(StoredResponse("alice", {"id": "a"}))
    for number in range(20):
        store.keep(StoredResponse("bob", {"id": f"b{number}"}))
    assert store.find("a", "alice").id == "a"
    assert store.find("b19", "bob").id == "b19"
    assert len(store) == 4


@pytest.mark.parametrize("name", ["messages", "tools", "self", "add_generation_prompt"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO}),
        ("/apply-template", {"messages": HELLO}),
        ("/v1/messages", {"model": "fake", "messages": HELLO, "max_tokens": 5}),
        ("/v1/responses", {"input": "hi"}),
        ("/api/chat", {"model": "fake", "messages": HELLO}),
    ],
)
def test_a_template_variable_of_the_renderers_is_refused(serve_module, path, body, name) -> None:
    answer = serve_module(reply("ok")).post(path, {**body, "chat_template_kwargs": {name: 1}})
    assert answer.status == 400
    assert name in answer.body.decode()
