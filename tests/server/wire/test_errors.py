"""What is wrong is said in one sentence, with the status and shape that OpenAI's API would give."""

from __future__ import annotations

import json

import pytest
from apis import APIS
from fake_model import ScriptModel, alphabet, reply

from dure.server import limits
from dure.server.openai.sampling import UNSUPPORTED

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(reply("ok"))


def assert_error(answer, status, says, *, param=None, code=None):
    assert (status, "application/json") == (answer.status, answer.headers["content-type"])
    error = answer.json["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert says in error["message"]
    assert "Traceback" not in answer.body.decode()
    if param is not None:
        assert param == error["param"]
    if code is not None:
        assert code == error["code"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "messages is missing"),
        ({"messages": []}, "messages has 0 entries; at least 1 is needed"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [1]}, "messages[0] must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": HELLO, "temperature": -1}, "temperature must be at least 0"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature must be a number"),
        ({"messages": HELLO, "temperature": True}, "temperature must be a number"),
        ({"messages": HELLO, "n": 9}, "n must be at most 8"),
        ({"messages": HELLO, "n": 10**400}, "n "),
        ({"messages": HELLO, "n": True}, "n must be a whole number"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens must be from 1"),
        ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"messages": HELLO, "top_logprobs": 21, "logprobs": True}, "top_logprobs must be at most"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "stop": ["x"] * 17}, "stop"),
        ({"messages": HELLO, "stop": 5}, "stop"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "not a token id"),
        ({"messages": HELLO, "logit_bias": {"999999": 1}}, "outside the vocabulary"),
        ({"messages": HELLO, "logit_bias": {"1": 101}}, "at most 100"),
        ({"messages": HELLO, "priority": -1}, "priority must be at least 0"),
        ({"messages": HELLO, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"messages": HELLO, "tool_choice": "required"}, "no tools"),
        ({"messages": HELLO, "reasoning_effort": "lots"}, "must be one of"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type must be"),
        ({"messages": HELLO, "seed": 2**80}, "seed"),
    ],
)
def test_a_field_that_is_wrong_is_named(server, body, says) -> None:
    assert_error(server.post(CHAT, body), 400, says)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
def test_a_field_that_would_change_the_answer_and_is_not_supported_is_named(
    server, path, field
) -> None:
    body = {"messages": HELLO, "prompt": "hi", "max_tokens": 2}
    assert_error(server.post(path, {**body, field: [1]}), 400, f'"{field}" is not supported')
    assert 200 == server.post(path, {**body, field: None, "metadata": {"a": "b"}}).status


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"messages": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": 1} trailing', "not valid JSON"),
        (b"[" * 10_000, "deep"),
        (b"[" * 10_000 + b"]" * 10_000, "deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "deep"),
        (b'{"messages": "' + b'\\"[' * 100 + b'"}', "messages must be a list"),
    ],
)
def test_what_is_no_json_object_or_is_too_deep_is_refused(server, body, says) -> None:
    assert_error(server.post(CHAT, body), 400, says)


def test_json_of_just_the_allowed_depth_is_read(server) -> None:
    deep = "[" * (limits.MAX_JSON_DEPTH - 1) + "]" * (limits.MAX_JSON_DEPTH - 1)
    body = f'{{"messages": {json.dumps(HELLO)}, "metadata": {deep}}}'.encode()
    assert 200 == server.post(CHAT, body).status
    assert 400 == server.post(CHAT, body.replace(b"[]", b"[[]]")).status


def test_a_prompt_that_cannot_fit_says_both_numbers(server) -> None:
    assert_error(server.chat("x" * 300), 400, "256", code="context_length_exceeded")


@pytest.mark.parametrize("path", APIS)
def test_max_tokens_is_a_ceiling_that_may_be_above_the_context(server, path) -> None:
    more = {"max_tokens": 1000}
    if path.startswith("/api"):
        more = {"options": {"num_predict": 1000}, "stream": False}
    answer = server.post(path, APIS[path]("Count", **more))
    assert answer.status == 200, answer.body


def test_a_models_own_max_tokens_holds_for_who_asks_for_none(serve) -> None:
    own = {"sampling": {"temperature": 0, "max_tokens": 3}, "context": 64}
    server = serve(alphabet, model_options=own)
    asked = {"model": "fake", "prompt": "a", "raw": True, "stream": False}
    for options, said in (({}, "bcd"), ({"num_predict": 1000}, "bcdefghijklmnopqrstuvwxyz")):
        answer = server.post("/api/generate", {**asked, "options": options})
        assert answer.json["response"] == said
    assert len(server.post("/api/generate", {**asked, "prompt": "x" * 62}).json["response"]) == 2


def test_a_prompt_that_is_larger_than_the_cache_says_both_numbers(serve) -> None:
    model = ScriptModel(reply("ok"), context_length=4096)
    server = serve(model, model_options={"context": 4096, "num_blocks": 8})
    answer = server.chat("x" * 600, max_tokens=4)
    assert_error(answer, 400, "cache holds 257", code="context_length_exceeded")


def test_a_model_that_is_not_served_is_a_404(server) -> None:
    assert_error(server.chat("hi", model="gpt-9"), 404, "gpt-9", code="model_not_found")
    assert_error(server.get("/v1/models/gpt-9"), 404, "gpt-9", code="model_not_found")
    assert_error(server.chat("hi", model="/etc/passwd"), 404, "served", code="model_not_found")


def test_unknown_paths_and_methods_have_our_form(server) -> None:
    assert_error(server.get("/nothing"), 404, "GET /nothing", code="not_found")
    assert_error(server.get(CHAT), 405, "GET", code="method_not_allowed")
    assert_error(server.post("/v1/models", {}), 405, "POST", code="method_not_allowed")


def test_a_body_that_is_too_long_is_refused_before_it_is_read(server) -> None:
    with server.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2**40}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(4096):  # the head and the body may come apart
            answer += part
    assert b" 413 " in answer
    assert b"the limit is 8,388,608" in answer


def test_a_body_without_a_length_is_counted_as_it_comes(server) -> None:
    with server.connect() as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        try:
            for _ in range(limits.MAX_BODY_BYTES // 0x10000 + 2):
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            assert b" 413 " in connection.recv(4096)


def test_a_head_that_is_too_long_is_refused(server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000)
        assert b" 400 " in connection.recv(4096)
    assert 200 == server.get("/health").status


def test_every_answer_has_an_id_that_the_log_knows(server, caplog) -> None:
    caplog.set_level("INFO", "dure.server")
    answers = [server.get("/health"), server.chat("x" * 400)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert 2 == len(ids)
    server.wait_until(lambda: all(each in caplog.text for each in ids))


def test_no_words_of_a_request_or_its_answer_are_logged(serve, caplog) -> None:
    caplog.set_level("DEBUG", "dure.server")
    server = serve(reply("an answer to it"))
    server.chat("something private")
    server.wait_until(lambda: "answer 16" in caplog.text)
    assert "private" not in caplog.text
    assert "answer to it" not in caplog.text


def test_what_the_server_fails_with_stays_in_its_log(serve, caplog) -> None:
    class Broken(ScriptModel):
        def forward(self, batch, cache):
            raise ValueError("secret words of a library")

    server = serve(Broken(alphabet))
    answer = server.chat("hi")
    assert_error(answer, 500, "its log says why", code="internal_error")
    assert "secret" not in answer.body.decode()
    assert "secret words of a library" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


def test_an_error_in_midstream_is_an_event(serve) -> None:
    class Breaks(ScriptModel):
        def forward(self, batch, cache):
            if len(self.batches) > 3:
                raise ValueError("secret words of a library")
            return super().forward(batch, cache)

    server = serve(Breaks(alphabet))
    answer = server.chat("a", stream=True)
    assert 200 == answer.status
    assert "internal_error" == answer.events[-1]["error"]["code"]
    assert "secret" not in answer.body.decode()


def test_one_bad_request_hurts_no_other(serve) -> None:
    class Picky(ScriptModel):
        def forward(self, batch, cache):
            if any(token == ord("!") for token in batch.tokens):
                raise ValueError("no exclamations")
            return super().forward(batch, cache)

    server = serve(Picky(reply("a long enough answer to be interrupted")))
    good = server.send(CHAT, {"messages": HELLO, "stream": True})
    assert 500 == server.chat("wrong!").status
    received = b""
    while b"[DONE]" not in received:
        received += good.recv(65536)
    good.close()
    assert b'"finish_reason":"stop"' in received
