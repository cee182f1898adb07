"""Faults inside the server: each is one request's error, and the next request is answered."""

from __future__ import annotations

import os
import signal
import threading
from functools import cache

import psutil
import pytest
from apis import APIS
from fake_model import ScriptModel, reply
from stepped import ROOMY, Stepped

from dure import LLM
from dure.engine.engine import Engine
from dure.server.app import ROUTES
from dure.server.routes import ROUTES as OTHERS
from dure.server.serving.metrics import Metrics
from dure.server.wire import body

OWN_RENDERERS = True
CHAT = "/v1/chat/completions"
BODIES = sorted({(r.path, r.method) for r in (*ROUTES, *OTHERS) if r.shape is not None})


class Panic(BaseException):
    """As Rust's come to Python: no Exception."""


class Failing(ScriptModel):
    """Fails at a prompt with "!", with whatever error it is told to."""

    error: BaseException = ValueError("secret words of a library")

    def forward(self, batch, cache):
        if ord("!") in batch.tokens:
            raise self.error
        return super().forward(batch, cache)


@cache
def failing(error: type[BaseException]) -> Failing:
    """The one model that fails with this, so that its server is one for all requests."""
    model = Failing(reply("fine"))
    model.error = error("secret words")
    return model


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError, 500, "its log says why"),
        (MemoryError, 503, "not enough memory"),
        (Panic, 500, "its log says why"),
    ],
)
def test_a_model_that_fails_in_a_step_fails_one_request(
    serve_module, path, streamed, error, status, says
) -> None:
    server = serve_module(failing(error))
    answer = server.post(path, APIS[path]("wrong!", stream=streamed, max_tokens=9))
    assert (200 if streamed else status) == answer.status
    assert says in answer.body.decode()
    assert "secret" not in answer.body.decode()
    server.wait_until(server.is_idle)
    again = server.post(path, APIS[path]("right", stream=streamed, max_tokens=9))
    assert 200 == again.status
    assert "error" not in again.body.decode().replace('"error":null', "")


def test_an_engine_that_fails_fails_what_runs_and_goes_on(serve, monkeypatch, caplog) -> None:
    model = Stepped(reply("fine"))
    server = serve(model, model_options=ROOMY)
    running = [server.send(CHAT, APIS[CHAT]("hi", stream=True)) for _ in range(2)]
    server.wait_until(lambda: server.server.service.num_active == 2)
    server.wait_until(lambda: model.begun)

    def broken(engine, interrupted=None):
        raise RuntimeError("secret words of the engine")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        model.let()
        for connection in running:
            received = b""
            while b"internal_error" not in received:
                received += connection.recv(65536)
            assert b"secret" not in received
            connection.close()
        server.wait_until(server.is_idle)
    assert "secret words of the engine" in caplog.text
    assert 200 == server.chat("hi").status


def test_an_answer_that_cannot_be_given_up_keeps_no_other_from_its_turn(serve, monkeypatch) -> None:
    model = Stepped(reply("fine"))
    server = serve(model, model_options=ROOMY)
    leaving = server.send(CHAT, APIS[CHAT]("hi", stream=True))
    server.wait_until(lambda: model.begun)
    real, failed = Engine.finish, threading.Event()

    def broken(engine, request_id, *, reason="stop"):
        real(engine, request_id, reason=reason)
        if reason == "abort" and not failed.is_set():
            failed.set()
            raise RuntimeError("it cannot be given up")

    monkeypatch.setattr(Engine, "finish", broken)
    [entry] = server.server.service.registry.loaded()
    [worker] = entry.worker.each.values()
    leaving.close()
    server.wait_until(lambda: len(worker._inbox) == 1)
    coming = server.send(CHAT, APIS[CHAT]("hi"))
    server.wait_until(lambda: len(worker._inbox) == 2)  # both in one turn
    model.let()
    assert b" 200 " in coming.recv(65536)
    coming.close()
    assert failed.is_set()


def test_a_panic_as_a_request_begins_fails_it_alone(serve, monkeypatch) -> None:
    model = Stepped(reply("fine"))
    server = serve(model, model_options=ROOMY)
    running = server.send(CHAT, APIS[CHAT]("hi"))
    server.wait_until(lambda: model.begun)
    real = Engine.add

    def panicking(engine, prompt_ids, *rest, **options):
        if ord("!") in prompt_ids:
            raise Panic("secret words")
        return real(engine, prompt_ids, *rest, **options)

    monkeypatch.setattr(Engine, "add", panicking)
    wrong = server.send(CHAT, APIS[CHAT]("wrong!"))
    [entry] = server.server.service.registry.loaded()
    [worker] = entry.worker.each.values()
    server.wait_until(lambda: len(worker._inbox) == 1)
    model.let()
    said = wrong.recv(65536)
    assert b" 500 " in said
    assert b"secret" not in said
    assert b" 200 " in running.recv(65536)
    wrong.close()
    running.close()


@pytest.mark.parametrize("what", ["on_news", "on_over"])
def test_a_count_that_fails_costs_no_answer(serve, monkeypatch, what) -> None:
    def broken(*_):
        raise ValueError("no such label")

    monkeypatch.setattr(Metrics, what, broken)
    server = serve(reply("fine"))
    for streamed in (True, False):
        answer = server.chat("hi", stream=streamed)
        assert 200 == answer.status
        assert "stop" in answer.body.decode()


def test_a_body_for_which_there_is_no_memory_is_a_503(serve, monkeypatch) -> None:
    def full(*_, **__):
        raise MemoryError

    server = serve(reply("fine"))
    with monkeypatch.context() as patch:
        patch.setattr(body, "from_json", full)
        answer = server.chat("hi")
    assert (503, "out_of_memory") == (answer.status, answer.json["error"]["code"])
    assert 200 == server.chat("hi").status


def test_a_library_that_panics_over_a_request_fails_it_alone(serve, monkeypatch) -> None:
    def panicking(*_, **__):
        raise Panic("secret words")

    server = serve(reply("fine"))
    with monkeypatch.context() as patch:
        patch.setattr(LLM, "prepare", panicking)
        answer = server.chat("hi")
    assert (500, "internal_error") == (answer.status, answer.json["error"]["code"])
    assert "secret" not in answer.body.decode()
    assert 200 == server.chat("hi").status


def worker_of(server) -> psutil.Process:
    """The process that renders the server's templates."""
    return psutil.Process(server.llm.request_builder._template._worker._process.pid)


def test_a_template_worker_that_was_killed_is_replaced(serve) -> None:
    server = serve(reply("fine"))
    assert 200 == server.chat("hi").status
    worker = worker_of(server)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(60)
    assert 200 == server.chat("hi").status
    assert worker.pid != worker_of(server).pid


def test_a_template_worker_that_is_killed_at_work_is_replaced_and_its_work_done(serve) -> None:
    server = serve(reply("fine"))
    assert 200 == server.chat("hi").status
    worker = worker_of(server)
    worker.suspend()
    with server.send(CHAT, APIS[CHAT]("hello")) as connection:
        lock = server.llm.request_builder._template._lock
        server.wait_until(lock.locked)
        worker.kill()
        assert b" 200 " in connection.recv(65536)


def test_a_template_that_kills_its_worker_each_time_is_an_error(serve, monkeypatch) -> None:
    server = serve(reply("fine"))
    monkeypatch.setattr("dure.chat.template._START", "raise SystemExit(9)")
    answer = server.chat("hi")
    assert 503 == answer.status
    assert "process that renders" in answer.json["error"]["message"]
    monkeypatch.undo()
    assert 200 == server.chat("hi").status


def test_a_cache_too_small_for_all_at_once_serves_them_one_after_the_other(serve) -> None:
    words = "many words " * 12
    model = Stepped(reply(words))
    server = serve(model, model_options={"context": 256, "num_blocks": 9})
    answers: list[str] = []

    def ask(number: int) -> None:
        answer = server.chat(f"{number} says hi")
        answers.append(answer.json["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    server.wait_until(lambda: server.server.service.num_active == 6)
    model.let()
    for thread in threads:
        thread.join()
    assert [words] * 6 == answers
    assert server.llm.engine.stats.preemptions > 0


@pytest.mark.parametrize(("path", "method"), BODIES)
def test_json_that_is_10000_deep_is_refused_by_every_route(serve_shared, path, method) -> None:
    for data in (
        b"[" * 10_000 + b"]" * 10_000,
        b'{"model": "fake", "messages": ' + b'[{"role":' * 10_000 + b"1" + b"}]" * 10_000 + b"}",
        b'{"model":"fake","input":' * 10_000,
    ):
        answer = serve_shared.ask(method, path, data)
        assert 400 == answer.status
        assert "nested more than 64 deep" in answer.body.decode()


@pytest.fixture(scope="module")
def serve_shared(serve_module):
    return serve_module(reply("ok"))
