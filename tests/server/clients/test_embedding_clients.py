"""Embeddings and ranks through the packages that people ask them with.

openai and ollama are in the extra `test`; the others are in `clients`, and their tests are skipped
without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_embedders as tiny
from embedding_model import RANKS, EmbeddingModel

import dure.llm
from dure import LLM
from dure.loading.load import load
from dure.server.run import Server, Settings

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


def test_openai_with_token_ids_and_many_at_once(url: str) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            made = client.embeddings.create
            return await asyncio.gather(*(made(model="fake", input=TEXTS) for _ in range(8)))

    assert all(are_right([each.embedding for each in made.data]) for made in asyncio.run(ask()))
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        ids = [list(text.encode()) for text in TEXTS]
        made = client.embeddings.create(model="fake", input=ids, dimensions=3)
        assert are_right([each.embedding for each in made.data])
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").embeddings.create(model="fake", input="a")


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


def test_langchain_finds_the_nearest_document(url: str) -> None:
    module = pytest.importorskip("langchain_openai")
    stores = pytest.importorskip("langchain_core.vectorstores")
    client = module.OpenAIEmbeddings(
        model="fake", base_url=f"{url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    store = stores.InMemoryVectorStore(client)
    store.add_texts(["a", "aaaaaaaaa", "z"])
    [found] = store.similarity_search("aaaaaaaa", k=1)  # by its length
    assert found.page_content == "aaaaaaaaa"
    assert are_right(asyncio.run(client.aembed_documents(TEXTS)))


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
    by_ollama = litellm.embedding(
        "ollama/fake", TEXTS, api_base=url, api_key=KEY, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert are_right([each["embedding"] for each in by_ollama.data])
    later = litellm.aembedding("openai/fake", TEXTS, api_base=f"{url}/v1", api_key=KEY)
    assert are_right([each["embedding"] for each in asyncio.run(later).data])
    options = {"query": "q", "documents": ["a", "c", "b"], "api_key": KEY}
    ranked = litellm.rerank(model="cohere/fake", api_base=f"{ranking}/v2/rerank", **options)
    assert [each["index"] for each in ranked.results] == [1, 2, 0]
    ranked = litellm.rerank(model="jina_ai/fake", api_base=f"{ranking}/v1/rerank", **options)
    assert [each["index"] for each in ranked.results] == [1, 2, 0]


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder as sentence-transformers writes it, and where it is served, computed exactly."""
    monkeypatch.setattr(dure.llm, "load", load)  # the servers of the other tests have a model made
    folder = tmp_path / "embedder"
    tiny.oracle().model.save_pretrained(folder)
    tiny.write_texts(folder)
    tiny.write_modules(folder, "Pooling", "Normalize")
    settings = Settings(models=(str(folder),), port=0, keys=(KEY,))
    server = Server(settings, lambda name: LLM(name, threads=1, context=256, exact=True))
    loops: list[asyncio.AbstractEventLoop] = []
    ready = threading.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield folder, f"http://127.0.0.1:{server.address[1]}"
    finally:
        loops[0].call_soon_threadsafe(server.stop)
        thread.join(60)


@pytest.mark.filterwarnings("default")
def test_what_is_served_is_what_sentence_transformers_computes(embedder: tuple[Path, str]) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    openai = pytest.importorskip("openai")
    folder, url = embedder
    theirs = sentences.SentenceTransformer(str(folder), device="cpu")
    texts = ["Hello", "A long text, " * 12, "두레", "a"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        for name in ("query", "document"):
            made = client.embeddings.create(
                model=folder.name, input=texts, extra_body={"prompt_name": name}
            )
            vectors = np.array([each.embedding for each in made.data])
            wanted = theirs.encode(texts, prompt_name=name, batch_size=1)
            assert np.abs(vectors - wanted).max() < 1e-4
