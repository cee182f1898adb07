"""A disk that fails while a server answers from it: one stream ends with an error, others go on."""

from __future__ import annotations

import errno
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import streamed
from big_mixture import Mixture
from fake_model import VOCAB_SIZE, ByteTokenizer

import dure.llm
from dure import LLM, kernels
from dure.chat.template import CHATML

PATH = "/v1/completions"
SMALL = Mixture(layers=3, experts=32, chosen=2, hidden=256, intermediate=256)
BUDGET = 9_800_000


class Disk(kernels.ExpertReader):
    """A reader whose disk fails from when a test says so."""

    error = 0

    def take(self, seconds: float) -> list[tuple[int, int, int]]:
        return [(tag, Disk.error or code, at) for tag, code, at in super().take(seconds)]


@pytest.fixture
def server(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of a mixture with room for less than half of its experts."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home" / "models"))
    for name in streamed.OVERHEADS:
        monkeypatch.setattr(name, 0)
    monkeypatch.setattr(kernels, "ExpertReader", Disk)
    monkeypatch.setattr(Disk, "error", 0)
    path = SMALL.write(tmp_path / "small.gguf")

    def make(_: str) -> LLM:
        model = streamed.opened(path, BUDGET)
        assert model.memory.streamed
        checkpoint = replace(model.checkpoint, chat_template=CHATML)
        found = replace(model, text=ByteTokenizer(), checkpoint=checkpoint)  # type: ignore[arg-type]
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: found)
        return LLM("small", speculate="off")

    return serve(make=make)


def body(*, tokens: int, **more: Any) -> dict[str, Any]:
    prompt = [7 * number % VOCAB_SIZE for number in range(12)]
    return {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "seed": 3, **more}


def first_events(connection: socket.socket) -> bytes:
    """What has come once the stream has begun to answer."""
    got = b""
    while got.count(b"data: ") < 3:
        got += connection.recv(1 << 16)
    return got


def test_a_disk_that_fails_ends_a_stream_with_an_error_and_the_next_is_answered(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = server.post(PATH, body(tokens=20)).json["choices"][0]["text"]
    connection = server.send(PATH, body(tokens=450, stream=True))
    got = first_events(connection)
    monkeypatch.setattr(Disk, "error", errno.EIO)
    while b"error" not in got:
        more = connection.recv(1 << 16)
        assert more, "the stream ended without an error"
        got += more
    [line] = [each for each in got.decode().splitlines() if '"error"' in each]
    error = json.loads(line.removeprefix("data: "))["error"]
    assert "cannot be read" in error["message"]
    assert (error["type"], error["code"]) == ("server_error", "model_unusable")
    server.wait_until(server.is_idle)
    assert server.get("/health").status == 200
    monkeypatch.setattr(Disk, "error", 0)
    assert server.post(PATH, body(tokens=20)).json["choices"][0]["text"] == right


def test_metrics_and_timings_tell_what_was_read(server: Any) -> None:
    told = server.post(PATH, body(tokens=20)).json["timings"]["experts"]
    assert told["misses"] > 0
    assert told["read_bytes"] > 10_000 * told["misses"]
    text = server.get("/metrics").body.decode()
    assert f"}} {float(told['misses'])}" in text
    assert "dure:expert_cache_capacity_bytes" in text
