"""Reading for the APIs that have one choice a request: Anthropic's, Ollama's, Responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dure.server.http.sse import cancel_on_disconnect

if TYPE_CHECKING:
    from starlette.requests import Request

    from dure.chat.output import Chunk
    from dure.server.serving.generation import Generation


async def read_all(
    request: Request, generation: Generation, push: Callable[[Chunk], object]
) -> None:
    """Push every chunk. If the client disconnects, stop the generation and raise ClientGone."""

    async def read() -> None:
        async for _, chunk in generation:
            push(chunk)

    try:
        await cancel_on_disconnect(request.receive, read())
    finally:
        generation.close()
