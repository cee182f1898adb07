"""A model with replicas behind one address: one queue, one set of counts, and what each did."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from fake_model import SharedModel, loaded, reply
from lost_runner import Loss, Wild

import dure.llm
from dure import LLM

CHAT = "/v1/chat/completions"


@pytest.fixture
def two(serve, monkeypatch):
    """A function that serves two replicas of a script."""

    def start(script, **options):
        model = script if isinstance(script, SharedModel) else SharedModel(script)
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model))
        make = lambda name: LLM(name, max_sequences=2, speculate="off", replicas=2)  # noqa: E731
        return serve(make=make, **options)

    return start


def metric(server, name: str) -> dict[str, float]:
    """The values of a metric, by replica; of the whole model by ""."""
    found = {}
    for line in server.get("/metrics").body.decode().splitlines():
        if line.startswith(f"dure:{name}{{"):
            replica = re.search(r'replica="(\d+)"', line)
            found[replica[1] if replica else ""] = float(line.rpartition(" ")[2])
    return found


def test_a_conversation_stays_where_it_is_cached_and_each_replica_tells_what_it_did(two) -> None:
    server = two(reply("ok"))
    messages = [{"role": "user", "content": "x" * 99}]
    for _ in range(3):
        answer = server.post(CHAT, {"messages": messages}).json["choices"][0]["message"]
        messages += [answer, {"role": "user", "content": "y"}]
    other = server.chat("z" * 99).json
    assert other["choices"][0]["message"]["content"] == "ok"
    written = metric(server, "replica_generation_tokens_total")
    assert written == {"1": 9.0, "2": 3.0}
    cached = metric(server, "replica_cached_tokens_total")
    assert cached["1"] > 200 and cached["2"] < 30
    assert metric(server, "replica_up") == {"1": 1.0, "2": 1.0}
    assert metric(server, "num_requests_running") == {"": 0.0}
    [model] = server.get("/v1/status").json["models"]
    assert [each["output_tokens"] for each in model["replicas"]] == [9, 3]
    assert model["cache"]["blocks"] == 128


class Held(SharedModel):
    """A model whose passes wait until they may go on."""

    def __init__(self, script: Any) -> None:
        super().__init__(script)
        self.may = threading.Event()

    def forward(self, batch: Any, cache: Any) -> Any:
        assert self.may.wait(60)
        return super().forward(batch, cache)


def test_the_queue_is_that_of_all_replicas_and_who_leaves_makes_room(two) -> None:
    model = Held(reply("ok"))
    server = two(model, parallel=4, queue=1)
    service = server.server.service
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    sent = [server.send(CHAT, body) for _ in range(5)]
    server.wait_until(lambda: service.num_active == 5)
    assert server.chat("hi").status == 429
    sent.pop().close()
    server.wait_until(lambda: service.num_active == 4)
    sent.append(server.send(CHAT, body))
    server.wait_until(lambda: service.num_active == 5)
    model.may.set()
    for each in sent:
        assert b" 200 " in each.recv(65536)
    server.wait_until(server.is_idle)
    written = metric(server, "replica_generation_tokens_total")
    assert written["1"] + written["2"] >= 12 and min(written.values()) > 0


SEEDED = {"temperature": 1, "seed": 5, "max_tokens": 60, "logprobs": True, "ignore_eos": True}


def pieces(answer) -> tuple[str, list]:
    """The text of a stream, and each token with its float."""
    choices = [choice for event in answer.events[:-1] for choice in event["choices"]]
    told = [token for each in choices for token in (each.get("logprobs") or {}).get("content", ())]
    text = "".join(each["delta"].get("content") or "" for each in choices)
    return text, [(token["token"], token["logprob"]) for token in told]


def test_a_stream_of_a_replica_that_is_lost_goes_on_and_counts_once(two) -> None:
    server = two(Wild())
    engines = [driver.engine for driver in server.llm.driver.drivers]
    expected = pieces(server.chat("hi" * 30, stream=True, **SEEDED))
    loss = Loss(engines[0].runner, after=9)  # which has the prompt
    assert pieces(server.chat("hi" * 30, stream=True, **SEEDED)) == expected
    assert metric(server, "replica_up") == {"1": 0.0, "2": 1.0}
    assert metric(server, "replica_taken_over_total") == {"1": 0.0, "2": 1.0}
    assert sum(metric(server, "request_success_total").values()) == 2
    assert metric(server, "generation_tokens_total") == {"": 120.0}
    for _ in range(3):
        assert server.chat("yo", **SEEDED).status == 200
    assert loss.attempts == 1
    server.wait_until(server.is_idle)


def test_who_leaves_after_the_loss_makes_room(two) -> None:
    server = two(Wild())
    engines = [driver.engine for driver in server.llm.driver.drivers]
    Loss(engines[0].runner, after=5)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, **SEEDED}
    connection = server.send(CHAT, {**body, "max_tokens": 190})
    server.wait_until(lambda: engines[1].stats.output_tokens > 5)
    connection.close()
    server.wait_until(server.is_idle)
    assert engines[1].stats.taken_over == 1


def test_without_a_replica_it_is_a_503_that_says_when_to_come_again(two) -> None:
    server = two(Wild())
    for driver in server.llm.driver.drivers:
        Loss(driver.engine.runner)
    answer = server.chat("hi", **SEEDED)
    assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
    assert "No node has room" in answer.json["error"]["message"]
    server.wait_until(server.is_idle)


def test_a_server_of_one_has_no_replicas_to_tell_of(serve) -> None:
    server = serve(reply("ok"))
    assert server.chat("hi").status == 200
    assert b"replica" not in server.get("/metrics").body
    assert server.get("/v1/status").json["models"][0]["replicas"] == []
