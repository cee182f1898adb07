"""Completions: what an evaluation harness and an editor ask for."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import ByteTokenizer, ScriptModel, alphabet

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(alphabet)


def test_a_text_is_continued(server) -> None:
    body = server.post(PATH, {"prompt": "uvw"}).json
    assert ("text_completion", "fake") == (body["object"], body["model"])
    assert body["id"].startswith("cmpl-")
    [choice] = body["choices"]
    assert ("xyz", "stop", None) == (choice["text"], choice["finish_reason"], choice["logprobs"])
    assert (3, 4) == (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])


def test_sixteen_tokens_are_the_default(server) -> None:
    [choice] = server.post(PATH, {"prompt": "a"}).json["choices"]
    assert ("bcdefghijklmnopq", "length") == (choice["text"], choice["finish_reason"])
    [choice] = server.post(PATH, {"prompt": "a", "max_tokens": -1}).json["choices"]
    assert ("bcdefghijklmnopqrstuvwxyz", "stop") == (choice["text"], choice["finish_reason"])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("x", ["yz"]),
        ([ord("x")], ["yz"]),
        (["x", "y"], ["yz", "z"]),
        ([[ord("x")], [ord("w"), ord("y")]], ["yz", "z"]),
    ],
)
def test_prompts_are_texts_or_token_ids_one_or_several(server, prompt, texts) -> None:
    body = server.post(PATH, {"prompt": prompt}).json
    assert texts == [choice["text"] for choice in body["choices"]]
    assert list(range(len(texts))) == [choice["index"] for choice in body["choices"]]
    events = server.post(PATH, {"prompt": prompt, "stream": True}).events
    assert "[DONE]" == events.pop()
    streamed = [""] * len(texts)
    for event in events:
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert texts == streamed


def test_min_tokens_keeps_the_end_away(server) -> None:
    [choice] = server.post(PATH, {"prompt": "x", "min_tokens": 9, "seed": 1}).json["choices"]
    assert choice["text"].startswith("yz")
    assert len(choice["text"].encode()) > 5


def test_n_answers_a_prompt_are_numbered_prompt_by_prompt(server) -> None:
    body = server.post(PATH, {"prompt": ["x", "y"], "n": 2}).json
    assert ["yz", "yz", "z", "z"] == [choice["text"] for choice in body["choices"]]
    usage = body["usage"]
    assert (2, 10, 12) == tuple(
        usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )


def test_a_stream_says_timings_with_every_token_if_asked_for(server) -> None:
    *events, _ = server.post(
        PATH, {"prompt": "w", "stream": True, "timings_per_token": True}
    ).events
    assert [1, 2, 3, 4] == [event["timings"]["predicted_n"] for event in events]
    *events, _ = server.post(PATH, {"prompt": "w", "stream": True}).events
    assert [False, False, False, True] == ["timings" in event for event in events]


def test_echo_with_logprobs_scores_the_prompt_as_a_harness_reads_it(server) -> None:
    asked = {"prompt": "abx", "echo": True, "logprobs": 1, "max_tokens": 1}
    [choice] = server.post(PATH, asked).json["choices"]
    assert "abxy" == choice["text"]
    logprobs = choice["logprobs"]
    assert ["a", "b", "x", "y"] == logprobs["tokens"]
    assert [0, 1, 2, 3] == logprobs["text_offset"]
    assert [None] == logprobs["token_logprobs"][:1]
    assert [None] == logprobs["top_logprobs"][:1]
    # The script says b after a, and c, not x, after b: its logit is 30 of 259.
    likely, unlikely = -np.log1p(258 * np.exp(-30.0)), -30.0 - np.log1p(258 * np.exp(-30.0))
    assert logprobs["token_logprobs"][1:] == pytest.approx([likely, unlikely, likely], abs=1e-5)
    assert {"c", "x"} == set(logprobs["top_logprobs"][2])
    greedy = [
        token == max(top, key=top.get)
        for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True)
    ]
    assert [True, False, True] == greedy


def test_echo_alone_of_nothing_more_gives_the_prompt(server) -> None:
    asked = {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0}
    body = server.post(PATH, asked).json
    [choice] = body["choices"]
    assert ("abc", ["a", "b", "c"]) == (choice["text"], choice["logprobs"]["tokens"])
    assert 3 == len(choice["logprobs"]["token_logprobs"])
    assert 0 == body["usage"]["completion_tokens"]
    assert 400 == server.post(PATH, {"prompt": "abc", "max_tokens": 0}).status


def test_scoring_a_prompt_that_is_cached_gives_the_same_numbers(server) -> None:
    asked = {"prompt": "score me twice", "echo": True, "logprobs": 2, "max_tokens": 1}
    first, second = (server.post(PATH, asked).json["choices"] for _ in range(2))
    assert first == second


def test_logprobs_of_a_stream_are_those_of_the_whole(server) -> None:
    asked = {"prompt": "x", "logprobs": 2}
    [whole] = server.post(PATH, asked).json["choices"]
    events = server.post(PATH, {**asked, "stream": True}).events[:-1]
    tokens, values = [], []
    for event in events:
        part = event["choices"][0]["logprobs"]
        tokens += part["tokens"]
        values += part["token_logprobs"]
    assert (whole["logprobs"]["tokens"], whole["logprobs"]["token_logprobs"]) == (tokens, values)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt is missing"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [99999]}, "Token id 99999"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs must be at most 20"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "128 answers"),
        ({"prompt": "a", "suffix": "b"}, "no tokens for filling in the middle"),
        ({"prompt": [1], "suffix": "b"}, "prompt that is text"),
    ],
)
def test_what_cannot_be_completed_is_said(server, body, says) -> None:
    answer = server.post(PATH, body)
    assert 400 == answer.status
    assert says in answer.json["error"]["message"]


def test_a_suffix_is_asked_for_with_the_models_own_marks(serve, monkeypatch) -> None:
    marks = {"<|fim_prefix|>": 256, "<|fim_suffix|>": 257, "<|fim_middle|>": 258}
    asked: list[list[int]] = []

    class Marked(ByteTokenizer):
        def token_id(self, text):
            return marks.get(text)

        def encode(self, text, *, add_special=True, parse_special=True):
            if parse_special and text in marks:
                return [marks[text]]
            return super().encode(text, parse_special=False)

    class Model(ScriptModel):
        def forward(self, batch, cache):
            asked.append(batch.tokens.tolist())
            return super().forward(batch, cache)

    monkeypatch.setattr("fake_model.ByteTokenizer", Marked)
    server = serve(Model(lambda text: None), model_options={"template": None})
    answer = server.post(PATH, {"prompt": "def <|fim_suffix|>", "suffix": "end"})
    assert 200 == answer.status
    prefix, suffix = [*b"def <|fim_suffix|>"], [*b"end"]
    assert [256, *prefix, 257, *suffix, 258] == asked[0]


def test_a_stream_echoes_the_prompts_log_probabilities_as_an_answer_does(server) -> None:
    body = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2}
    [whole] = server.post("/v1/completions", body).json["choices"]
    *events, done = server.post("/v1/completions", {**body, "stream": True}).events
    parts = [event["choices"][0] for event in events]
    assert done == "[DONE]"
    assert "".join(part["text"] for part in parts) == whole["text"]
    scored = [part["logprobs"] for part in parts if part["logprobs"]]
    for field in ("tokens", "token_logprobs"):
        assert [each for part in scored for each in part[field]] == whole["logprobs"][field]
