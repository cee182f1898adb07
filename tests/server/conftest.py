"""A server in this process, on a free port, over a model that says what the test wants."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn.server
from fake_model import ScriptModel, alphabet, loaded
from stepped import Stepped

import dure.llm
from dure import LLM
from dure.server import limits
from dure.server.run import Server, Settings

WAIT_S = 60.0


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The JSON of each server-sent event; "[DONE]" as it is, comments left out."""
        found: list[Any] = []
        for block in self.body.decode().split("\n\n"):
            for line in block.splitlines():
                if line.startswith("data: "):
                    text = line.removeprefix("data: ")
                    found.append(text if text == "[DONE]" else json.loads(text))
        return found


@dataclass
class Running:
    """A server that runs, and how to ask it."""

    server: Server
    llms: list[LLM]
    key: str = ""
    thread: threading.Thread | None = None
    failed: list[BaseException] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)  # closed at the end

    @property
    def port(self) -> int:
        return self.server.address[1]

    @property
    def llm(self) -> LLM:
        return self.llms[-1]

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The whole answer to one request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connection.request(method, path, data, {**sent, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.ask("POST", path, body, **options)

    def chat(self, text: str, **more: Any) -> Answer:
        """A chat's answer, or its events."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, **more})

    def connect(self) -> socket.socket:
        """A bare connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.append(connection)
        return connection

    def send(self, path: str, body: Any, **headers: str) -> socket.socket:
        """A connection on which a request was sent, and nothing read."""
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection = self.connect()
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        return connection

    def wait_until(self, what: Callable[[], bool], seconds: float = WAIT_S) -> None:
        """Nothing, once `what` is so; fails if that takes too long."""
        for _ in range(round(seconds / 0.005)):  # and no clock: a machine may stand still
            if what():
                return
            time.sleep(0.005)
        raise AssertionError("it did not become so in time")

    def is_idle(self) -> bool:
        """Whether nothing is held: no block, no request, no answer."""
        engines = [driver.engine for llm in self.llms for driver in llm.driver.drivers]
        return self.server.service.num_active == 0 and not any(
            engine.has_work or engine.pool.num_free != engine.pool.num_blocks for engine in engines
        )

    def stop(self) -> None:
        """Nothing; as a SIGTERM would."""
        self.loop.call_soon_threadsafe(self.server.stop)

    def run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve()

        try:
            asyncio.run(serve())
        except BaseException as error:
            self.failed.append(error)

    loop: asyncio.AbstractEventLoop = field(init=False)


Serve = Callable[..., Running]


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """A machine that stands still for a while fails no test; those of a limit set it again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HEAD", "BODY", "STALLED", "PREPARE"):
            patch.setattr(limits, f"{name}_SECONDS", WAIT_S)
        yield


class _Hasty:
    """asyncio for uvicorn, which looks every 0.1 s whether it is to end, and waits as long twice.

    A tenth of that: the tests end some hundred servers one after the other.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def sleep(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds / 10)


@pytest.fixture(scope="session", autouse=True)
def haste() -> Iterator[None]:
    """A server in this process ends as soon as it may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _Hasty())
        yield


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function from a script, options of fake_model.loaded and settings, to a Running server.

    At the end each must be idle, and end.
    """
    with pytest.MonkeyPatch.context() as patch:
        yield from _servers(patch)


@pytest.fixture(scope="module")
def serve_module() -> Iterator[Serve]:
    """The same, for servers that a file's tests share: asked for the same, it is the same one."""
    with pytest.MonkeyPatch.context() as patch:
        servers = _servers(patch)
        start = next(servers)
        made: dict[tuple[Any, str], Running] = {}

        def shared(script: Any = alphabet, **options: Any) -> Running:
            wanted = script, repr(sorted(options.items()))
            if wanted not in made:
                made[wanted] = start(script, **options)
            return made[wanted]

        yield shared
        next(servers, None)


def _servers(patch: pytest.MonkeyPatch) -> Iterator[Serve]:
    started: list[Running] = []
    # Unloading a model collects garbage, of all that the tests have imported: a second a server.
    collect = gc.collect
    patch.setattr(gc, "collect", lambda *_: collect(1))

    def start(
        script: Any = alphabet,
        *,
        max_sequences: int = 8,
        model_options: dict[str, Any] | None = None,
        make: Callable[[str], LLM] | None = None,
        speculate: str = "off",  # how many rows a step has follows measured times, else
        **settings: Any,
    ) -> Running:
        llms: list[LLM] = []

        def load(name: str) -> LLM:
            if make is not None:
                llms.append(make(name))
                return llms[-1]
            model = script if isinstance(script, ScriptModel) else ScriptModel(script)
            options = model_options or {}
            patch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **options))
            llms.append(LLM(name, max_sequences=max_sequences, speculate=speculate))
            return llms[-1]

        settings = {"models": ("fake",), "port": 0, "drain_seconds": 10.0, **settings}
        server = Server(Settings(**settings), load)
        keys = settings.get("keys", ())
        running = Running(server, llms, key=keys[0] if keys else "")
        running.thread = threading.Thread(target=running.run, name="server", daemon=True)
        running.thread.start()
        started.append(running)
        running.wait_until(lambda: running.failed or running.get("/health").status == 200)
        assert not running.failed
        return running

    yield start
    for running in started:
        for connection in running.connections:
            connection.close()
        for llm in running.llms:
            if isinstance(llm.model, Stepped):
                llm.model.let()  # a test that failed has not
        assert running.thread is not None
        if running.thread.is_alive():
            running.wait_until(running.is_idle)
            running.stop()
    for running in started:
        assert running.thread is not None
        running.thread.join(WAIT_S)
        assert not running.thread.is_alive(), "the server did not end"
        assert not running.failed
