"""Which models there are, when they come into memory, and when they leave it."""

from __future__ import annotations

import json
import re

import pytest
from fake_model import CHATML, reply

import dure.server.run
from dure import LLM
from dure.errors import NotEnoughMemoryError

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(reply("ok"), aliases=(("gpt-4", ""), ("claude-*", "fake")))


def test_the_model_is_listed_with_what_is_known_of_it(server) -> None:
    body = server.get("/v1/models").json
    [model] = body["data"]
    assert ("list", "fake", "model") == (body["object"], model["id"], model["object"])
    assert (True, 256) == (model["loaded"], model["max_model_len"])
    assert ["gpt-4", "claude-*"] == model["aliases"]
    assert 259 == model["meta"]["n_vocab"]
    assert model == server.get("/v1/models/fake").json


@pytest.mark.parametrize("name", ["fake", "gpt-4", "claude-haiku-9", "", None])
def test_a_model_answers_to_its_name_and_its_aliases(server, name) -> None:
    answer = server.post(CHAT, {**HELLO, "model": name})
    assert (200, "fake") == (answer.status, answer.json["model"])


def test_texts_become_tokens_and_tokens_texts(server) -> None:
    tokens = server.post("/tokenize", {"prompt": "hi<|im_end|>"}).json
    assert ([104, 105, 257], 3, 256) == (tokens["tokens"], tokens["count"], tokens["max_model_len"])
    plain = server.post("/tokenize", {"content": "hi<|im_end|>", "parse_special": False}).json
    assert list(b"hi<|im_end|>") == plain["tokens"]
    for path in ("/tokenize", "/apply-template", "/v1/chat/completions", "/v1/messages"):
        assert 400 == server.post(path, {"messages": [], "max_tokens": 5}).status, path
    pieces = server.post("/tokenize", {"content": "hi", "with_pieces": True}).json["tokens"]
    assert [{"id": 104, "piece": "h"}, {"id": 105, "piece": "i"}] == pieces
    chat = server.post("/tokenize", {"messages": HELLO["messages"]}).json
    assert 400 == server.post("/tokenize", {}).status
    text = server.post("/detokenize", {"tokens": chat["tokens"]}).json
    rendered = server.post("/apply-template", HELLO).json["prompt"]
    assert rendered == text["prompt"] == text["content"]
    assert "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" == rendered


def test_props_say_what_is_set(server) -> None:
    props = server.get("/props").json
    assert (32, CHATML) == (props["total_slots"], props["chat_template"])
    assert 256 == props["default_generation_settings"]["n_ctx"]


def test_the_description_has_every_route_and_the_shape_of_its_body(server) -> None:
    whole = server.get("/openapi.json").json
    operation = whole["paths"][CHAT]["post"]
    shape = operation["requestBody"]["content"]["application/json"]["schema"]
    name = shape["$ref"].rpartition("/")[2]
    assert "messages" in whole["components"]["schemas"][name]["required"]
    for path, operations in whole["paths"].items():
        for each in operations.values():
            names = [parameter["name"] for parameter in each.get("parameters", [])]
            assert names == re.findall(r"{(\w+)}", path)
    text = json.dumps(whole)
    for reference in set(text.split('"$ref": "')[1:]):
        part = reference.partition('"')[0].rpartition("/")[2]
        assert part in whole["components"]["schemas"]
    assert {"/v1/completions", "/completions", "/health", "/metrics"} <= set(whole["paths"])


def test_metrics_have_the_names_that_dashboards_know(server) -> None:
    server.post(CHAT, HELLO)
    server.wait_until(server.is_idle)
    text = server.get("/metrics").body.decode()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        'request_success_total{finished_reason="length"',
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket",
        "request_prefill_time_seconds_bucket",
        "request_decode_time_seconds_bucket",
    ):
        assert f"dure:{name}" in text
    assert 'model_name="fake"' in text
    assert 'le="640.0"' in text


def test_several_models_are_loaded_when_asked_for_and_the_least_used_leaves(serve) -> None:
    server = serve(reply("ok"), models=("one", "two"), max_loaded=1)
    assert {False} == {model["loaded"] for model in server.get("/v1/models").json["data"]}
    for name, loads in (("one", 1), ("one", 1), ("two", 2), ("one", 3)):
        answer = server.post(CHAT, {**HELLO, "model": name})
        assert (200, name, loads) == (answer.status, answer.json["model"], len(server.llms))
        loaded = [each["id"] for each in server.get("/v1/models").json["data"] if each["loaded"]]
        assert [name] == loaded
    assert 404 == server.post(CHAT, {**HELLO, "model": "three"}).status


def test_a_model_leaves_when_nobody_has_asked_for_it_as_long_as_it_is_kept(serve) -> None:
    server = serve(reply("ok"), models=("one", "two"), keep_alive=0.0)
    assert 200 == server.post(CHAT, {**HELLO, "model": "one"}).status
    server.wait_until(
        lambda: not any(each["loaded"] for each in server.get("/v1/models").json["data"])
    )
    assert 200 == server.post(CHAT, {**HELLO, "model": "one"}).status


def test_a_model_that_answers_is_not_unloaded_for_another(serve) -> None:
    server = serve(reply("a long answer " * 10), models=("one", "two"))
    stream = server.send(CHAT, {**HELLO, "model": "one", "stream": True, "max_tokens": 100})
    other = server.post(CHAT, {**HELLO, "model": "two"})
    assert 200 == other.status
    received = b""
    while b"[DONE]" not in received:
        received += stream.recv(65536)
    stream.close()
    assert b"error" not in received


def test_a_model_that_does_not_load_is_that_requests_error(serve) -> None:
    def make(name: str) -> LLM:
        raise NotEnoughMemoryError(f"{name} needs 900 GB of memory.")

    server = serve(make=make, models=("one", "two"))
    answer = server.post(CHAT, {**HELLO, "model": "two"})
    assert (503, "model_unavailable") == (answer.status, answer.json["error"]["code"])
    assert "900 GB" in answer.json["error"]["message"]
    assert 200 == server.get("/health").status


def test_without_models_those_of_this_machine_are_served_and_no_path_is(serve, monkeypatch) -> None:
    monkeypatch.setattr(dure.server.run, "is_local", lambda name: name == "here:1b")
    server = serve(reply("ok"), models=())
    assert 200 == server.post(CHAT, {**HELLO, "model": "here:1b"}).status
    assert 404 == server.post(CHAT, {**HELLO, "model": "elsewhere:1b"}).status
    assert 400 == serve(reply("ok"), models=()).post(CHAT, HELLO).status


@pytest.mark.parametrize("name", ["/etc/passwd", "./model.gguf", "~/model.gguf", "../x", "a//b"])
def test_a_client_names_no_files(name) -> None:
    assert not dure.server.run.is_local(name)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("/models/Qwen3-0.6B-Q4_K_M.gguf", "Qwen3-0.6B-Q4_K_M"),
        ("/models/folder/", "folder"),
        ("qwen3:0.6b", "qwen3:0.6b"),
        ("org/repo:Q4_K_M", "org/repo:Q4_K_M"),
    ],
)
def test_a_path_is_served_by_its_last_part(given, name) -> None:
    assert name == dure.server.run.shown(given)
