"""/v1/embeddings, /v1/rerank, /api/embed and /api/embeddings, over models of numpy."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from embedding_model import RANKS, EmbeddingModel

from dure.server import limits

TEXTS = ["a", "bc", "def"]


@pytest.fixture(scope="module")
def running(serve_module: Any) -> Any:
    return serve_module(EmbeddingModel(), model_options={"context": 64, "template": None})


def vectors(answer: Any) -> list[Any]:
    assert answer.status == 200, answer.body
    return [each["embedding"] for each in answer.json["data"]]


def embedded(running: Any, given: Any, **more: Any) -> Any:
    return running.post("/v1/embeddings", {"model": "fake", "input": given, **more})


def test_one_text_or_many_as_text_or_tokens(running: Any) -> None:
    many = vectors(embedded(running, TEXTS))
    assert [vectors(embedded(running, each))[0] for each in TEXTS] == many
    ids = [list(text.encode()) for text in TEXTS]
    assert vectors(embedded(running, ids)) == many
    assert vectors(embedded(running, ids[1])) == [many[1]]
    wanted = np.array([ord("f"), 3, 1], np.float32)
    assert np.allclose(many[2], wanted / np.linalg.norm(wanted), atol=1e-6)


def test_the_answer_is_openais(running: Any) -> None:
    answer = embedded(running, TEXTS, user="somebody", encoding_format="float")
    body = answer.json
    assert (body["object"], body["model"]) == ("list", "fake")
    assert [(each["object"], each["index"]) for each in body["data"]] == [
        ("embedding", number) for number in range(3)
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (6, 6)
    assert "does not say" in answer.headers["x-dure-pooling"]
    assert float(answer.headers["x-dure-processor-seconds"]) >= 0


def test_base64_is_the_same_numbers(running: Any) -> None:
    [text] = vectors(embedded(running, "def", encoding_format="base64"))
    numbers = np.frombuffer(base64.b64decode(text), "<f4")
    assert np.allclose(numbers, vectors(embedded(running, "def"))[0], atol=0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": []}, "input is empty"),
        ({"input": ""}, "input[0] is empty"),
        ({"input": ["a", ""]}, "input[1] is empty"),
        ({}, "input is missing"),
        ({"input": "a", "dimensions": 4}, "have 3 numbers"),
        ({"input": "a", "dimensions": 2}, "not known to be trained"),
        ({"input": "a" * 65}, "takes 64 tokens"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format must be"),
        ({"input": "a", "prompt_name": "query"}, "no prompt called"),
        ({"input": "a", "dimension": 2}, '"dimensions" is'),
        ({"input": ["a"] * 2049}, "2048"),
        ({"input": [[999]]}, "Token id 999"),
    ],
)
def test_what_cannot_be_is_a_400_with_a_sentence(
    running: Any, body: dict[str, Any], said: str
) -> None:
    answer = running.post("/v1/embeddings", {"model": "fake", **body})
    assert answer.status == 400
    assert said in answer.json["error"]["message"]


def test_a_text_is_cut_where_that_is_asked_for(running: Any) -> None:
    for more in ({"truncate": True}, {"truncate_prompt_tokens": -1}):
        cut = embedded(running, "a" * 99, **more)
        assert (cut.json["usage"]["prompt_tokens"], cut.headers["x-dure-truncated"]) == (64, "1")
    assert embedded(running, "abc", truncate_prompt_tokens=2).json["usage"]["prompt_tokens"] == 2


def test_a_text_that_is_cut_before_it_is_tokenised_is_counted_as_cut(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.pooling.request.longest_text", lambda _: 24)
    cut = embedded(running, "<|im_start|>" * 3, truncate=True)  # 12 characters of one token
    assert (cut.json["usage"]["prompt_tokens"], cut.headers["x-dure-truncated"]) == (2, "1")


def test_ollamas_embed(running: Any) -> None:
    answer = running.post("/api/embed", {"model": "fake:latest", "input": TEXTS})
    body = answer.json
    assert body["embeddings"] == vectors(embedded(running, TEXTS))
    assert (body["model"], body["prompt_eval_count"]) == ("fake", 6)
    assert body["total_duration"] >= body["load_duration"] >= 0
    for empty in ("", []):
        given = {"model": "fake", "input": empty, "keep_alive": "5m"}
        assert running.post("/api/embed", given).json["embeddings"] == []


def test_ollama_cuts_a_text_that_is_too_long_unless_told_not_to(running: Any) -> None:
    given = {"model": "fake", "input": "a" * 99}
    assert running.post("/api/embed", given).json["prompt_eval_count"] == 64
    refused = running.post("/api/embed", {**given, "truncate": False})
    assert (refused.status, "takes 64 tokens" in refused.json["error"]) == (400, True)
    asked = {**given, "options": {"num_ctx": 65, "temperature": 0}}
    assert "num_ctx is 65" in running.post("/api/embed", asked).json["error"]


def test_ollamas_embeddings_of_before_are_not_normalised(running: Any) -> None:
    given = {"model": "fake", "prompt": "def"}
    assert running.post("/api/embeddings", given).json == {"embedding": [ord("f"), 3, 1]}
    assert running.post("/api/embeddings", {"model": "fake"}).json == {"embedding": []}


def test_a_model_that_is_no_reranker_says_so(running: Any) -> None:
    answer = running.post("/v1/rerank", {"model": "fake", "query": "a", "documents": TEXTS})
    assert (answer.status, "is no reranker" in answer.json["error"]["message"]) == (400, True)


@pytest.fixture(scope="module")
def ranking(serve_module: Any) -> Any:
    """Its score is the sigmoid of the document's last letter."""
    running = serve_module(EmbeddingModel(ranks=True), model_options={"context": 64})
    running.llm.pooling = RANKS
    return running


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_back_best_first(ranking: Any, path: str) -> None:
    documents = ["a", {"text": "c", "title": "C"}, "b"]
    body = {"model": "fake", "query": "q", "documents": documents}
    made = ranking.post(path, {**body, "return_documents": True}).json
    assert [each["index"] for each in made["results"]] == [1, 2, 0]
    assert made["results"][0]["document"] == {"text": "c", "title": "C"}
    assert made["results"][1]["document"] == {"text": "b"}
    scores = [each["relevance_score"] for each in made["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= min(scores) <= max(scores) <= 1
    assert made["usage"]["total_tokens"] == made["meta"]["tokens"]["input_tokens"] > 3
    best = ranking.post(path, {**body, "top_n": 1}).json["results"]
    assert (len(best), "document" in best[0]) == (1, False)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": "q"}, "documents is missing"),
        ({"documents": ["a"]}, "query is missing"),
        ({"query": "q", "documents": []}, "at least 1 is needed"),
        ({"query": "q", "documents": [{"title": "a"}]}, 'no "text"'),
        ({"query": "q", "documents": ["a"], "top_n": 0}, "top_n must be at least 1"),
    ],
)
def test_a_wrong_ranking_is_a_400_with_a_sentence(
    ranking: Any, body: dict[str, Any], said: str
) -> None:
    answer = ranking.post("/v1/rerank", {"model": "fake", **body})
    assert answer.status == 400
    assert said in answer.json["error"]["message"]


def test_a_client_that_leaves_ends_its_texts(serve: Any) -> None:
    model = EmbeddingModel(gated=True)
    running = serve(model, model_options={"context": 64})
    connection = running.send("/v1/embeddings", {"model": "fake", "input": ["a" * 60] * 200})
    running.wait_until(lambda: running.llm.engine.has_work)
    connection.close()
    model.let()
    running.wait_until(running.is_idle)
    assert running.llm.engine.stats.finished < 200


def test_keys_pay_and_have_limits_for_embeddings(serve: Any, tmp_path: Any) -> None:
    running = serve(EmbeddingModel(), model_options={"context": 64}, ledger=tmp_path / "ledger.db")
    embedded(running, TEXTS)
    metrics = running.get("/metrics").body.decode()
    assert 'key_tokens_total{key="local",kind="prompt",model_name="fake"} 6.0' in metrics
    assert 'dure:generation_tokens_total{model_name="fake"} 0.0' in metrics


@pytest.mark.parametrize("more", [{}, {"encoding_format": "base64"}, {"dimensions": 3}])
def test_vectors_that_are_written_in_pieces_are_the_same(
    running: Any, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    texts = [*TEXTS, "g", "hi"]
    whole = embedded(running, texts, **more)
    assert "content-length" in whole.headers
    for piece in (1, 6, 9, 1000):
        monkeypatch.setattr(limits, "VECTORS_PIECE", piece)
        parts = embedded(running, texts, **more)
        assert parts.json["data"] == whole.json["data"]
        assert ("content-length" in parts.headers) == (piece == 1000)
        assert parts.json["usage"]["total_tokens"] == 9
        assert float(parts.headers["x-dure-processor-seconds"]) >= 0
    monkeypatch.setattr(limits, "VECTORS_PIECE", 3)
    by_ollama = running.post("/api/embed", {"model": "fake", "input": texts}).json
    assert len(by_ollama["embeddings"]) == 5
    assert by_ollama["prompt_eval_count"] == 9


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed"])
def test_more_numbers_than_an_answer_may_have_are_refused_with_the_limit(
    running: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(limits, "MAX_VECTOR_NUMBERS", 8)
    answer = running.post(path, {"model": "fake", "input": TEXTS})
    assert answer.status == 400
    said = answer.body.decode()
    assert "3 vectors of 3 are 9 numbers, and one answer may have 8. Send fewer texts" in said
    assert running.post(path, {"model": "fake", "input": TEXTS[:2]}).status == 200


def test_vectors_of_all_requests_have_a_bound_and_others_wait(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_VECTOR_BYTES", 600)  # one vector counts for 140
    monkeypatch.setattr(limits, "PREPARE_SECONDS", 0.3)
    model = EmbeddingModel(gated=True)
    running = serve(model, model_options={"context": 64})
    first = running.send("/v1/embeddings", {"model": "fake", "input": TEXTS})
    running.wait_until(lambda: running.llm.engine.has_work)
    refused = embedded(running, TEXTS)
    assert (refused.status, refused.json["error"]["code"]) == (503, "vectors_too_large")
    assert "600 bytes, which is the limit" in refused.json["error"]["message"]
    assert "retry-after" in refused.headers
    model.let()
    first.recv(1 << 16)
    first.close()
    running.wait_until(running.is_idle)
    assert len(vectors(embedded(running, TEXTS))) == 3


def test_a_client_that_leaves_gives_its_room_back(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_VECTOR_BYTES", 600)
    model = EmbeddingModel(gated=True)
    running = serve(model, model_options={"context": 64})
    many = ["a" * 60] * 200
    for _ in range(3):
        connection = running.send("/v1/embeddings", {"model": "fake", "input": many})
        running.wait_until(lambda: running.llm.engine.has_work)
        connection.close()
        model.let_until(lambda: not running.llm.engine.has_work)
    model.let()
    assert len(vectors(embedded(running, TEXTS))) == 3
