"""Ollama's embeddings: /api/embed, and /api/embeddings of before."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dure.server.http.sse import json_response
from dure.server.ollama import request as reading
from dure.server.ollama.chat import known_name
from dure.server.ollama.schemas import EmbedBody, EmbeddingsBody
from dure.server.pooling import Form, embedded, pool, told
from dure.server.wire.body import converted, read_as
from dure.server.wire.tenant import tenant
from dure.server.wire.validation import refuse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.llm import LLM
    from dure.pooling.output import Pooled
    from dure.pooling.request import PreparedPooling
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service


async def embed(service: Service, request: Request) -> Response:
    """POST /api/embed: embed texts; too long ones are cut unless `truncate` is false."""
    began = time.perf_counter()
    body = await read_as(request, EmbedBody)
    body.model = known_name(service, body.model)

    def read() -> list[str]:
        _refuse(body)
        return [body.input] if isinstance(body.input, str) else list(body.input)

    texts = await converted(request, body, read)
    if texts in ([], [""]):  # as Ollama: the model is loaded
        await _load(service, body)
        return json_response({"model": body.model, "embeddings": []})
    loaded = time.perf_counter()

    def prepare(llm: LLM) -> PreparedPooling:
        nonlocal loaded
        loaded = time.perf_counter()
        _check_context(body, llm)
        return llm.pooling_builder.embeddings(
            texts,
            dimensions=body.dimensions or None,
            normalize=True,
            truncate=body.truncate is not False,
            cache_salt=tenant(request),
        )

    def form(_: Generation, pooled: Pooled) -> Form:
        after = {
            "total_duration": round(1e9 * (time.perf_counter() - began)),
            "load_duration": round(1e9 * (loaded - began)),
            "prompt_eval_count": pooled.usage.prompt_tokens,
        }
        return Form({"model": body.model}, "embeddings", lambda _, vector: vector.tolist(), after)

    return await embedded(
        service,
        request,
        body.model,
        prepare,
        form,
        num_texts=len(texts),
        dimensions=body.dimensions or None,
        keep_alive=reading.keep_alive(body.keep_alive),
    )


async def embeddings(service: Service, request: Request) -> Response:
    """POST /api/embeddings: embed one text, without making the vector's length 1."""
    body = await read_as(request, EmbeddingsBody)
    body.model = known_name(service, body.model)
    await converted(request, body, partial(_refuse, body))
    if not body.prompt:
        await _load(service, body)
        return json_response({"embedding": []})

    def prepare(llm: LLM) -> PreparedPooling:
        _check_context(body, llm)
        return llm.pooling_builder.embeddings(
            [body.prompt or ""], normalize=False, truncate=True, cache_salt=tenant(request)
        )

    kept = reading.keep_alive(body.keep_alive)
    generation, pooled = await pool(service, request, body.model, prepare, keep_alive=kept)
    made = json_response({"embedding": _only(pooled)})
    return told(made, generation)


def _only(pooled: Pooled) -> list[Any]:
    found: list[Any] = pooled.vectors[0].tolist()
    return found


def _refuse(body: EmbedBody | EmbeddingsBody) -> None:
    refuse(body, {})
    if body.options is not None:
        refuse(body.options, {})


def _check_context(body: EmbedBody | EmbeddingsBody, llm: LLM) -> None:
    reading.check_num_ctx(body.options, body.model, llm.context)


async def _load(service: Service, body: EmbedBody | EmbeddingsBody) -> None:
    """Load the model of a request without a text, or let it be unloaded."""
    kept = reading.keep_alive(body.keep_alive)
    entry = await service.registry.acquire(body.model, keep_alive=kept)
    service.registry.release(entry)
