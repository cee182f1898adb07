"""A server as a process: how it starts or refuses to, is told to end, runs short, is killed."""

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

import psutil
import pytest
from preloaded import Child, Preloaded
from wire import read_until, rest

SCRIPT = Path(__file__).parents[1] / "fake_server.py"
CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
GIB = 1 << 30
PATIENCE_S = 60.0

Start = Callable[..., "Process"]


# What a server has imported when it answers: two seconds, of which most tests need not know.
IMPORTS = ("dure.llm", "dure.server.app", "dure.server.run", "dure.cli.serve", "fake_model")


class Process:
    """A server in a process of its own, which a preloaded one forks if there is one."""

    def __init__(
        self,
        preloaded: Preloaded | None,
        *arguments: str,
        files: int | None = None,
        memory: int | None = None,
        ignoring: signal.Signals | None = None,
        **environment: str,
    ) -> None:
        limits = {} if files is None else {"RLIMIT_NOFILE": files}
        limits |= {} if memory is None else {"RLIMIT_AS": memory}
        ignored = [] if ignoring is None else [ignoring]

        def limited() -> None:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            for name, value in limits.items():
                resource.setrlimit(getattr(resource, name), (value, value))

        environment = {**os.environ, **environment}
        self.process: subprocess.Popen[str] | Child
        if preloaded is not None:
            self.process = preloaded.start(
                *(str(SCRIPT), "serve", *arguments),
                env=environment,
                limits=limits,
                ignored=ignored,
            )
        else:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "serve", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
                preexec_fn=limited,  # noqa: PLW1509 - no threads that matter before exec
            )
        self.said = ""
        self.port = 0
        self.connections: list[socket.socket] = []

    def hear(self, form: str) -> re.Match[str]:
        """What it says that has this form, once it says so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            found = re.search(form, line)
            if found:
                return found
        raise AssertionError(f"the server never said {form}: {self.said}")

    def ready(self) -> Process:
        """The same, when it answers."""
        self.port = int(self.hear(r"http://127\.0\.0\.1:(\d+)/v1")[1])
        return self

    def connect(self) -> socket.socket:
        address = ("127.0.0.1", self.port)
        self.connections.append(socket.create_connection(address, timeout=PATIENCE_S))
        return self.connections[-1]

    def send(self, path: str, body: dict | None = None) -> socket.socket:
        """A connection on which a request was sent, and nothing read."""
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = self.connect()
        connection.sendall(head.encode() + data)
        return connection

    def status(self, path: str, body: dict | None = None) -> str:
        """How a request is answered: "200", "503", or "" if it is turned away."""
        connection = self.send(path, body)
        try:
            return connection.recv(65536)[9:12].decode()
        except ConnectionResetError:
            return ""
        finally:
            connection.close()

    def ended(self) -> int:
        """Its exit code."""
        code = self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.said += self.process.stderr.read()
        return code


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    made = Preloaded(*IMPORTS)
    yield made
    made.close()


@pytest.fixture
def start(preloaded: Preloaded) -> Iterator[Start]:
    """A function from arguments, and FAKE_… variables, to a Process; killed at the end.

    fresh: a Python that has imported nothing yet.
    """
    started: list[Process] = []

    def begin(*arguments: str, fresh: bool = False, **options: object) -> Process:
        started.append(
            Process(None if fresh else preloaded, *arguments, **options)  # type: ignore[arg-type]
        )
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.wait()
        for connection in each.connections:
            connection.close()
        if each.process.stderr is not None:
            each.process.stderr.close()


def first_token(connection: socket.socket) -> bytes:
    return read_until(connection, b'"content":"x')


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_at_idle_end_it_with_0(start: Start, number: signal.Signals) -> None:
    server = start("fake", "--port", "0", fresh=True).ready()
    server.process.send_signal(number)
    assert 0 == server.ended()
    assert "Traceback" not in server.said


def test_a_ctrl_c_that_was_ignored_at_the_start_does_not_end_the_server(start: Start) -> None:
    server = start("fake", "--port", "0", ignoring=signal.SIGINT).ready()
    server.process.send_signal(signal.SIGINT)
    assert server.status("/health") == "200"
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()


def test_at_sighup_a_log_file_is_opened_again(start: Start, tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    server = start("fake", "--port", "0", "--log-file", str(log)).ready()
    log.rename(moved)
    server.process.send_signal(signal.SIGHUP)
    wait_until(log.exists)
    assert server.status("/health") == "200"
    wait_until(lambda: "/health" in log.read_text())
    assert "/health" not in moved.read_text()
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()


def test_sighup_without_a_log_file_ends_it_unless_it_was_ignored(start: Start) -> None:
    server = start("fake", "--port", "0").ready()
    server.process.send_signal(signal.SIGHUP)
    assert 0 == server.ended()
    server = start("fake", "--port", "0", ignoring=signal.SIGHUP).ready()
    server.process.send_signal(signal.SIGHUP)
    assert server.status("/health") == "200"
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()


def test_at_sigterm_what_runs_is_finished_and_what_comes_is_told_to_come_later(
    start: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    server = start("fake", "--port", "0", FAKE_GATE=str(gate)).ready()
    stream = server.send(CHAT, STREAM)
    kept = server.send("/health")
    kept.recv(65536)
    received = first_token(stream)
    server.process.send_signal(signal.SIGTERM)
    server.hear("shutting down: 1 answers may finish")
    late = server.send(CHAT, STREAM)
    answer = late.recv(65536)
    assert b" 503 " in answer
    assert b"retry-after" in answer.lower()
    late.close()
    gate.touch()
    received += rest(stream)
    assert b"[DONE]" in received
    assert 100 == received.count(b'"content":"x')
    assert 0 == server.ended()
    kept.close()
    assert "Traceback" not in server.said


def test_a_second_sigterm_ends_it_at_once(start: Start) -> None:
    server = start("fake", "--port", "0", FAKE_PAUSE="0.2", FAKE_WORDS="3000").ready()
    stream = server.send(CHAT, STREAM)
    first_token(stream)
    server.process.send_signal(signal.SIGTERM)
    server.hear("shutting down: 1 answers may finish")
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.hear("ending at once")
    assert 0 == server.ended()
    assert time.monotonic() - began < 20  # what runs would be given 30 s, and takes 600
    assert b"[DONE]" not in rest(stream)
    assert "Traceback" not in server.said


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_while_the_model_is_loaded_ends_it_at_once(start: Start, times: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start("fake", "--port", str(port), FAKE_LOAD="300", fresh=times == 2)
    server.port = port

    def loads() -> bool:
        try:
            return server.status("/health") == "503"
        except ConnectionRefusedError:
            return False

    wait_until(loads)
    for _ in range(times):
        server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()
    assert "Traceback" not in server.said


def test_killed_it_breaks_streams_off_and_starts_again_on_the_same_port(
    start: Start, tmp_path: Path
) -> None:
    server = start("fake", "--port", "0", FAKE_GATE=str(tmp_path / "gate")).ready()
    stream = server.send(CHAT, STREAM)
    first_token(stream)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children  # the worker that renders templates
    server.process.kill()
    assert b"[DONE]" not in rest(stream)
    server.ended()
    _, left = psutil.wait_procs(children, PATIENCE_S)
    assert not left
    again = start("fake", "--port", str(server.port)).ready()
    read_until(again.send(CHAT, {**STREAM, "max_tokens": 3}), b"[DONE]")


def test_two_servers_on_one_port_are_one_too_many(start: Start) -> None:
    first = start("fake", "--port", "0").ready()
    second = start("fake", "--port", str(first.port))
    assert 1 == second.ended()
    assert f"Another program listens on 127.0.0.1 port {first.port}" in second.said
    assert "hint: --port" in second.said
    assert "200" == first.status("/health")


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


@pytest.mark.model
def test_a_cache_larger_than_the_memory_it_may_take_is_said_with_both_numbers(
    start: Start, smollm2: Path
) -> None:
    server = start(str(smollm2), "--port", "0", "--cache-gb", "50", memory=8 * GIB, fresh=True)
    assert 1 == server.ended()
    assert re.search(r"error: .* needs 50\.\d\d GB of memory, and [78]\.\d\d GB is", server.said)
    assert "Traceback" not in server.said


@pytest.mark.model
def test_with_little_memory_it_serves_what_fits(start: Start, smollm2: Path) -> None:
    server = start(str(smollm2), "--port", "0", memory=2 * GIB, fresh=True).ready()
    assert "200" == server.status(CHAT, {**STREAM, "max_tokens": 2})


def test_a_step_for_which_there_is_no_memory_ends_its_own_request(start: Start) -> None:
    server = start("fake", "--port", "0", memory=8 * GIB, FAKE_HUNGER=str(20 * GIB)).ready()
    hungry = {"messages": [{"role": "user", "content": "!"}]}
    for _ in range(3):
        assert "503" == server.status(CHAT, hungry)
        assert "200" == server.status(CHAT, {**STREAM, "max_tokens": 2})


def test_bodies_for_which_there_is_no_memory_end_nobody_else(start: Start) -> None:
    server = start("fake", "--port", "0").ready()
    assert "200" == server.status(CHAT, {**STREAM, "max_tokens": 2})
    used = psutil.Process(server.process.pid).memory_info().vms
    large = json.dumps({"messages": [{"role": "user", "content": "x" * (7 << 20)}]}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n"
    for room in (0, 2 << 20, 20 << 20):
        limit = (used + room, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, limit)
        for _ in range(2):
            connection = server.connect()
            try:
                connection.sendall(head.encode() + large)
                assert re.match(rb"HTTP/1.1 (503|500|400) ", connection.recv(65536))
            except (BrokenPipeError, ConnectionResetError):
                pass  # there was not even memory to read it
            connection.close()
        assert server.status("/health") in ("200", "")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, unlimited)
    assert "200" == server.status(CHAT, {**STREAM, "max_tokens": 2})


def test_with_few_files_it_answers_those_who_got_in_and_others_when_they_left(
    start: Start,
) -> None:
    server = start("fake", "--port", "0", files=64).ready()
    inside: list[socket.socket] = []
    outside = 0
    for _ in range(60):
        connection = server.send("/health")
        try:
            read_until(connection, b'"ok"')
            inside.append(connection)
        except (ConnectionResetError, AssertionError):
            outside += 1
    assert outside
    assert len(inside) >= 10
    data = json.dumps({**STREAM, "stream": False, "max_tokens": 3}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    for connection in inside:
        connection.sendall(head.encode() + data)
        read_until(connection, b"chat.completion")
    for connection in inside:
        connection.close()
    wait_until(lambda: server.status("/health") == "200")
    assert server.process.poll() is None


def test_it_says_the_name_that_requests_give_the_model(start: Start) -> None:
    server = start("./folder/tiny.gguf", "--port", "0").ready()
    assert server.said.startswith("tiny: context of 4,096 tokens")


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
    assert "dialect" not in server.said
    connection = server.send(CHAT, {**STREAM, "model": "two"})
    assert b"[DONE]" in rest_of_stream(connection)
    server.process.send_signal(signal.SIGTERM)
    assert 0 == server.ended()
    assert "quantised to q4" in server.said
    assert "dialect plain" in server.said


def rest_of_stream(connection: socket.socket) -> bytes:
    """All of a stream, up to its last event."""
    received = b""
    while b"[DONE]" not in received and (part := connection.recv(65536)):
        received += part
    connection.close()
    return received
