"""Readers of requests: bodies of every route through the application, and bytes of a connection."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from fake_model import END, ScriptModel, loaded
from mutations import anything, damaged_bytes, damaged_json, json_bytes
from reader import Fault, Reader
from server_bodies import BODIES, FIELDS, GETS, HEADER_VALUES, HEADERS
from transcripts import TRANSCRIPTS

import dure.llm
from dure import LLM


class Babbler(ScriptModel):
    """Says parts of what models of every family write, and ends every 61 tokens at the latest."""

    text = "".join(each.text for each in TRANSCRIPTS).encode()

    def forward(self, batch: Any, cache: Sequence[np.ndarray]) -> np.ndarray:
        logits = np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            place = int(batch.positions[row]) * 7 + int(batch.tokens[row])
            out[:] = np.random.default_rng(place).normal(0, 2, self.vocab_size)
            at = int(batch.positions[row])
            out[END if at % 61 == 60 else self.text[at % len(self.text)]] = 12.0
        return logits


class _Caught(logging.Handler):
    """Keeps what was logged as an exception."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(error or RuntimeError(record.getMessage()))


class ServerReader(Reader):
    """A server's application in this process, over two small models, without a socket."""

    spare_mb = 600

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        from dure.server.app import make_app  # noqa: PLC0415
        from dure.server.http.auth import Hosts, Keys  # noqa: PLC0415
        from dure.server.http.connection import Connections  # noqa: PLC0415
        from dure.server.http.middleware import RequestMiddleware  # noqa: PLC0415
        from dure.server.serving.model_pool import ModelPool  # noqa: PLC0415
        from dure.server.serving.service import Service  # noqa: PLC0415

        self.loop = asyncio.new_event_loop()
        self.caught = _Caught()
        self.logs: list[logging.Logger] = []
        self._catch("dure.server")
        qwen = Path(__file__).parent.parent / "chat/templates/qwen3.jinja"
        self.templates = {"plain": None, "hermes": qwen.read_text("utf-8")}

        def load(name: str) -> LLM:
            options = {"template": self.templates[name]} if self.templates[name] else {}
            model = loaded(Babbler(context_length=2048), context=2048, num_blocks=160, **options)
            with patch.object(dure.llm, "load", lambda *_, **__: model):
                return LLM(name, max_sequences=8)

        async def make() -> Any:
            registry = ModelPool(load, {name: name for name in self.templates}, max_loaded=2)
            return Service(registry, parallel=8, queue=64)

        self.service = self.loop.run_until_complete(make())
        self.connections = Connections()
        self.api = make_app(self.service)
        self.app = RequestMiddleware(
            self.api, keys=Keys(()), hosts=Hosts(()), connections=self.connections
        )

    def check_idle(self) -> None:
        """Raise a Fault if anything of a request is left."""
        errors, self.caught.errors = self.caught.errors, []
        if errors:
            raise errors[0]
        if self.service.num_active or self.service._running:  # what `over` should have emptied
            raise Fault("an answer is still counted when its request is over")

    def close(self) -> None:
        self.loop.run_until_complete(self.service.close())
        self.loop.close()
        for log in self.logs:
            log.removeHandler(self.caught)
            log.propagate = True

    def _catch(self, name: str) -> None:
        """Have what is logged under that name as a failure count as one."""
        log = logging.getLogger(name)
        log.addHandler(self.caught)
        log.propagate = False
        self.logs.append(log)


def check_answer(status: int, body: bytes) -> bool:
    """Whether a request was accepted; a Fault for an answer that nobody should get."""
    if status >= 500 and status != 503:
        raise Fault(f"{status}: {body[:300]!r}")
    if b"The server failed" in body or b"Traceback" in body or b"internal_error" in body:
        raise Fault(f"{status}: {body[:300]!r}")
    if status >= 400 and len(body) < 20:
        raise Fault(f"{status} without a sentence: {body!r}")
    return status < 400


class Bodies(ServerReader):
    """Bodies, paths and headers of every route."""

    name = "bodies"
    weight = 20

    def draw(self, rng: random.Random) -> Any:
        if rng.random() < 0.03:
            return "GET", rng.choice(GETS) + rng.choice(("", "", "?x=1", "/x", "%00")), b"", {}
        path, base = rng.choice(BODIES)
        body = base
        if rng.random() < 0.3 and isinstance(body, dict):
            body = {**body, rng.choice(FIELDS): anything(rng)}
        if rng.random() < 0.15:
            body = {**body, **rng.choice(BODIES)[1]}
        if rng.random() < 0.9:
            body = damaged_json(rng, body, [each for _, each in BODIES])
        if isinstance(body, dict) and rng.random() < 0.8:  # an answer takes time
            for name in ("max_tokens", "max_output_tokens", "num_predict"):
                if name in base:
                    body.setdefault(name, 5)
        headers = {}
        if rng.random() < 0.1:
            headers[rng.choice(HEADERS)] = rng.choice(HEADER_VALUES)
        return "POST", path, json_bytes(rng, body), headers

    def read(self, drawn: Any) -> bool:
        method, path, body, headers = drawn
        status, answer = self.loop.run_until_complete(self._ask(method, path, body, headers))
        self.check_idle()
        return check_answer(status, answer)

    async def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        plain, _, query = path.partition("?")
        sent = {"host": "localhost", "content-length": str(len(body)), **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": plain.replace("%00", "\0"),
            "raw_path": plain.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        half = len(body) // 2
        parts = [body] if half % 2 else [body[:half], body[half:]]
        status, said = 0, bytearray()

        async def receive() -> dict[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                said.extend(message.get("body", b""))

        await self.app(scope, receive, send)
        for _ in range(1000):  # what is over is counted on the loop's next turns
            if not self.service.num_active:
                break
            await asyncio.sleep(0.002)
        return status, bytes(said)


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self, number: int) -> None:
        super().__init__({"peername": ("127.0.0.1", number), "sockname": ("127.0.0.1", 80)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False


LINES = (
    *("X: \x01", "Content-Length: 5", "Content-Length: 5, 5", "Transfer-Encoding: chunked", ": a"),
    *("Transfer-Encoding: x", "Host: b", "Connection: close", "Connection: upgrade", "Expect: x"),
    *("Upgrade: websocket", "Sec-WebSocket-Key: a", "Content-Length: -1", "A" * 9000 + ": b", "a"),
    *(" folded", "Expect: 100-continue", "HTTP2-Settings: a", "Host: localhost", "\u00e9: \u00ff"),
)


class Connections(ServerReader):
    """Bytes of connections, in pieces: several requests, wrong heads, bodies that end early."""

    name = "connections"
    weight = 15

    def __init__(self, folder: Path, *, small: bool = False) -> None:
        super().__init__(folder, small=small)
        import uvicorn  # noqa: PLC0415
        from uvicorn.server import ServerState  # noqa: PLC0415

        from dure.server import limits  # noqa: PLC0415

        self.config = uvicorn.Config(
            self.app,
            http=self.connections.protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=limits.MAX_HEADER_BYTES,
        )
        self.config.load()
        self.state = ServerState()
        self.number = 1024
        self._catch("uvicorn.error")

    def draw(self, rng: random.Random) -> list[bytes]:
        whole = b"".join(self._request(rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
        if rng.random() < 0.5:
            whole = damaged_bytes(rng, whole, head=rng.choice((16, 120, 400)))
        cuts = sorted(rng.randint(0, len(whole)) for _ in range(rng.choice((0, 0, 1, 2, 5))))
        ends = [*cuts, len(whole)]
        return [whole[a:b] for a, b in zip([0, *cuts], ends, strict=True) if a < b]

    @staticmethod
    def _request(rng: random.Random) -> bytes:
        path, body = rng.choice((("/tokenize", {"prompt": "a"}), ("/v1/models/x", {}), *BODIES[:2]))
        data = json.dumps(body).encode() if rng.random() < 0.5 else b"{}"
        method = rng.choice(("POST",) * 6 + ("GET", "HEAD", "OPTIONS", "PATCH", "PRI", "a b", "\0"))
        lines = [f"{method} {path} HTTP/1.{rng.choice('1111012')}", "Host: localhost"]
        if rng.random() < 0.2:
            lines += ["Transfer-Encoding: chunked"]
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data) + rng.choice((0, 0, 1, -1)), data)
        else:
            lines += [f"Content-Length: {len(data) + rng.choice((0, 0, 0, 0, 1, -1))}"]
        lines += rng.sample(LINES, rng.choice((0, 0, 1, 2)))
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + data

    def read(self, drawn: list[bytes]) -> bool:
        self.number += 1
        transport = _Transport(self.number % 60_000)
        self.loop.run_until_complete(self._feed(drawn, transport))
        if self.connections.open:
            raise Fault("a connection is kept when it is gone")
        self.check_idle()
        written = bytes(transport.written)
        statuses = [line[9:12] for line in written.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        for status in statuses:
            if status >= b"500" and status != b"503":
                raise Fault(written[:400].decode("latin-1"))
        check_answer(200, written)
        return any(status == b"200" for status in statuses)

    async def _feed(self, pieces: Sequence[bytes], transport: _Transport) -> None:
        protocol = self.connections.protocol(
            config=self.config, server_state=self.state, app_state={}
        )
        protocol.connection_made(transport)
        try:
            for number, piece in enumerate(pieces, 1):
                if transport.closed:
                    break
                protocol.data_received(piece)
                await self._settle(last=number == len(pieces))
        finally:
            protocol.connection_lost(None)
        for _ in range(3000):
            if not self.state.tasks and not self.service.num_active:
                break
            await asyncio.sleep(0.001)
        else:
            raise Fault("a request goes on after its connection has gone")

    async def _settle(self, *, last: bool) -> None:
        """Wait until every request that is whole was answered; the others wait for more.

        last: nothing more comes, so a little longer, for what is computed off the loop.
        """
        for _ in range(40):
            await asyncio.sleep(0)
            if not self.state.tasks:
                return
        for turn in range(200):
            waits = self.service.num_active or (last and turn < 10)
            if not self.state.tasks or not waits:
                return
            await asyncio.sleep(0.001)


SERVER_READERS: Mapping[str, type[Reader]] = {each.name: each for each in (Bodies, Connections)}
