"""Fields of other servers: taken, refused by name, or neutral; near-misses are named."""

from __future__ import annotations

import codecs
import json

import pytest
from fake_model import ScriptModel, reply
from stepped import ROOMY, endless

from dure.server.wire.fields import FOREIGN
from dure.server.wire.logprobs import TextOffset

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
BODIES = {
    CHAT: HELLO,
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"model": "fake", "max_tokens": 5, **HELLO},
    "/v1/responses": {"input": "hi"},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("typical_p", 0.5),
        ("samplers", ["top_k"]),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("best_of", 3),
        ("dynatemp_range", 0.4),
        ("transforms", ["middle-out"]),
        ("do_sample", False),
        ("mirostat", 2),
        ("no_repeat_ngram_size", 3),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused(serve_module, path, field, value) -> None:
    answer = serve_module(reply("ok")).post(path, {**BODIES[path], field: value})
    assert answer.status == 400
    assert field in answer.body.decode()


def test_neutral_values_of_every_field_are_taken(serve_module) -> None:
    server = serve_module(reply("ok"))
    for name, field in FOREIGN.items():
        for value in (*field.neutral, None, "", [], {}):
            answer = server.chat("hi", **{name: value})
            assert answer.status == 200, (name, value, answer.body)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_how_llama_server_may_draft_is_passed_over(serve_module, path) -> None:
    server = serve_module(reply("ok"))
    plain = server.post(path, BODIES[path]).json["choices"]
    fields = {"speculative.n_max": 0, "speculative.n_min": 2, "speculative.p_min": 0.75}
    answer = server.post(path, {**BODIES[path], **fields})
    assert (answer.status, answer.json["choices"]) == (200, plain)


@pytest.mark.parametrize("name", ["n_predict", "max_new_tokens", "num_predict", "max_tokens"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_every_word_for_max_tokens_is_understood(serve_module, path, name) -> None:
    answer = serve_module(reply("o" * 50)).post(path, {**BODIES[path], name: 3, "ignore_eos": True})
    assert answer.json["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("wrong", "right"), [("strem", "stream"), ("temprature", "temperature")])
def test_a_near_miss_is_named(serve_module, path, wrong, right) -> None:
    answer = serve_module(reply("ok")).post(path, {**BODIES[path], wrong: 1})
    assert answer.status == 400
    assert wrong in answer.body.decode()
    assert f'"{right}"' in json.loads(answer.body)["error"]["message"]


def test_unknown_fields_of_clients_are_passed_over(serve_module) -> None:
    more = {"user": "me", "metadata": {"a": "b"}, "safety_identifier": "x", "store": False}
    more |= {"prompt_cache_key": "k", "session_id": "s", "models": ["x"], "provider": {"a": 1}}
    assert serve_module(reply("ok")).chat("hi", **more).status == 200


@pytest.mark.parametrize(
    ("path", "body", "right"),
    [
        ("/api/chat", {"model": "fake", "messages": HELLO["messages"], "strem": True}, "stream"),
        ("/api/chat", {"model": "fake", **HELLO, "options": {"temprature": 1}}, "temperature"),
        ("/api/generate", {"model": "fake", "prompt": "hi", "formats": "json"}, "format"),
        ("/api/show", {"model": "fake", "modell": "x"}, "model"),
        ("/api/embed", {"model": "fake", "input": "hi", "truncat": True}, "truncate"),
        ("/v1/embeddings", {"input": "hi", "dimension": 3}, "dimensions"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "querys": "c"}, "query"),
        ("/v1/messages/count_tokens", {"model": "fake", **HELLO, "toolss": []}, "tools"),
        ("/v1/responses/input_tokens", {"input": "hi", "instruction": "x"}, "instructions"),
        ("/tokenize", {"prompt": "hi", "promt": "x"}, "prompt"),
        ("/detokenize", {"tokens": [1], "tokns": [2]}, "tokens"),
        ("/apply-template", {**HELLO, "mesages": []}, "messages"),
        (
            "/v1/chat/completions/control",
            {"id": "a", "action": "reasoning_end", "acton": 1},
            "action",
        ),
    ],
)
def test_a_near_miss_is_named_on_every_path(serve_module, path, body, right) -> None:
    answer = serve_module(reply("ok")).post(path, body)
    assert answer.status == 400
    assert f'"{right}" is' in json.dumps(answer.json, ensure_ascii=False).replace("\\", "")


@pytest.mark.parametrize("path", BODIES)
def test_what_has_no_effect_is_named_in_a_header_and_in_the_log(serve_module, path, caplog) -> None:
    server = serve_module(reply("ok"))
    caplog.set_level("INFO", "dure.server")
    body = {**BODIES[path], "session_id": "s", "x\r\ny": 1, "user_id": "harmless"}
    for stream in (False, True):
        answer = server.post(path, {**body, "stream": stream})
        assert answer.status == 200
        assert answer.headers["x-dure-ignored"] == "session_id, x??y"
    assert "no effect of session_id, x??y" in caplog.text
    refused = server.post(path, {**body, "typical_p": 0.5})
    assert (refused.status, refused.headers["x-dure-ignored"]) == (400, "session_id, x??y")
    assert "x-dure-ignored" not in server.post(path, BODIES[path]).headers


def test_a_field_without_a_name_is_named_too(serve_module) -> None:
    answer = serve_module(reply("ok")).post("/api/chat", {"model": "fake", **HELLO, "0": 1, "": 1})
    assert answer.status == 200
    assert answer.headers["x-dure-ignored"] == '0, ""'
    options = {"model": "fake", **HELLO, "options": {"": 1}}
    answer = serve_module(reply("ok")).post("/api/chat", options)
    assert answer.headers["x-dure-ignored"] == 'options.""'


def test_what_has_no_effect_among_ollamas_options_is_named(serve_module) -> None:
    body = {"model": "fake", **HELLO, "stream": False, "options": {"low_vram": True, "zeta": 1}}
    answer = serve_module(reply("ok")).post("/api/chat", body)
    assert "options.zeta" in answer.headers["x-dure-ignored"].split(", ")


def test_repeat_last_n_is_refused_where_a_penalty_uses_it(serve_module) -> None:
    server = serve_module(reply("ok"))
    assert server.chat("hi", repeat_last_n=64).status == 200
    assert server.chat("hi", repeat_last_n=-1, repeat_penalty=1.1).status == 200
    assert server.chat("hi", repeat_last_n=64, repeat_penalty=1.1).status == 400


@pytest.mark.parametrize("text", ["aä€😀b", "😀😀", "plain"])
def test_text_offsets_count_whole_characters(text) -> None:
    at, raw = TextOffset(), text.encode()
    found = [at.push(raw[i : i + 1]) for i in range(len(raw))]
    decoder = codecs.getincrementaldecoder("utf-8")()
    expected = [0]
    for i in range(len(raw)):
        expected.append(expected[-1] + len(decoder.decode(raw[i : i + 1])))
    assert found == expected[:-1]


def test_text_offsets_of_a_stream_are_those_of_the_whole(serve_module) -> None:
    server = serve_module(endless)
    body = {"prompt": "aé€😀b", "max_tokens": 3, "logprobs": 0, "echo": True}
    whole = server.post("/v1/completions", body).json["choices"][0]["logprobs"]["text_offset"]
    events = server.post("/v1/completions", {**body, "stream": True}).events
    chunks = [each["choices"][0]["logprobs"] for each in events if each != "[DONE]"]
    assert whole == [offset for each in chunks if each for offset in each["text_offset"]]
    assert whole[-1] >= 5  # after the prompt's five characters


def test_the_last_progress_is_the_whole_prompt(serve_module) -> None:
    events = serve_module(reply("ok")).chat("hi", stream=True, return_progress=True).events
    seen = [each["prompt_progress"] for each in events if "prompt_progress" in each]
    assert seen[-1]["processed"] == seen[-1]["total"]


def test_tools_that_are_no_functions_do_not_end_a_response(serve) -> None:
    tools = [
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "local_shell"},
        {"type": "web_search"},
        {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}},
    ]
    history = [
        {"role": "user", "content": "hi"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {"role": "user", "content": "go on"},
    ]
    server = serve(ScriptModel(reply("ok"), context_length=4096), model_options=ROOMY)
    answer = server.post("/v1/responses", {"input": history, "tools": tools})
    assert answer.status == 200, answer.body
