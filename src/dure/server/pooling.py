"""What the APIs for embeddings and ranks share: begin, wait for all vectors, say what was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dure.pooling.output import Pooled
from dure.pooling.request import PreparedPooling
from dure.server.http.sse import cancel_on_disconnect
from dure.server.wire.body import admitted
from dure.server.wire.tenant import tenant

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.llm import LLM
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service

MAX_NUMBERS = 1 << 22
"""Numbers of all vectors in one answer: as JSON they are some 85 MB."""


async def pool(
    service: Service,
    request: Request,
    model: str | None,
    prepare: Callable[[LLM], PreparedPooling],
    *,
    keep_alive: float | None = None,
) -> tuple[Generation, Pooled]:
    """Compute the vectors of a request's texts; if its client goes, that ends within one step.

    prepare: makes the request of the loaded model, off the event loop.
    """
    began = service.pool(model, prepare, key=tenant(request), keep_alive=keep_alive)
    generation = await admitted(request, began)

    async def read() -> Pooled:
        async for _, chunk in generation:
            if isinstance(chunk.completion, Pooled):
                return chunk.completion
        raise RuntimeError("a request for vectors ended without any")

    try:
        return generation, await cancel_on_disconnect(request.receive, read())
    finally:
        generation.close()


def told(response: Response, generation: Generation) -> Response:
    """Say in the response's headers how vectors were made where the model does not say it.

    And how many texts were cut, if some were.
    """
    prepared = generation.prepared
    if isinstance(prepared, PreparedPooling):
        if not prepared.is_said:
            response.headers["x-dure-pooling"] = "last token; the model does not say"
        if prepared.num_cut:
            response.headers["x-dure-truncated"] = str(prepared.num_cut)
    return response
