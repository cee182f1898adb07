"""OpenAI's Responses API: responses are stored, so that a later request can continue them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from dure.server.errors import invalid
from dure.server.http.sse import FrameStream, json_response
from dure.server.http.sse import event as sse
from dure.server.openai.responses_request import chat_request, input_messages, sampling
from dure.server.openai.responses_schemas import InputBody, ResponsesBody
from dure.server.openai.responses_writer import ResponseWriter
from dure.server.serving.response_store import Store, StoredResponse
from dure.server.wire.blocks import new_id
from dure.server.wire.body import admitted, converted, read_as
from dure.server.wire.single_choice import read_all
from dure.server.wire.tenant import tenant

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service


async def create(service: Service, request: Request) -> Response:
    """POST /v1/responses: generate a response, whole or as a stream of events."""
    body, store = await read_as(request, ResponsesBody), service.kept
    key = tenant(request)
    before = _before(body, store, key)
    chat, params, items, said = await converted(
        request,
        body,
        lambda: (chat_request(body, before), sampling(body), _items(body), input_messages(body)),
    )
    generation = await admitted(request, service.chat(body.model, chat, params, key=key))
    stored = body.store is not False
    writer = ResponseWriter(
        body,
        generation.model,
        stored=stored,
        digits=generation.id,
        prices=generation.prices,
    )
    kept = StoredResponse(key, writer.response, items, [*before, *said], generation)
    if body.stream:
        if stored:
            store.keep(kept)
        return FrameStream(
            _frames(generation, writer, store, kept),
            lambda: _close(store, kept),
            on_error=lambda error: b"".join(
                sse(event["type"], event) for event in writer.fail(error.message)
            ),
        )
    await read_all(request, generation, lambda chunk: list(writer.push(chunk)))
    _finish(store, kept, writer)
    return json_response(writer.response)


async def input_tokens(service: Service, request: Request) -> Response:
    """POST /v1/responses/input_tokens: count the tokens of the prompt."""
    body = await read_as(request, InputBody)
    before = _before(body, service.kept, tenant(request))
    chat = await converted(request, body, lambda: chat_request(body, before))
    counted = await service.count(body.model, chat)
    return json_response({"object": "response.input_tokens", "input_tokens": counted})


async def get(service: Service, request: Request) -> Response:
    """GET /v1/responses/{id}: return the response as it is now."""
    if request.query_params.get("stream") in ("true", "1"):
        raise invalid("A response that is kept is not streamed again.", "stream")
    return json_response(_found(service, request).response)


async def input_items(service: Service, request: Request) -> Response:
    """GET /v1/responses/{id}/input_items: list the input, newest first unless `order` is asc."""
    items = _found(service, request).items
    if request.query_params.get("order", "desc") != "asc":
        items = items[::-1]
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return json_response({"object": "list", "data": items, **ends, "has_more": False})


async def delete(service: Service, request: Request) -> Response:
    """DELETE /v1/responses/{id}: delete the stored response."""
    kept = _found(service, request)
    service.kept.drop(kept)
    return json_response({"id": kept.id, "object": "response.deleted", "deleted": True})


async def cancel(service: Service, request: Request) -> Response:
    """POST /v1/responses/{id}/cancel: stop a response that is being streamed."""
    kept = _found(service, request)
    if kept.generation is None:
        raise invalid(f"The response is {kept.response['status']}; only a running one can end.")
    kept.generation.close()
    kept.response["status"] = "cancelled"
    return json_response(kept.response)


def _found(service: Service, request: Request) -> StoredResponse:
    """Return the stored response that the path names."""
    return service.kept.find(request.path_params["response_id"], tenant(request))


def _before(body: InputBody, store: Store, key: str) -> list[dict[str, Any]]:
    """Return the messages of the previous response; [] if there is none."""
    if body.previous_response_id is None:
        return []
    kept = store.find(body.previous_response_id, key)
    if kept.generation is not None:
        raise invalid("The previous response is not complete.", "previous_response_id")
    return kept.messages


def _items(body: ResponsesBody) -> list[dict[str, Any]]:
    """Return the input as items with ids, as the API lists them."""
    if body.input is None:
        return []
    if isinstance(body.input, str):
        content = [{"type": "input_text", "text": body.input}]
        items: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": content}]
    else:
        items = [item.model_dump(exclude_none=True) for item in body.input]
    return [{"id": new_id("item"), "type": "message", **item} for item in items]


async def _frames(
    generation: Generation, writer: ResponseWriter, store: Store, kept: StoredResponse
) -> AsyncIterator[bytes]:
    for event in writer.start():
        yield sse(event["type"], event)
    async for _, chunk in generation:
        events = list(writer.push(chunk))
        if chunk.completion is not None:  # stored before the client learns that it is complete
            _finish(store, kept, writer)
        for event in events:
            yield sse(event["type"], event)
    if kept.generation is not None:  # cancelled
        for event in writer.cancel():
            yield sse(event["type"], event)
        _finish(store, kept, writer)


def _finish(store: Store, kept: StoredResponse, writer: ResponseWriter) -> None:
    """Complete the response and store it, so that the next one can continue it."""
    kept.generation = None
    kept.messages = [*kept.messages, writer.message()]
    if kept.response["store"]:
        store.keep(kept)


def _close(store: Store, kept: StoredResponse) -> None:
    """Stop a response whose client has disconnected; a partial one is not stored."""
    if kept.generation is not None:
        kept.generation.close()
        store.drop(kept)
