"""Clients that leave, stall, or send by drops: the work stops, and nobody else is held up."""

from __future__ import annotations

import json
import socket
import time

import pytest
from fake_model import ScriptModel, alphabet, reply

from dure.server import limits

CHAT = "/v1/chat/completions"
LONG = reply("a very long answer " * 40)


def body(text: str = "hi", **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


class Slow(ScriptModel):
    """Takes a while for each step."""

    seconds = 0.02

    def forward(self, batch):
        time.sleep(self.seconds)
        return super().forward(batch)


def slow(script=LONG, **options) -> Slow:
    return Slow(script, context_length=4096)


ROOMY = {"context": 4096, "num_blocks": 256}


def read_until(connection: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        part = connection.recv(65536)
        assert part, "the server closed the connection"
        received += part
    return received


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_in_the_midst_of_an_answer_ends_it(serve, streamed) -> None:
    server = serve(slow(), model_options=ROOMY)
    connection = server.send(CHAT, body(stream=streamed))
    server.wait_until(lambda: len(server.llm.model.batches) > 3)
    connection.close()
    server.wait_until(server.is_idle, 2)
    steps = len(server.llm.model.batches)
    time.sleep(0.2)
    assert steps == len(server.llm.model.batches)
    assert steps < 100


def test_a_client_that_leaves_while_its_prompt_is_read_ends_it(serve) -> None:
    server = serve(slow(), model_options=ROOMY)
    connection = server.send(CHAT, body("x" * 3000, stream=True))
    server.wait_until(lambda: len(server.llm.model.batches) > 1)
    connection.close()
    server.wait_until(server.is_idle, 2)
    assert len(server.llm.model.batches) < 6


def test_a_client_that_leaves_while_it_waits_for_its_turn_never_gets_one(serve) -> None:
    server = serve(slow(), model_options=ROOMY, max_sequences=1)
    first = server.send(CHAT, body("first", stream=True))
    server.wait_until(lambda: server.llms and len(server.llm.model.batches) > 2)
    waiting = server.send(CHAT, body("second " * 20, stream=True, n=3))
    server.wait_until(lambda: len(server.llm.engine.scheduler.waiting) == 3)
    waiting.close()
    server.wait_until(lambda: not server.llm.engine.scheduler.waiting, 2)
    first.close()


def test_one_of_many_answers_of_one_request_leaves_with_the_others(serve) -> None:
    server = serve(slow(), model_options=ROOMY)
    connection = server.send(CHAT, body(stream=True, n=4))
    server.wait_until(lambda: len(server.llm.engine.scheduler.running) == 4)
    connection.close()
    server.wait_until(server.is_idle, 2)


def test_several_prompts_of_one_request_leave_together(serve) -> None:
    server = serve(slow(alphabet), model_options=ROOMY)
    sent = {"prompt": ["a", "b", "c"], "max_tokens": 500, "stream": True, "ignore_eos": True}
    connection = server.send("/v1/completions", sent)
    server.wait_until(lambda: len(server.llm.engine.scheduler.running) == 3)
    connection.close()
    server.wait_until(server.is_idle, 2)


@pytest.mark.parametrize("sent", [0, 20, 200])
def test_a_client_that_leaves_before_its_request_is_whole_costs_nothing(serve, sent) -> None:
    server = serve(reply("ok"))
    data = json.dumps(body("x" * 100)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    connection = server.connect()
    connection.sendall((head + data)[:sent])
    connection.close()
    assert 200 == server.get("/health").status
    assert server.is_idle()


def test_a_head_that_comes_by_drops_is_cut_off(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    server = serve(reply("ok"))
    with server.connect() as connection:
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 5:
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - began < 4
    with server.connect() as silent:
        assert b"" == _rest(silent)


def test_the_head_of_a_second_request_has_as_much_time(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    server = serve(reply("ok"))
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(connection, b'"ok"')
        connection.sendall(b"GET /hea")
        began = time.monotonic()
        assert b"" == _rest(connection)
        assert time.monotonic() - began < 4


def test_a_body_that_comes_by_drops_is_a_408(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    server = serve(reply("ok"))
    with server.connect() as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode()
        )
        assert b" 408 " in _rest(connection)


def test_an_answer_may_take_longer_than_a_head_may(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    server = serve(slow(reply("x" * 40)), model_options=ROOMY)
    assert 200 == server.post(CHAT, body()).status


def test_a_client_that_does_not_read_is_cut_off_and_its_answer_ends(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "STALLED_SECONDS", 0.3)
    model = ScriptModel(lambda text: "y", context_length=1 << 16)
    server = serve(model, model_options={"context": 1 << 16, "num_blocks": 2100})
    connection = server.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = json.dumps(body(stream=True, n=8, logprobs=True, top_logprobs=20)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    server.wait_until(lambda: server.server.service.num_active == 8)
    server.wait_until(server.is_idle, 30)
    assert 200 == server.get("/health").status
    connection.close()


def test_a_stream_with_nothing_to_say_sends_comments(serve, monkeypatch) -> None:
    monkeypatch.setattr(limits, "PING_SECONDS", 0.1)
    model = slow(reply("ok"))
    model.seconds = 0.5
    server = serve(model, model_options=ROOMY)
    answer = server.chat("hi", stream=True)
    assert answer.body.count(b": ping\n\n") >= 3
    assert "[DONE]" == answer.events[-1]


def test_a_full_queue_answers_429_and_says_when_to_come_again(serve) -> None:
    server = serve(slow(), model_options=ROOMY, max_sequences=1, parallel=1, queue=1)
    held = [server.send(CHAT, body(stream=True)) for _ in range(2)]
    server.wait_until(lambda: server.server.service.num_active == 2)
    answer = server.chat("one too many")
    assert (429, "queue_full") == (answer.status, answer.json["error"]["code"])
    assert 1 <= int(answer.headers["retry-after"]) <= limits.MAX_RETRY_SECONDS
    for connection in held:
        connection.close()
    server.wait_until(server.is_idle)
    assert 200 == server.chat("hi", max_tokens=1).status


def test_health_answers_while_the_model_works(serve) -> None:
    model = slow()
    model.seconds = 1.0
    server = serve(model, model_options=ROOMY)
    connection = server.send(CHAT, body(stream=True))
    server.wait_until(lambda: len(model.batches) > 0)
    began = time.monotonic()
    assert 200 == server.get("/health").status
    assert time.monotonic() - began < 0.9
    connection.close()


def test_background_work_waits_for_a_person(serve) -> None:
    server = serve(slow(reply("x" * 30)), model_options=ROOMY, max_sequences=1)
    first = server.send(CHAT, body("first", stream=True))
    server.wait_until(lambda: len(server.llm.engine.scheduler.running) == 1)
    background = server.send(CHAT, body("later", stream=True, service_tier="flex"))
    server.wait_until(lambda: len(server.llm.engine.scheduler.waiting) == 1)
    person = server.send(CHAT, body("now", stream=True))
    read_until(person, b"[DONE]")
    background.settimeout(0.01)
    with pytest.raises(TimeoutError):
        read_until(background, b"[DONE]")
    background.settimeout(20)
    read_until(background, b"[DONE]")
    for connection in (first, background, person):
        connection.close()


def test_more_connections_than_there_may_be_are_turned_away_and_those_here_stay(
    serve, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 5)
    server = serve(reply("ok"))
    kept = [server.connect() for _ in range(4)]
    time.sleep(0.1)
    extra = [server.connect() for _ in range(6)]
    assert b"" == _rest(extra[-1])
    for connection in kept:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(connection, b'"ok"')
    for connection in (*kept, *extra):
        connection.close()


def _rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, or resets it."""
    connection.settimeout(5)
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received
