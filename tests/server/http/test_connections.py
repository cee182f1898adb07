"""Clients that stall, send by drops, or are too many: nobody else is held up."""

from __future__ import annotations

import json
import socket
import time

import pytest
from fake_model import ScriptModel, reply
from stepped import ROOMY, Stepped, endless
from wire import read_until, rest

from dure.server import limits

CHAT = "/v1/chat/completions"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def body(text: str = "hi", **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def head(length: int) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def drip(connection: socket.socket, data: bytes, tries: int = 400) -> None:
    """Nothing; `data` is sent over and over, by drops, until the server will have no more."""
    for _ in range(tries):
        try:
            connection.sendall(data)
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("it would have been taken for ever")


def test_a_head_that_comes_by_drops_is_cut_off(serve, monkeypatch) -> None:
    server = serve(reply("ok"))
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    with server.connect() as connection:
        drip(connection, b"G")
    with server.connect() as silent:
        assert b"" == rest(silent)


def test_the_head_of_a_second_request_has_as_much_time(serve, monkeypatch) -> None:
    server = serve(reply("ok"))
    with server.connect() as connection:
        connection.sendall(HEALTH)
        read_until(connection, b'"ok"')
        monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
        connection.sendall(b"GET /hea")
        assert b"" == rest(connection)


def test_a_body_that_stops_coming_is_a_408(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    server = serve(reply("ok"))
    with server.connect() as connection:
        connection.sendall(head(1000) + b"{")
        assert b" 408 " in rest(connection)


def test_a_body_that_comes_by_drops_has_no_more_time(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    server = serve(reply("ok"))
    with server.connect() as connection:
        connection.sendall(head(100_000))
        drip(connection, b" ")
    assert 200 == server.chat("hi").status


def test_an_answer_may_take_longer_than_a_head_may(serve, monkeypatch) -> None:
    model = Stepped(reply("x" * 40))
    server = serve(model, model_options=ROOMY)
    monkeypatch.setattr(limits, "HEAD_SECONDS", 1.0)
    connection = server.send(CHAT, body())
    server.wait_until(lambda: model.begun)
    time.sleep(1.2)
    model.let()
    with connection:
        assert b" 200 " in connection.recv(65536)


@pytest.mark.parametrize("read", [0, 1])
def test_a_client_that_does_not_read_or_by_drops_is_cut_off_and_its_answer_ends(
    serve, monkeypatch, read
) -> None:
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.3)
    model = ScriptModel(endless, context_length=1 << 16)
    server = serve(model, model_options={"context": 1 << 16, "num_blocks": 2100})
    connection = server.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = json.dumps(body(stream=True, n=8, logprobs=True, top_logprobs=20)).encode()
    connection.sendall(head(len(data)) + data)
    server.wait_until(lambda: server.server.service.num_active == 8)

    def ended() -> bool:
        if read and not server.is_idle():
            connection.recv(1)
        return server.is_idle()

    server.wait_until(ended, 60)
    assert 200 == server.get("/health").status
    connection.close()


def test_what_is_sent_waits_for_no_receipt_of_what_was_sent_before(serve) -> None:
    server = serve(reply("ok"))
    with server.connect():
        server.wait_until(lambda: bool(server.server.connections.open))
        [connection] = server.server.connections.open.values()
        raw = connection.transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_stream_with_nothing_to_say_sends_comments(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "PING_SECONDS", 0.1)
    model = Stepped(reply("ok"))
    server = serve(model, model_options=ROOMY)
    with server.send(CHAT, body(stream=True)) as connection:
        for _ in range(3):
            read_until(connection, b": ping\n\n")
        model.let()
        read_until(connection, b"[DONE]")


def test_a_full_queue_answers_429_and_says_when_to_come_again(serve) -> None:
    model = Stepped(reply("ok"))
    server = serve(model, model_options=ROOMY, max_sequences=1, parallel=1, queue=1)
    held = [server.send(CHAT, body(stream=True)) for _ in range(2)]
    server.wait_until(lambda: server.server.service.num_active == 2)
    answer = server.chat("one too many")
    assert (429, "queue_full") == (answer.status, answer.json["error"]["code"])
    assert 1 <= int(answer.headers["retry-after"]) <= limits.MAX_RETRY_SECONDS
    model.let()
    for connection in held:
        connection.close()
    server.wait_until(server.is_idle)
    assert 200 == server.chat("hi", max_tokens=1).status


def test_health_answers_while_the_model_works(serve) -> None:
    model = Stepped(reply("ok"))
    server = serve(model, model_options=ROOMY)
    with server.send(CHAT, body(stream=True)):
        server.wait_until(lambda: model.begun)
        assert 200 == server.get("/health").status
        assert 1 == model.begun
        model.let()


def test_background_work_waits_for_a_person(serve) -> None:
    model = Stepped(reply("x" * 400))
    server = serve(model, model_options=ROOMY, max_sequences=1)
    first = server.send(CHAT, body("first", stream=True))
    server.wait_until(lambda: model.begun > 0)  # else the next connection may be served first
    waiting = server.llm.engine.scheduler.waiting
    background = server.send(CHAT, body("later", stream=True, service_tier="flex"))
    model.let_until(lambda: len(waiting) == 1)
    person = server.send(CHAT, body("now", stream=True))
    model.let_until(lambda: len(waiting) == 2)
    model.let()
    for connection in (first, background, person):
        read_until(connection, b"[DONE]")
        connection.close()
    read = [bytes(each for each in batch.tokens.tolist() if each < 256) for batch in model.batches]
    began = [next(i for i, text in enumerate(read) if word in text) for word in (b"now", b"later")]
    assert began == sorted(began)


def test_more_connections_than_there_may_be_are_turned_away_and_those_here_stay(
    serve, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 5)
    server = serve(reply("ok"))
    server.wait_until(lambda: not server.server.connections.open)
    kept = [server.connect() for _ in range(5)]
    server.wait_until(lambda: len(server.server.connections.open) == 5)
    extra = [server.connect() for _ in range(6)]
    for connection in extra:
        assert b"" == rest(connection)
    for connection in kept:
        connection.sendall(HEALTH)
        read_until(connection, b'"ok"')
    for connection in (*kept, *extra):
        connection.close()
    server.wait_until(lambda: not server.server.connections.open)
    assert 200 == server.get("/health").status


CHUNKED = "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        f"HEAD {CHAT} HTTP/1.1\r\n{CHUNKED}",  # whose answer has no body
        f"POST {CHAT} HTTP/1.1\r\n{CHUNKED}",  # whose handler still waits for its body
        "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_what_is_not_http_ends_its_connection_and_is_no_failure_of_ours(
    serve_module, caplog, sent
) -> None:
    with serve_module(reply("ok")).connect() as connection:
        connection.sendall(sent.encode())
        assert rest(connection).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in caplog.text


def test_what_is_not_http_after_a_last_answer_ends_its_connection(serve_module, caplog) -> None:
    with serve_module(reply("ok")).connect() as connection:
        last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.sendall(last + b"no request\r\n\r\n")
        assert rest(connection).count(b"HTTP/1.1 ") == 1
    assert "Traceback" not in caplog.text
