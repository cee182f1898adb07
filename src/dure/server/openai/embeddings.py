"""OpenAI's embeddings, and ranks in the form of Jina, Cohere, vLLM and llama-server."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dure.server.errors import invalid
from dure.server.http.sse import json_response
from dure.server.openai.embedding_schemas import EmbeddingBody, RerankBody
from dure.server.pooling import Form, embedded, pool, told
from dure.server.wire.body import converted, read_as
from dure.server.wire.cost import cost_fields
from dure.server.wire.tenant import tenant
from dure.server.wire.validation import refuse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.llm import LLM
    from dure.pooling.output import Pooled
    from dure.pooling.request import Input, PreparedPooling
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service

    Floats = NDArray[np.float32]

_INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_query", "web_search_query"),
    "document": ("document", "search_document", "passage"),
}
"""What Cohere, Voyage and NVIDIA call a text's role -> names of prompts that checkpoints have."""


def texts_of(body: EmbeddingBody) -> list[Input]:
    """Return the texts, one or several. Raises a 400 for none, and for an empty one."""
    given: Any = body.input
    listed = [given] if isinstance(given, str) else list(given)
    if listed and isinstance(listed[0], int):
        listed = [listed]
    if not listed:
        raise invalid("input is empty: there is nothing to embed.", "input")
    for number, each in enumerate(listed):
        if len(each) == 0:
            raise invalid(f"input[{number}] is empty: there is nothing to embed.", "input")
    return listed


def truncation(body: EmbeddingBody | RerankBody) -> bool | int:
    """Return whether texts are cut, or after how many tokens, by vLLM's and TEI's fields."""
    if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens > 0:
        return body.truncate_prompt_tokens
    return body.truncate_prompt_tokens == -1 or body.truncate is True


def prompt_name(body: EmbeddingBody, llm: LLM) -> str | None:
    """Return the name of the prompt that is written before each text, if one is asked for."""
    if body.input_type is None or body.prompt_name is not None:
        return body.prompt_name
    known = llm.pooling.prompts
    names = next((each for each in _INPUT_TYPES.values() if body.input_type in each), ())
    return next((name for name in (body.input_type, *names) if name in known), None)


async def embeddings(service: Service, request: Request) -> Response:
    """Embed texts or token ids."""
    body = await read_as(request, EmbeddingBody)

    def read() -> list[Input]:
        refuse(body, {})
        return texts_of(body)

    texts = await converted(request, body, read)

    def prepare(llm: LLM) -> PreparedPooling:
        return llm.pooling_builder.embeddings(
            texts,
            prompt=body.prompt,
            prompt_name=prompt_name(body, llm),
            dimensions=body.dimensions,
            normalize=body.normalize,
            truncate=truncation(body),
            cache_salt=tenant(request),
            priority=body.priority or 0,
        )

    entry = _as_base64 if body.encoding_format == "base64" else _as_numbers

    def form(generation: Generation, pooled: Pooled) -> Form:
        after = {"model": generation.model, "usage": _usage(generation, pooled)}
        return Form({"object": "list"}, "data", entry, after)

    return await embedded(
        service,
        request,
        body.model,
        prepare,
        form,
        num_texts=len(texts),
        dimensions=body.dimensions,
    )


def _as_numbers(index: int, vector: Floats) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": vector.tolist()}


def _as_base64(index: int, vector: Floats) -> dict[str, Any]:
    """Write little-endian float32."""
    text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": text}


def _usage(generation: Generation, pooled: Pooled) -> dict[str, Any]:
    usage = pooled.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        **cost_fields(usage, generation.prices),
    }


def documents_of(body: RerankBody) -> list[str]:
    """Return the texts of the documents. Raises a 400 for one without any text."""
    texts = []
    for number, each in enumerate(body.documents):
        text = each if isinstance(each, str) else each.get("text")
        if not isinstance(text, str):
            raise invalid(f'documents[{number}] is no text and has no "text".', "documents")
        texts.append(text)
    return texts


async def rerank(service: Service, request: Request) -> Response:
    """Score documents by how well each answers a query, and return them best first."""
    body = await read_as(request, RerankBody)

    def read() -> list[str]:
        refuse(body, {"rank_fields": "join the fields that are to be ranked into one text"})
        return documents_of(body)

    documents = await converted(request, body, read)

    def prepare(llm: LLM) -> PreparedPooling:
        return llm.pooling_builder.ranking(
            body.query,
            documents,
            instruction=body.instruction,
            truncate=body.max_tokens_per_doc or truncation(body),
            cache_salt=tenant(request),
            priority=body.priority or 0,
        )

    generation, pooled = await pool(service, request, body.model, prepare)
    made = await service.off_loop(partial(_ranked, generation, pooled, body, documents))
    return told(made, generation)


def _ranked(
    generation: Generation, pooled: Pooled, body: RerankBody, documents: Sequence[str]
) -> Response:
    ranked = pooled.ranked(documents)
    results: list[dict[str, Any]] = []
    for each in ranked if body.top_n is None else ranked[: body.top_n]:
        result: dict[str, Any] = {"index": each.index, "relevance_score": each.score}
        if body.return_documents:
            given = body.documents[each.index]
            result["document"] = {"text": given} if isinstance(given, str) else given
        results.append(result)
    return json_response(
        {
            "id": f"rerank-{generation.id}",
            "object": "list",
            "model": generation.model,
            "results": results,
            "usage": _usage(generation, pooled),
            # Cohere's name for it; its unit is a search of up to 100 documents
            "meta": {"tokens": {"input_tokens": pooled.usage.prompt_tokens}},
        }
    )
