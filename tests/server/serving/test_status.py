"""/v1/status: what runs, as the page shows it, without anybody's words."""

from __future__ import annotations

import threading

from fake_model import reply
from stepped import ROOMY, Stepped, endless

import dure.llm
from dure import LLM
from dure.hub import Progress
from dure.server.serving.model_pool import Loading, ModelPool

ALICE, BOB = "alices-own-key", "bobs-other-key"


def test_a_stream_is_told_without_its_words_and_its_id_to_its_own_key_alone(serve) -> None:
    model = Stepped(endless)
    server = serve(model, keys=(ALICE, BOB), model_options=ROOMY)
    body = {"messages": [{"role": "user", "content": "a secret question"}], "stream": True}
    server.send("/v1/chat/completions", body)
    model.let(3)
    server.wait_until(lambda: server.get("/v1/status").json["streams"][:1] != [])
    own = server.get("/v1/status").json
    others = server.get("/v1/status", headers={"Authorization": f"Bearer {BOB}"})
    assert own["streams"][0]["id"] and others.json["streams"][0]["id"] is None
    assert b"secret" not in others.body
    assert own["streams"][0]["prompt"]["total"] > 17
    assert 1 == own["requests"]["active"] == own["models"][0]["requests"]
    assert 0 < own["models"][0]["cache"]["used"] <= 1
    model.let()


def test_the_model_that_is_being_loaded_is_told_with_how_far_it_is(serve, monkeypatch) -> None:
    may_load = threading.Event()
    told: list[tuple[int, int]] = []
    server = None

    def make(name: str) -> LLM:
        if name == "second":
            watched = server.server.watched(
                {"load_progress": lambda *at: told.append(at), "download_progress": told.append}
            )
            watched["download_progress"](Progress(name, "downloading", 1, 4))
            watched["load_progress"](50, 200)
            assert may_load.wait(60)
        return LLM(name, max_sequences=2, speculate="off")

    from fake_model import ScriptModel, loaded  # noqa: PLC0415

    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(reply("ok"))))
    server = serve(make=make, models=("first", "second"))
    assert server.get("/v1/status").json["loading"] is None
    body = {"model": "second", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    server.send("/v1/chat/completions", body)
    server.wait_until(lambda: (server.get("/v1/status").json["loading"] or {}).get("total_bytes"))
    loading = server.get("/v1/status").json["loading"]
    assert ("second", "loading", 50, 200) == tuple(
        loading[name] for name in ("id", "stage", "done_bytes", "total_bytes")
    )
    may_load.set()
    server.wait_until(lambda: server.get("/v1/status").json["models"][:1] != [])
    assert server.get("/v1/status").json["loading"] is None
    assert [Progress("second", "downloading", 1, 4), (50, 200)] == told


def test_progress_of_nothing_that_is_loaded_changes_nothing() -> None:
    pool = ModelPool(lambda name: None, {"one": "one"})  # type: ignore[arg-type,return-value]
    pool.report("loading", 1, 2)
    assert pool.loading is None
    pool.loading = Loading("one")
    pool.report("loading", 1, 2)
    assert (1, 2, "one") == (pool.loading.done_bytes, pool.loading.total_bytes, pool.loading.id)
