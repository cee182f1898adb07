"""Generation for the APIs that have one choice a request: Anthropic's, Ollama's, Responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dure.errors import ContextLengthError, PromptLengthError
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
    """Start to generate with max_tokens as a ceiling: less, if the context has not enough room.

    For APIs in which max_tokens is mandatory. A prompt that does not fit by itself still raises a
    ContextLengthError.
    """
    try:
        return await service.chat(model, chat, params, key=key, keep_alive=keep_alive)
    except PromptLengthError:
        raise
    except ContextLengthError:
        if params.max_tokens is None:
            raise
    fitting = replace(params, max_tokens=None)
    return await service.chat(model, chat, fitting, key=key, keep_alive=keep_alive)


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
