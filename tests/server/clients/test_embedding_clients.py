"""Embeddings and ranks through the packages that people ask them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from embedding_model import RANKS, EmbeddingModel

TEXTS = ["a", "bc", "def"]
KEY = "a-key-of-this-test"


def wanted(text: str) -> np.ndarray:
    """What EmbeddingModel makes of a text."""
    vector = np.array([ord(text[-1]), len(text), 1.0])
    return vector / np.linalg.norm(vector)


def are_right(vectors: Any) -> bool:
    return all(
        np.allclose(made, wanted(text), atol=1e-6)
        for made, text in zip(vectors, TEXTS, strict=True)
    )


@pytest.fixture(scope="module")
def url(serve_module: Any) -> str:
    running = serve_module(EmbeddingModel(), model_options={"context": 64}, keys=(KEY,))
    return f"http://127.0.0.1:{running.port}"


@pytest.fixture(scope="module")
def ranking(serve_module: Any) -> str:
    running = serve_module(EmbeddingModel(ranks=True), model_options={"context": 64}, keys=(KEY,))
    running.llm.pooling = RANKS
    return f"http://127.0.0.1:{running.port}"


def test_openai(url: str) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        made = client.embeddings.create(model="fake", input=TEXTS)  # base64 by itself
        assert are_right([each.embedding for each in made.data])
        assert made.usage.prompt_tokens == 6
        plain = client.embeddings.create(model="fake", input=TEXTS, encoding_format="float")
        assert are_right([each.embedding for each in plain.data])
        with pytest.raises(openai.BadRequestError, match="input is empty"):
            client.embeddings.create(model="fake", input=[])


def test_ollama(url: str) -> None:
    pytest.importorskip("ollama._client")
    import ollama  # noqa: PLC0415

    with ollama.Client(url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        made = client.embed("fake", TEXTS)
        assert are_right(made.embeddings)
        assert (made.model, made.prompt_eval_count) == ("fake", 6)
        assert client.embed("fake", "").embeddings == []
        assert list(client.embeddings("fake", "def").embedding) == [ord("f"), 3, 1]
        with pytest.raises(ollama.ResponseError, match="takes 64 tokens"):
            client.embed("fake", "a" * 99, truncate=False)


def test_langchain_openai(url: str) -> None:
    module = pytest.importorskip("langchain_openai")
    client = module.OpenAIEmbeddings(
        model="fake", base_url=f"{url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    assert are_right(client.embed_documents(TEXTS))
    assert np.allclose(client.embed_query("def"), wanted("def"), atol=1e-6)


def test_langchain_ollama(url: str) -> None:
    module = pytest.importorskip("langchain_ollama")
    headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
    client = module.OllamaEmbeddings(model="fake", base_url=url, client_kwargs=headers)
    assert are_right(client.embed_documents(TEXTS))
    assert np.allclose(client.embed_query("def"), wanted("def"), atol=1e-6)


@pytest.mark.filterwarnings("default")
def test_litellm(url: str, ranking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    made = litellm.embedding("openai/fake", TEXTS, api_base=f"{url}/v1", api_key=KEY)
    assert are_right([each["embedding"] for each in made.data])
    options = {"query": "q", "documents": ["a", "c", "b"], "api_key": KEY}
    ranked = litellm.rerank(model="cohere/fake", api_base=f"{ranking}/v2/rerank", **options)
    assert [each["index"] for each in ranked.results] == [1, 2, 0]
    ranked = litellm.rerank(model="jina_ai/fake", api_base=f"{ranking}/v1/rerank", **options)
    assert [each["index"] for each in ranked.results] == [1, 2, 0]
