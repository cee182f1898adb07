"""Chat completions: the shapes that OpenAI's clients read, whole and streamed."""

from __future__ import annotations

import json

from fake_model import ScriptModel, reply
from stepped import ROOMY, Stepped


def test_a_chat_has_a_reply_in_openais_form(serve) -> None:
    server = serve(reply("hello there"))
    answer = server.chat("hi")
    body = answer.json
    assert (200, "application/json") == (answer.status, answer.headers["content-type"])
    assert ("chat.completion", "fake") == (body["object"], body["model"])
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert {"role": "assistant", "content": "hello there"} == choice["message"]
    assert (0, "stop", None) == (choice["index"], choice["finish_reason"], choice["logprobs"])
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len("hello there") + 1  # its end is a token, too
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    timings = body["timings"]
    assert timings["predicted_n"] == usage["completion_tokens"]
    assert timings["prompt_n"] == usage["prompt_tokens"]


def test_a_stream_has_the_same_words_and_ends_with_done(serve) -> None:
    server = serve(reply("hello there"))
    answer = server.chat("hi", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = answer.events
    assert last == "[DONE]"
    assert {"role": "assistant", "content": ""} == chunks[0]["choices"][0]["delta"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "hello there" == "".join(delta.get("content", "") for delta in deltas)
    assert [None] * (len(chunks) - 1) + ["stop"] == [
        chunk["choices"][0]["finish_reason"] for chunk in chunks
    ]
    assert "timings" in chunks[-1]
    assert {"chat.completion.chunk"} == {chunk["object"] for chunk in chunks}
    assert 1 == len({chunk["id"] for chunk in chunks})


def test_usage_comes_in_a_last_chunk_without_choices_if_asked_for(serve) -> None:
    server = serve(reply("ok"))
    answer = server.chat("hi", stream=True, stream_options={"include_usage": True})
    *_, usage, done = answer.events
    assert ([], "[DONE]") == (usage["choices"], done)
    assert usage["usage"]["completion_tokens"] == 3
    assert all("usage" not in each for each in answer.events[:-2])


def test_usage_and_timings_come_with_every_event_if_asked_for(serve) -> None:
    server = serve(reply("<think>no</think>ok"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.chat("hi", stream=True, timings_per_token=True, stream_options=options).events
    *told, total = [event for event in events if "usage" in event]
    written = [event["usage"]["completion_tokens"] for event in told]
    assert written == sorted(written)
    assert len(set(written)) > 2  # while it is written, not at its end only
    assert [event["timings"]["predicted_n"] for event in told] == written
    assert told[-1]["usage"] == total["usage"]


def test_n_gives_as_many_choices(serve) -> None:
    server = serve(reply("ok"))
    body = server.chat("hi", n=3).json
    assert [0, 1, 2] == [choice["index"] for choice in body["choices"]]
    assert {"ok"} == {choice["message"]["content"] for choice in body["choices"]}
    assert 9 == body["usage"]["completion_tokens"]
    one = server.chat("hi").json["usage"]
    assert one["prompt_tokens"] == body["usage"]["prompt_tokens"]  # the prompt is read once
    events = server.chat("hi", n=3, stream=True).events[:-1]
    texts = ["", "", ""]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert ["ok"] * 3 == texts


def test_logprobs_name_each_token_and_its_rivals(serve) -> None:
    server = serve(reply("ok"))
    [choice] = server.chat("hi", logprobs=True, top_logprobs=2).json["choices"]
    first = choice["logprobs"]["content"][0]
    assert ("o", [111], 2) == (first["token"], first["bytes"], len(first["top_logprobs"]))
    assert first["logprob"] == first["top_logprobs"][0]["logprob"] <= 0
    streamed = server.chat("hi", stream=True, logprobs=True, top_logprobs=2).events[:-1]
    entries = [
        entry
        for event in streamed
        for entry in (event["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert choice["logprobs"]["content"] == entries


def test_a_stop_string_ends_the_reply(serve) -> None:
    server = serve(reply("one two three"))
    [choice] = server.chat("count", stop=" two").json["choices"]
    assert ("one", "stop") == (choice["message"]["content"], choice["finish_reason"])


def test_max_tokens_and_max_completion_tokens_end_the_reply(serve) -> None:
    server = serve(reply("one two three"))
    for name in ("max_tokens", "max_completion_tokens"):
        [choice] = server.chat("count", **{name: 3}).json["choices"]
        assert ("one", "length") == (choice["message"]["content"], choice["finish_reason"])


def test_progress_of_the_prompt_is_told_before_the_first_token(serve) -> None:
    model = Stepped(reply("ok"))
    server = serve(model, model_options=ROOMY)
    model.let(3)  # the tokens of the reply, and its end
    server.chat("x" * 64)
    asked = {"messages": [{"role": "user", "content": "x" * 64 + "y" * 1200}]}
    received = b""
    with server.send(
        "/v1/chat/completions", {**asked, "stream": True, "return_progress": True}
    ) as connection:
        for told in range(1, 4):
            while received.count(b'"prompt_progress"') < told:
                received += connection.recv(65536)
            model.let(1)
        model.let()
        while b"[DONE]" not in received:
            received += connection.recv(65536)
    entries = [
        json.loads(line.removeprefix("data: "))["prompt_progress"]
        for line in received.decode().splitlines()
        if "prompt_progress" in line
    ]
    processed = [entry["processed"] for entry in entries]
    steps = [entries[-1]["cache"] + 512 * count for count in (1, 2)]
    assert [0, *steps, entries[-1]["total"]] == processed
    assert {1200 < entry["total"] < 1400 for entry in entries} == {True}
    assert entries[-1]["cache"] >= 64


def test_a_second_turn_says_what_was_found_in_the_cache(serve) -> None:
    server = serve(reply("ok"))
    server.chat("a long story " * 5)
    usage = server.chat("a long story " * 5).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_the_same_seed_gives_the_same_reply_and_every_sampling_parameter_is_taken(serve) -> None:
    server = serve(reply("ok"))
    options = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {"111": 1.5},
        "seed": 7,
        "stop_token_ids": [3],
        "ignore_eos": False,
        "user": "somebody",
        "store": False,
        "metadata": {"a": "b"},
        "an_unknown_field": [1, 2],
    }
    first, second = (server.chat("hi", **options).json["choices"] for _ in range(2))
    assert first == second


def test_every_path_is_there_with_and_without_v1(serve) -> None:
    server = serve(reply("ok"))
    messages = {"messages": [{"role": "user", "content": "hi"}]}
    assert 200 == server.post("/chat/completions", messages).status
    assert 200 == server.get("/models").status == server.get("/v1/models").status
    assert 200 == server.get("/health").status == server.get("/v1/health").status


def test_only_tools_that_are_allowed_may_be_called(serve) -> None:
    words = '```json\n{"name": "now", "arguments": {}}\n```'
    source = "<tool_call> arguments{% for m in messages %}:{{ m.content }}{% endfor %}"

    def call(text: str) -> str | None:
        said = text.rpartition(":abc")[2]
        return words[len(said)] if len(said) < len(words) else None

    options = {"template": source, "context": 4096, "num_blocks": 200}
    server = serve(ScriptModel(call, context_length=4096), model_options=options)
    tools = [{"type": "function", "function": {"name": name}} for name in ("now", "later")]

    def called(name: str) -> str:
        listed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": name}}]}
        choice = {"type": "allowed_tools", "allowed_tools": listed}
        answer = server.chat("abc", tools=tools, tool_choice=choice)
        assert answer.status == 200, answer.json
        return answer.json["choices"][0]["finish_reason"]

    assert "tool_calls" == called("now")
    assert "stop" == called("later")
