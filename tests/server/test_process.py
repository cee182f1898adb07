"""A server as a process: how it starts, refuses to, is told to end, and is killed."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fake_server.py")
CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}

Start = Callable[..., "Process"]


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: str, files: int | None = None, **environment: str) -> None:
        def limited() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
            preexec_fn=limited,  # noqa: PLW1509 - no threads that matter before exec
        )
        self.said = ""
        self.connections: list[socket.socket] = []

    def ready(self) -> Process:
        """The same, when it answers."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            if found:
                self.port = int(found[1])
                return self
        raise AssertionError(f"the server did not start: {self.said}")

    def connect(self) -> socket.socket:
        self.connections.append(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        return self.connections[-1]

    def send(self, path: str, body: dict | None = None) -> socket.socket:
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = self.connect()
        connection.sendall(head.encode() + data)
        return connection

    def ended(self, seconds: float = 20) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        assert self.process.stderr is not None
        self.said += self.process.stderr.read()
        return code


@pytest.fixture
def start() -> Iterator[Start]:
    """A function from arguments, and FAKE_… variables, to a Process; killed at the end."""
    started: list[Process] = []

    def begin(*arguments: str, **options: object) -> Process:
        started.append(Process(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.wait()
        for connection in each.connections:
            connection.close()
        if each.process.stderr is not None:
            each.process.stderr.close()


def rest(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    connection.close()
    return received


def first_token(connection: socket.socket) -> bytes:
    received = b""
    while b'"content":"x' not in received:
        part = connection.recv(65536)
        assert part
        received += part
    return received


def test_sigterm_at_idle_ends_it_with_0(start: Start) -> None:
    server = start("fake", "--port", "0").ready()
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()
    assert "Traceback" not in server.said


def test_ctrl_c_does_the_same(start: Start) -> None:
    server = start("fake", "--port", "0").ready()
    server.process.send_signal(signal.SIGINT)
    assert 0 == server.ended()
    assert "Traceback" not in server.said


def test_at_sigterm_what_runs_is_finished_and_what_comes_is_told_to_come_later(
    start: Start,
) -> None:
    server = start("fake", "--port", "0", FAKE_PAUSE="0.02").ready()
    stream = server.send(CHAT, STREAM)
    kept = server.send("/health")
    kept.recv(65536)
    received = first_token(stream)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    late = server.send(CHAT, STREAM)
    answer = late.recv(65536)
    assert b" 503 " in answer
    assert b"retry-after" in answer.lower()
    late.close()
    received += rest(stream)
    assert b"[DONE]" in received
    assert 100 == received.count(b'"content":"x')
    assert 0 == server.ended()
    kept.close()
    assert "Traceback" not in server.said


def test_a_second_sigterm_ends_it_at_once(start: Start) -> None:
    server = start("fake", "--port", "0", FAKE_PAUSE="0.2", FAKE_WORDS="1000").ready()
    stream = server.send(CHAT, STREAM)
    first_token(stream)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert 0 == server.ended()
    assert time.monotonic() - began < 8
    assert b"[DONE]" not in rest(stream)
    assert "Traceback" not in server.said


def test_killed_it_breaks_streams_off_and_starts_again_on_the_same_port(start: Start) -> None:
    server = start("fake", "--port", "0", FAKE_PAUSE="0.02").ready()
    stream = server.send(CHAT, STREAM)
    first_token(stream)
    server.process.kill()
    assert b"[DONE]" not in rest(stream)
    server.ended()
    again = start("fake", "--port", str(server.port)).ready()
    connection = again.send(CHAT, STREAM)
    received = b""
    while b"[DONE]" not in received:
        received += connection.recv(65536)
    connection.close()


def test_two_servers_on_one_port_are_one_too_many(start: Start) -> None:
    first = start("fake", "--port", "0").ready()
    second = start("fake", "--port", str(first.port))
    assert 1 == second.ended()
    assert f"Another program listens on 127.0.0.1 port {first.port}" in second.said
    assert "hint: --port" in second.said
    connection = first.send("/health")
    assert b" 200 " in connection.recv(4096)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fake", "--host", "0.0.0.0"), "no API key"),
        (("fake", "--api-key", "short"), "API key has 5 characters"),
        (("fake", "--host", "256.1.1.1"), "256.1.1.1"),
        (("too-big",), "needs 900 GB"),
        (("fake", "--quantize", "q5"), "q8, q6, q4"),
    ],
)
def test_what_cannot_be_served_is_said(start: Start, arguments, says) -> None:
    server = start(*arguments, "--port", "0")
    assert 1 == server.ended()
    assert "error: " in server.said
    assert says in server.said
    assert "Traceback" not in server.said


def test_with_few_files_it_answers_those_who_got_in_and_others_when_they_left(
    start: Start,
) -> None:
    server = start("fake", "--port", "0", files=64).ready()
    idle = []
    for _ in range(100):
        try:
            idle.append(server.connect())
        except OSError:
            break
    for connection in idle:
        connection.close()
    end = time.monotonic() + 10
    answer = b""
    while b" 200 " not in answer and time.monotonic() < end:
        connection = server.send(CHAT, {**STREAM, "stream": False, "max_tokens": 3})
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            time.sleep(0.1)
        connection.close()
    assert b" 200 " in answer
    assert server.process.poll() is None


def test_it_says_the_name_that_requests_give_the_model(start: Start) -> None:
    server = start("./folder/tiny.gguf", "--port", "0").ready()
    assert server.said.startswith("tiny: 4,096 tokens of context")


def test_keys_come_from_a_file_and_the_environment_too(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# people\nalices-own-key\n\nbobs-other-key\n")
    server = start("fake", "--port", "0", "--api-key-file", str(keys), DURE_API_KEY="a-third-key")
    server.ready()
    for key, status in (("alices-own-key", 200), ("a-third-key", 200), ("# people", 401)):
        connection = server.connect()
        head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        connection.sendall(head.encode())
        assert f" {status} ".encode() in connection.recv(4096)
        connection.close()


def test_weights_are_quantised_as_asked_and_each_model_says_its_dialect(start: Start) -> None:
    server = start("one", "two", "--quantize", "q4", "--port", "0").ready()
    assert "speak" not in server.said
    connection = server.send(CHAT, {**STREAM, "model": "two"})
    assert b"[DONE]" in rest_of_stream(connection)
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()
    assert "quantised to q4" in server.said
    assert "its template and vocabulary speak plain" in server.said


def rest_of_stream(connection: socket.socket) -> bytes:
    """All of a stream, up to its last event."""
    received = b""
    while b"[DONE]" not in received and (part := connection.recv(65536)):
        received += part
    connection.close()
    return received
