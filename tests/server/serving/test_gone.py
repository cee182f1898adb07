"""Clients that leave, at every stage of a request: the work stops, and nothing is kept for them."""

from __future__ import annotations

import json
import threading

import pytest
from apis import APIS
from fake_model import loaded, reply
from stepped import ROOMY, Stepped, endless

import dure.llm
from dure import LLM

CHAT = "/v1/chat/completions"


@pytest.fixture
def model() -> Stepped:
    return Stepped(endless)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", APIS)
def test_in_the_midst_of_an_answer_no_step_more_is_made(serve, model, path, streamed) -> None:
    server = serve(model, model_options=ROOMY)
    connection = server.send(path, APIS[path]("hi", stream=streamed))
    model.let(5)
    server.wait_until(lambda: model.begun == 6)
    connection.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    model.let()
    server.wait_until(server.is_idle)
    assert 6 == model.begun
    assert not server.server.service.kept


@pytest.mark.parametrize("path", APIS)
def test_while_the_prompt_is_read_the_rest_of_it_is_not(serve, model, path) -> None:
    server = serve(model, model_options=ROOMY)
    connection = server.send(path, APIS[path]("x" * 3000, stream=True))
    model.let(1)
    server.wait_until(lambda: model.begun == 2)
    connection.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    model.let()
    server.wait_until(server.is_idle)
    assert 2 == model.begun


def test_while_it_waits_for_its_turn_it_never_gets_one(serve, model) -> None:
    server = serve(model, model_options=ROOMY, max_sequences=1)
    first = server.send(CHAT, APIS[CHAT]("first", stream=True))
    server.wait_until(lambda: model.begun)
    waiting = server.send(CHAT, APIS[CHAT]("second", stream=True, n=3))
    model.let_until(lambda: len(server.llm.engine.scheduler.waiting) == 3)
    waiting.close()
    server.wait_until(lambda: server.server.service.num_active == 1)
    first.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    model.let()
    server.wait_until(server.is_idle)
    assert not any(ord("d") in batch.tokens for batch in model.batches)  # of "second"


@pytest.mark.parametrize(
    ("path", "more"), [(CHAT, {"n": 4}), ("/v1/completions", {"prompt": ["a", "b", "c", "d"]})]
)
def test_all_answers_of_one_request_end_together(serve, model, path, more) -> None:
    server = serve(model, model_options=ROOMY)
    connection = server.send(path, {**APIS[path]("hi", stream=True), **more})
    model.let_until(lambda: len(server.llm.engine.scheduler.running) == 4)
    connection.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    model.let()
    server.wait_until(server.is_idle)


@pytest.mark.parametrize("sent", [0, 20, 200])
def test_before_the_request_is_whole_nothing_is_begun(serve, model, sent) -> None:
    server = serve(model)
    data = json.dumps(APIS[CHAT]("x" * 100)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection = server.connect()
    connection.sendall((head.encode() + data)[:sent])
    connection.close()
    server.wait_until(lambda: not server.server.connections.open)
    assert 0 == model.begun
    assert server.is_idle()


@pytest.mark.parametrize("path", APIS)
def test_while_the_request_is_prepared_nothing_is_begun(serve, model, monkeypatch, path) -> None:
    entered, go_on = threading.Event(), threading.Event()
    real = LLM.prepare

    def slow(*arguments, **options):
        entered.set()
        assert go_on.wait(60)
        return real(*arguments, **options)

    server = serve(model)
    monkeypatch.setattr(LLM, "prepare", slow)
    connection = server.send(path, APIS[path]("hi", stream=True))
    assert entered.wait(60)
    connection.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    go_on.set()
    monkeypatch.undo()
    model.let()
    assert 200 == server.chat("hi", max_tokens=1).status
    assert 1 == model.begun


def test_while_the_model_is_loaded_those_who_come_later_have_it(serve, monkeypatch) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(name: str) -> LLM:
        loading.set()
        assert go_on.wait(60)
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(Stepped(reply("ok"))))
        llm = LLM(name)
        llm.model.let()
        return llm

    server = serve(make=load, models=("one", "two"))
    connection = server.send(CHAT, {**APIS[CHAT]("hi"), "model": "one"})
    assert loading.wait(60)
    assert 200 == server.get("/health").status
    connection.close()
    server.wait_until(lambda: server.server.service.num_active == 0)
    go_on.set()
    assert 200 == server.chat("hi", model="one").status
    assert 1 == len(server.llms)
    assert 1 == len({id(batch) for batch in server.llm.model.batches if len(batch.tokens) > 1})
