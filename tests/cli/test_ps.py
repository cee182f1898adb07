"""dure ps and dure stop, against a server that answers as Ollama's API does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

MODELS = [
    {
        "name": "qwen3:8b",
        "size": 5_000_000_000,
        "context_length": 32768,
        "expires_at": "2999-01-01T00:00:00Z",
    },
    {"name": "mine", "size": 10, "expires_at": "2020-01-01T00:00:00Z"},
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, object]]]:
    """What a server of two models was asked; a key is needed."""
    told: list[tuple[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: object) -> None:
            told.append((self.path, body))
            allowed = self.headers["Authorization"] == "Bearer k"
            moved = self.path.startswith("/moved/")
            self.send_response(301 if moved else 200 if allowed else 401)
            if moved:
                self.send_header("Location", f"http://localhost:{self.server.server_port}/api/ps")
            self.end_headers()
            self.wfile.write(json.dumps({"models": MODELS}).encode())

        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("DURE_URL", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DURE_API_KEY", "k")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def test_ps_lists_what_is_in_memory(dure_command, asked) -> None:
    head, first, second = dure_command("ps").out.splitlines()
    assert head.split() == ["NAME", "SIZE", "CONTEXT", "UNTIL"]
    assert first.split() == ["qwen3:8b", "5.0", "GB", "32,768", "for", "ever"]
    assert second.split() == ["mine", "10", "bytes", "0", "s"]
    assert json.loads(dure_command("ps", "--json").out)[0]["name"] == "qwen3:8b"
    assert asked == [("/api/ps", None)] * 2


def test_stop_unloads_one_and_says_what_there_is_instead(dure_command, asked) -> None:
    assert (
        "qwen3:8b is unloaded as soon as no request uses it" in dure_command("stop", "Qwen3:8b").err
    )
    asked_for = {"model": "qwen3:8b", "keep_alive": 0, "stream": False}
    assert asked[-1] == ("/api/generate", asked_for)
    done = dure_command("stop", "other")
    assert done.code == 1
    assert "in memory: qwen3:8b, mine" in done.err
    assert asked[-1] == ("/api/ps", None)  # nothing was loaded to be unloaded


def test_a_key_that_is_missing_is_asked_for(
    dure_command, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DURE_API_KEY")
    done = dure_command("ps")
    assert done.code == 1
    assert "answered 401" in done.err and "DURE_API_KEY" in done.err


def test_a_key_is_sent_to_no_other_server(
    dure_command, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURE_URL", os.environ["DURE_URL"] + "/moved")
    done = dure_command("ps")
    assert done.code == 1
    assert "answered 301" in done.err and "--url names the server" in done.err
    assert asked == [("/moved/api/ps", None)]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://x", "http://[", "http://"])
def test_no_server_is_a_sentence_and_a_hint(dure_command, url: str) -> None:
    done = dure_command("ps", "--url", url)
    assert done.code == 1
    assert "hint: " in done.err
