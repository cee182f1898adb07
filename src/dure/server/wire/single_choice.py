"""Asking the service for one answer, as the wire formats do that have one answer a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dure.errors import ContextLengthError
from dure.server.http.sse import cancel_on_disconnect

if TYPE_CHECKING:
    from starlette.requests import Request

    from dure.chat.output import Chunk
    from dure.chat.request import ChatRequest
    from dure.engine.params import SamplingParams
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service


async def chat_up_to(
    service: Service,
    model: str | None,
    chat: ChatRequest,
    params: SamplingParams,
    *,
    key: str,
    keep_alive: float | None = None,
) -> Generation:
    """The answer as it grows, of max_tokens at most or of as many as the context has room for.

    For APIs in which a number of tokens must be given and is a ceiling, not a demand. A prompt
    that does not fit by itself is still a ContextLengthError.
    """
    try:
        return await service.chat(model, chat, params, key=key, keep_alive=keep_alive)
    except ContextLengthError:
        if params.max_tokens is None:
            raise
    fitting = replace(params, max_tokens=None)
    return await service.chat(model, chat, fitting, key=key, keep_alive=keep_alive)


async def read_all(
    request: Request, generation: Generation, push: Callable[[Chunk], object]
) -> None:
    """Push every chunk; ClientGone, and the answer ends, if the client disconnects."""

    async def read() -> None:
        async for _, chunk in generation:
            push(chunk)

    try:
        await cancel_on_disconnect(request.receive, read())
    finally:
        generation.close()
