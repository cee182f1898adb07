"""/api/create, copy, delete and pull: presets are made and deleted only where that is right."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from fake_model import reply
from stepped import Stepped

from dure import hub
from dure.hub.store import Record, land, models_folder
from dure.metering.keys_file import KeyPolicy

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
KEY = "a-key-of-this-test"


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model that dure pulled, in a home of its own."""
    monkeypatch.setenv("DURE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none" / "hub"))
    monkeypatch.chdir(tmp_path)
    name = hub.parse_name("org/tiny")
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "tiny.gguf").write_bytes(EMPTY_GGUF)
    target = models_folder() / name.folder
    target.parent.mkdir(parents=True)
    land(partial, target, Record(name.text, "a test", files={"tiny.gguf": len(EMPTY_GGUF)}))
    return name.text


def lines(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def test_a_preset_is_created_used_replaced_and_deleted(serve: Any, base: str) -> None:
    server = serve(reply("ok"), models=())
    asked = {
        "model": "mario:latest",
        "from": base,
        "system": "Be Mario.",
        "parameters": {"temperature": 0.5, "stop": ["END"], "num_ctx": 64, "mirostat": 1},
        "messages": [{"role": "user", "content": "Who?"}],
        "license": ["MIT", "and more"],
    }
    done = server.post("/api/create", asked)
    assert lines(done.body) == [
        {"status": "Ollama's parameter mirostat is not used"},
        {"status": "success"},
    ]
    settings = hub.resolve("mario").settings
    assert (settings.system, settings.context) == ("Be Mario.", 64)
    assert settings.sampling == {"temperature": 0.5, "stop": ["END"]}
    assert [m["name"] for m in server.get("/api/tags").json["models"]] == [base, "mario"]
    assert server.post("/api/chat", {"model": "mario", "messages": []}).status == 200
    shown = server.post("/api/show", {"model": "mario"}).json
    assert (shown["system"], shown["license"]) == ("Be Mario.", "")
    again = {**asked, "system": "Be Luigi.", "stream": False}
    assert server.post("/api/create", again).json == {"status": "success"}
    assert server.get("/api/ps").json["models"] == []  # so that the next answer is of the new one
    assert server.post("/api/copy", {"source": "mario", "destination": "other"}).status == 200
    assert hub.resolve("other").settings.system == "Be Luigi."
    assert server.ask("DELETE", "/api/delete", {"model": "mario"}).status == 200
    assert hub.preset_of("mario") is None
    missing = server.ask("DELETE", "/api/delete", {"model": "mario"})
    assert (missing.status, "No model called" in missing.json["error"]) == (404, True)
    assert server.ask("DELETE", "/api/delete", {"name": base}).status == 200
    assert not list(models_folder().glob("*tiny*"))


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"from": "/etc/passwd"}, 404, "No model called"),
        ({"from": "./partial"}, 404, "No model called"),
        ({"from": "org/other"}, 404, "No model called"),
        ({"from": None}, 400, "which model"),
        ({"model": "../x"}, 400, "cannot be a preset's name"),
        ({"model": "/etc/passwd"}, 400, "cannot be a preset's name"),
        ({"model": "home"}, 400, "cannot be a preset's name"),
        ({"model": "qwen3:8b"}, 400, "is a model's name"),
        ({"files": {"a.gguf": "sha256:0"}}, 400, "files"),
        ({"quantize": "q4_K_M"}, 400, "quantize"),
        ({"modelfile": "FROM /etc/passwd"}, 400, "modelfile"),
        ({"parameters": {"temprature": 1}}, 400, "no parameter"),
        ({"parameters": {"temperature": -1}}, 400, "temperature must be"),
        ({"parameters": {"top_k": True}}, 400, "is not a value"),
        ({"parameters": {"temperature": [0.1, 0.9]}}, 400, "only stop has several values"),
        ({"template": "{% for %}"}, 400, "writes no prompt"),
        ({"template": "a text"}, 400, "leaves out what the user says"),
        ({"template": "{{ .Prompt }}"}, 400, "a program in Go"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "A message of a preset"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(
    serve_module: Any, base: str, more: dict[str, Any], status: int, said: str
) -> None:
    server = serve_module(reply("ok"), models=())
    answer = server.post("/api/create", {"model": "mario", "from": base, **more})
    assert (answer.status, said in answer.json["error"]) == (status, True), answer.body
    assert hub.all_presets() == []


def test_what_other_programs_keep_is_not_deleted(serve: Any, tmp_path: Path) -> None:
    repository = tmp_path / "none" / "hub" / "models--org--theirs"
    blob = repository / "snapshots" / ("a" * 40)
    blob.mkdir(parents=True)
    (blob / "theirs-Q8_0.gguf").write_bytes(EMPTY_GGUF)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    server = serve(reply("ok"), models=(), aliases=(("gpt-*", "org/tiny"),))
    kept = server.ask("DELETE", "/api/delete", {"model": "org/theirs:Q8_0"})
    assert kept.status == 403
    assert "deletes only what it pulled" in kept.json["error"]
    assert server.ask("DELETE", "/api/delete", {"model": "gpt-4"}).status == 404
    assert (blob / "theirs-Q8_0.gguf").exists()
    assert hub.resolve("org/tiny").owner == "dure"


def test_a_model_that_answers_is_not_changed(serve: Any, base: str) -> None:
    model = Stepped(reply("ok"))
    server = serve(model, models=())
    connection = server.send("/api/generate", {"model": base, "prompt": "Hi"})
    server.wait_until(lambda: model.begun > 0)
    refused = server.ask("DELETE", "/api/delete", {"model": base})
    assert (refused.status, "is in use" in refused.json["error"]) == (409, True)
    model.let()
    assert connection.recv(12) == b"HTTP/1.1 200"
    server.wait_until(server.is_idle)


def test_a_pull_of_what_is_here_is_done_and_nothing_is_downloaded(serve: Any, base: str) -> None:
    server = serve(reply("ok"), models=())
    assert lines(server.post("/api/pull", {"model": base}).body) == [{"status": "success"}]
    answer = server.post("/api/pull", {"model": "org/other", "stream": False})
    assert answer.status == 404
    assert "dure pull org/other" in answer.json["error"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"models": ("fake",)}, "started with"),
        ({"models": (), "keys": (KEY, KEY + "2")}, "several keys"),
        ({"models": (), "keys": (KEY,), "policies": ((KEY, KeyPolicy("ada")),)}, "no admin's"),
        ({"models": (), "host": "0.0.0.0", "insecure": True}, "anybody may ask"),
        ({"models": (), "cors": ("https://chat.example",)}, "web pages may ask"),
    ],
)
def test_a_server_of_certain_models_or_of_several_people_stays_as_it_is(
    serve: Any, base: str, settings: dict[str, Any], why: str
) -> None:
    server = serve(reply("ok"), **settings)
    for method, path, body in (
        ("POST", "/api/create", {"model": "mario", "from": base}),
        ("POST", "/api/copy", {"source": base, "destination": "mario"}),
        ("DELETE", "/api/delete", {"model": base}),
    ):
        answer = server.ask(method, path, body)
        assert (answer.status, why in answer.json["error"]) == (403, True)
    assert hub.resolve(base).owner == "dure"
