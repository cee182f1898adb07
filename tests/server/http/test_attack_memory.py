"""What is not admitted yet: converted on threads, bounded in memory, refused before it costs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from apis import APIS
from fake_model import ByteTokenizer, reply

from dure.server import limits
from dure.server.anthropic import messages as anthropic_messages
from dure.server.errors import HTTPError
from dure.server.http.sse import json_text
from dure.server.ollama import request as ollama_request
from dure.server.openai import chat as openai_chat
from dure.server.openai import completions, responses
from dure.server.wire.budget import Budget, HeldBody
from dure.server.wire.json_size import json_size

CHAT = "/v1/chat/completions"
LONG = "a" * 200_000  # of a context of 256 tokens, one for each byte


@pytest.mark.parametrize("path", [*APIS, "/v1/messages/count_tokens", "/v1/responses/input_tokens"])
def test_a_text_beyond_the_context_is_refused_before_all_of_it_is_tokenised(
    serve_module, monkeypatch, path
) -> None:
    longest: list[int] = [0]
    real = ByteTokenizer.encode

    def encode(self: ByteTokenizer, text: str, **options: Any) -> list[int]:
        longest[0] = max(longest[0], len(text))
        return real(self, text, **options)

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    make = APIS.get(path) or APIS["/v1/responses" if "responses" in path else "/v1/messages"]
    answer = serve_module(reply("ok")).post(path, make(LONG))
    assert answer.status == 400
    assert "at least" in answer.body.decode()
    assert "256" in answer.body.decode()
    assert longest[0] < len(LONG) / 2


def test_a_gap_in_a_text_beyond_the_context_is_refused(serve_module) -> None:
    server = serve_module(reply("ok"))
    for path in ("/v1/completions", "/api/generate"):
        answer = server.post(path, {"model": "fake", "prompt": LONG, "suffix": "b"})
        assert answer.status == 400
        assert "at least" in answer.body.decode()


def test_a_text_of_white_space_is_refused_by_its_characters(serve_module) -> None:
    server = serve_module(reply("ok"))
    answer = server.post("/tokenize", {"prompt": " " * (limits.MAX_BODY_BYTES // 2)})
    assert answer.status == 400
    assert "524,288" in answer.json["error"]["message"]
    short = server.post("/tokenize", {"prompt": "a" * 300_000})
    assert short.json["count"] == 300_000


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        (CHAT, openai_chat, "chat_request"),
        ("/v1/completions", completions, "completion_params"),
        ("/v1/messages", anthropic_messages, "chat_request"),
        ("/v1/responses", responses, "chat_request"),
        ("/api/chat", ollama_request, "chat_request"),
        ("/api/generate", ollama_request, "check_generate"),
    ],
)
def test_a_large_body_is_converted_on_a_thread_and_a_small_one_at_once(
    serve_module, monkeypatch, path, module, name
) -> None:
    server = serve_module(reply("ok"))
    seen: list[threading.Thread] = []
    real = getattr(module, name)

    def watched(*arguments: Any) -> Any:
        seen.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(module, name, watched)
    server.post(path, APIS[path]("hi", metadata={}))
    server.post(path, APIS[path]("hi", pad="x" * limits.INLINE_BODY_BYTES))
    assert [each is server.thread for each in seen] == [True, False]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"x": {f"k{i}": 1 for i in range(limits.MAX_JSON_KEYS + 1)}}, "keys"),
        ({"x": "\n" * (limits.MAX_JSON_ESCAPES + 1)}, "escaped characters"),
        ({"logit_bias": {str(i): "x" for i in range(30_000)}}, "logit_bias has 30000 entries"),
        ({"stop": ["x"] * 30_000}, "stop"),
        ({"messages": [{"role": "user", "content": "x"}] * 5000}, "messages has"),
        ({"messages": [{}] * 20_000}, "role is missing"),
        ({"tools": [{}] * 20_000}, "tools has"),
        ({f"f{i}": 1 for i in range(200)}, "200 fields"),
    ],
)
def test_a_body_of_too_much_work_is_refused_in_a_sentence(serve_module, more, words) -> None:
    answer = serve_module(reply("ok")).chat("hi", **more) if "messages" not in more else None
    answer = answer or serve_module(reply("ok")).post(CHAT, more)
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


def test_metadata_of_a_response_is_bounded(serve_module) -> None:
    server = serve_module(reply("ok"))
    for metadata in ({"a": "x" * 513}, {"a" * 65: "x"}, {str(i): "x" for i in range(17)}):
        answer = server.post("/v1/responses", {"input": "hi", "metadata": metadata})
        assert answer.status == 400
        assert "metadata" in answer.json["error"]["message"]


@pytest.mark.parametrize("slashes", [*range(6), 262_143, 262_144, 262_145, 600_000])
def test_escapes_at_the_end_of_a_block_are_not_divided(slashes) -> None:
    pad = "x" * ((1 << 18) - 10)
    text = '{"p": "' + pad + "\\\\" * slashes + '\\"[[[{,:", "a": [1, {"b": 2}]}'
    found = json_size(text.encode())
    assert (found.depth, found.values, found.keys) == (3, 6, 3)
    assert found.escapes == 2 * slashes + 1
    assert json.loads(text)["a"] == [1, {"b": 2}]


def test_bounds_of_a_small_body_are_never_too_low() -> None:
    text = b'{"a": [1, 2, {"b": ["c", "d,[:"]}]}'
    found = json_size(text)
    assert found.values >= 7
    assert found.keys >= 2


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_bodies_wait_for_their_turn_in_a_budget_in_the_order_of_their_coming() -> None:
    async def test() -> None:
        budget, order = Budget(100), []

        async def take(name: str, cost: int) -> None:
            await budget.take(cost)
            order.append(name)

        await take("a", 60)
        waiting = [asyncio.create_task(take(name, 50)) for name in "bc"]
        waiting.append(asyncio.create_task(take("d", 10)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["a"]  # d would fit, and does not pass b
        budget.give(60)
        await asyncio.gather(*waiting[:2])
        assert (order, budget.used) == (["a", "b", "c"], 100)
        budget.give(50)
        await waiting[2]
        assert budget.used == 60

    run(test)


def test_who_leaves_while_it_waits_holds_up_nobody() -> None:
    async def test() -> None:
        budget = Budget(100)
        await budget.take(60)
        first = asyncio.create_task(budget.take(90))
        second = asyncio.create_task(budget.take(30))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert budget.used == 90
        budget.give(60)
        budget.give(30)
        assert budget.used == 0

    run(test)


def test_a_body_larger_than_the_budget_goes_alone() -> None:
    async def test() -> None:
        budget = Budget(100)
        held = HeldBody(budget, is_large=True)
        await held.reserve(500)
        waiting = asyncio.create_task(budget.take(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        held.release()
        held.release()
        await waiting
        assert budget.used == 1

    run(test)


def test_who_waits_too_long_is_told_to_try_again(monkeypatch) -> None:
    monkeypatch.setattr(limits, "PREPARE_SECONDS", 0.0)

    async def test() -> None:
        budget = Budget(100)
        await budget.take(100)
        with pytest.raises(HTTPError, match="Try again later") as refused:
            await budget.take(1)
        assert refused.value.status == 503
        budget.give(100)
        assert budget.used == 0

    run(test)


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("pad", [0, limits.INLINE_BODY_BYTES])
def test_a_body_counts_until_its_request_is_admitted_or_refused(serve_module, path, pad) -> None:
    server = serve_module(reply("ok"))
    bodies = server.server.bodies
    for more in ({}, {"frequency_penalti": 1}, {"x": [[]] * 200_000}):
        server.post(path, APIS[path]("hi", pad="x" * pad, **more))
    assert (bodies.bytes, bodies.small.used, bodies.large.used) == (0, 0, 0)


def test_unknown_fields_are_dropped_once_they_are_read(serve_module, monkeypatch) -> None:
    kept: list[Any] = []

    def chat_request(body: Any) -> Any:
        kept.append(body)
        return openai_chat.ChatRequest([{"role": "user", "content": "hi"}])

    monkeypatch.setattr(openai_chat, "chat_request", chat_request)
    assert serve_module(reply("ok")).chat("hi", metadata={"a": "x" * 1000}).status == 200
    assert kept[0].model_extra == {}


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": [1] * 5000, "b": [{"c": [None] * 2000}, 7, []], "d": {"é": "\u2028", "f": [[]]}},
        [{"a": float(i)} for i in range(3000)],
        {1: [2] * 3000},
        "x",
    ],
)
def test_json_in_pieces_is_the_same_json(value) -> None:
    assert json_text(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_log_probabilities_of_many_tokens_are_written_on_a_thread(
    serve_module, monkeypatch, path
) -> None:
    server = serve_module()
    seen: list[threading.Thread] = []
    module = openai_chat if path == CHAT else completions
    name = "chat_logprobs" if path == CHAT else "completion_logprobs"
    real = getattr(module, name)

    def watched(*arguments: Any) -> Any:
        seen.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(module, name, watched)
    for most, on_loop in ((512, True), (8, False)):
        monkeypatch.setattr(limits, "INLINE_TOKENS", most)
        asked = APIS[path]("hi", logprobs=True if path == CHAT else 1, max_tokens=20)
        answer = server.post(path, asked)
        assert answer.status == 200
        assert answer.json["choices"][0]["logprobs"]
        assert (seen[-1] is server.thread) == on_loop
