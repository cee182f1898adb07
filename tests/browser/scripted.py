"""The pages behind the server's own middleware, before an API that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dure.server.app import make_app
from dure.server.http.auth import Hosts, Keys
from dure.server.http.middleware import RequestMiddleware
from dure.server.page.files import Page
from dure.server.page.routes import page_routes, root

Step = tuple[Any, ...]
"""("reasoning" | "content", text), ("progress", done, cached, total), ("call", name, arguments),
("wait",) until the test says `go`, ("fail", message), ("end", finish_reason)."""

USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 4},
    "cost": 0.00012,
    "cost_details": {"currency": "EUR", "processor_seconds": 0.5, "joules": 12.3, "energy": "rapl"},
}
TIMINGS = {
    "prompt_n": 10,
    "prompt_per_second": 400.0,
    "predicted_n": 12,
    "predicted_per_second": 45.6,
}
MODELS = [
    {"id": "tiny", "loaded": True, "quantization": "Q4_K", "size_bytes": 491_000_000},
    {"id": "large", "loaded": False, "quantization": "Q8_0", "size_bytes": 9_100_000_000},
]
METRICS = """# HELP dure:generation_tokens_total Tokens written
dure:generation_tokens_total{model_name="tiny"} 1234.0
dure:prompt_tokens_total{model_name="tiny"} 777.0
dure:joules_total{model_name="tiny",key="anyone",energy="rapl"} 55.0
"""
RUNNING = {
    "id": "tiny",
    "context": 8192,
    "threads": 2,
    "requests": 1,
    "running": 1,
    "waiting": 0,
    "load_seconds": 1.5,
    "cache": {"used": 0.25, "bytes": 100_000_000, "blocks": 64},
    "replicas": [
        {"up": True, "running": 1, "waiting": 0, "cache_used": 0.5},
        {"up": False, "running": 0, "waiting": 0, "cache_used": 0.0},
    ],
    "experts": {
        "hits": 90,
        "misses": 10,
        "resident": 5,
        "all": 20,
        "resident_bytes": 5_000_000,
        "capacity_bytes": 6_000_000,
        "read_bytes": 1_000_000,
        "wait_seconds": 0.5,
    },
}


class Scripted:
    """A server on a port of its own, as a context manager."""

    def __init__(self) -> None:
        self.page = Page()
        self.openapi = make_app(None, page=self.page).openapi()  # type: ignore[arg-type]
        self.reset()
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.socket = listening
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def reset(self) -> None:
        """Forget what was asked and said; a test that waits is let go."""
        if hasattr(self, "go"):
            self.go.set()
        self.go = threading.Event()
        self.answers: list[Sequence[Step]] = []
        self.bodies: list[dict[str, Any]] = []
        self.controls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = 0  # streams whose client went away
        self.key: str | None = None
        self.models = [{**each, "context_length": 8192} for each in MODELS]
        self.loading: dict[str, Any] | None = None
        self.streams: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str]] = []
        self.piece = 7  # characters of an event

    def say(self, *texts: str) -> None:
        """Let the next answers be these texts."""
        self.answers += [[("content", text)] for text in texts]

    def script(self, *steps: Step) -> None:
        """Let the next answer be these steps."""
        self.answers.append(steps)

    def __enter__(self) -> Scripted:
        inner = Starlette(
            routes=[
                Route("/", self._root, methods=["GET", "HEAD"]),
                Route("/v1/models", self._models),
                Route("/v1/status", self._status),
                Route("/metrics", lambda _: PlainTextResponse(METRICS)),
                Route("/openapi.json", lambda _: JSONResponse(self.openapi)),
                Route("/api/generate", self._load, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/chat/completions/control", self._control, methods=["POST"]),
                *page_routes(self.page),
            ]
        )
        inner.state.page = self.page
        app = RequestMiddleware(inner, keys=_Keys(self), hosts=Hosts(), page=self.page)
        config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
        self.http = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.http.run, args=([self.socket],), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        self.http.should_exit = self.http.force_exit = True
        self.thread.join(20)

    async def _root(self, request: Request) -> Response:
        return await root(None, request)  # type: ignore[arg-type]

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models})

    async def _status(self, _: Request) -> Response:
        return JSONResponse(
            {
                "version": "0.2",
                "status": "ok",
                "uptime_seconds": 61,
                "parallel": 32,
                "requests": {"active": len(self.streams), "most": 544},
                "models": [RUNNING],
                "loading": self.loading,
                "streams": self.streams,
            }
        )

    async def _load(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        self.loading = {
            "id": asked["model"],
            "stage": "loading",
            "done_bytes": 4_550_000_000,
            "total_bytes": 9_100_000_000,
            "seconds": 1,
        }
        await self._until_go()
        self.loading = None
        for model in self.models:
            model["loaded"] = model["loaded"] or model["id"] == asked["model"]
        return JSONResponse({"done": True})

    async def _control(self, request: Request) -> Response:
        self.controls.append(json.loads(await request.body()))
        self.go.set()
        return JSONResponse({"success": True})

    async def _until_go(self) -> None:
        go = self.go
        while not go.is_set():
            await asyncio.sleep(0.01)

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.refusals:
            status, message = self.refusals.pop(0)
            return JSONResponse({"error": {"message": message}}, status)
        steps = self.answers.pop(0) if self.answers else [("content", "Hello.")]
        if steps[0] == ("wait",):  # before a stream begins, as while a model is loaded
            await self._until_go()
        return StreamingResponse(self._events(body, steps), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], steps: Sequence[Step]) -> AsyncIterator[str]:
        start = {"id": f"chatcmpl-{len(self.bodies)}", "model": body.get("model", "tiny")}
        finish, calls = "stop", 0
        ended = False
        try:
            for step in steps:
                kind = step[0]
                if kind == "wait":
                    await self._until_go()
                elif kind == "fail":
                    yield _event({"error": {"message": step[1]}})
                    return
                elif kind == "end":
                    finish = step[1]
                elif kind == "progress":
                    done, cached, total = step[1:]
                    progress = {"total": total, "cache": cached, "processed": done, "time_ms": 2000}
                    yield _event({**start, "choices": [], "prompt_progress": progress})
                elif kind == "call":
                    asked = {"name": step[1], "arguments": step[2]}
                    call = {"index": calls, "id": f"call_{calls}", "function": asked}
                    yield _event({**start, "choices": [{"delta": {"tool_calls": [call]}}]})
                    calls += 1
                    finish = "tool_calls"
                else:
                    field = "reasoning_content" if kind == "reasoning" else "content"
                    for piece in self._pieces(step[1]):
                        yield _event({**start, "choices": [{"delta": {field: piece}}]})
            choice = {"delta": {}, "finish_reason": finish}
            yield _event({**start, "choices": [choice], "timings": TIMINGS})
            yield _event({**start, "choices": [], "usage": USAGE})
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            self.left += not ended

    def _pieces(self, text: str) -> list[str]:
        size = max(self.piece, len(text) // 400)
        return [text[at : at + size] for at in range(0, len(text), size)]


class _Keys(Keys):
    """The key that the test has set by now."""

    def __init__(self, running: Scripted) -> None:
        super().__init__()
        self._running = running

    def tenant(self, headers: Any) -> str:
        key = self._running.key
        return Keys([] if key is None else [key]).tenant(headers)


def _event(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    halves = any("\ud800" <= c <= "\udfff" for c in text)  # of characters: they go as escapes
    return f"data: {json.dumps(value) if halves else text}\n\n"


def until(what: Any, seconds: float = 30.0) -> None:
    """Wait until `what()` is so; fail if it does not become so."""
    for _ in range(round(seconds / 0.01)):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not become so in time")
