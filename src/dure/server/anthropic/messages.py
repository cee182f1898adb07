"""Anthropic's Messages API: the response as content blocks, whole or as a stream of events."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dure.chat.request import ChatRequest, Thinking
from dure.chat.usage import Usage
from dure.server.anthropic.request import chat_request, sampling
from dure.server.anthropic.schemas import CountBody, MessagesBody
from dure.server.errors import HTTPError, anthropic_body
from dure.server.http.sse import FrameStream, json_response
from dure.server.http.sse import event as sse
from dure.server.wire.blocks import BlockDelta, ContentBlock, ContentBlocks, arguments_of, new_id
from dure.server.wire.body import admitted, converted, read_as
from dure.server.wire.cost import cost_fields
from dure.server.wire.single_choice import read_all
from dure.server.wire.tenant import tenant

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.chat.output import Chunk, Completion
    from dure.engine.params import SamplingParams
    from dure.metering.prices import Prices
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service

Event = dict[str, Any]
PING = sse("ping", {"type": "ping"})


class MessageWriter:
    """Writes one response in Anthropic's form: events as chunks come, or the whole at the end."""

    def __init__(
        self,
        model: str,
        *,
        prompt_tokens: int,
        stops: Sequence[str] = (),
        digits: str | None = None,
        prices: Prices | None = None,
    ) -> None:
        """stops: the request's own stop sequences. digits: those of the message's id.

        prices: what is charged.
        """
        self.id = new_id("msg", digits)
        self.model = model
        self._prompt_tokens = prompt_tokens
        self._stops = stops
        self._prices = prices
        self._pieces = ContentBlocks()
        self._completion: Completion | None = None

    def start(self, cached_tokens: int = 0) -> Iterator[Event]:
        """Yield the first event of a stream, when the prompt's length is known."""
        cached = min(cached_tokens, self._prompt_tokens)
        usage = _usage(Usage(self._prompt_tokens, cached))
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield {"type": "message_start", "message": message}

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of one chunk; after the last chunk, also those that end the stream."""
        for event in chunk.events:
            for change in self._pieces.push(event):
                yield from self._changed(change)
        if chunk.completion is None:
            return
        self._completion = chunk.completion
        for change in self._pieces.finish():
            yield from self._changed(change)
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._final_usage()}
        yield {"type": "message_stop"}

    def message(self) -> Event:
        """Return the whole message, after its last chunk was pushed."""
        blocks = [_whole(piece) for piece in self._pieces.all]
        return {**self._message(blocks), **self._stop(), "usage": self._final_usage()}

    def _message(self, content: list[Event]) -> Event:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
        }

    def _changed(self, change: BlockDelta) -> Iterator[Event]:
        piece = change.piece
        if change.what == "open":
            yield {
                "type": "content_block_start",
                "index": piece.index,
                "content_block": _empty(piece),
            }
        elif change.what == "more":
            yield self._delta(piece, _delta(piece.kind, change.text))
        else:
            if piece.kind == "reasoning":
                signed = {"type": "signature_delta", "signature": _signature(piece.text)}
                yield self._delta(piece, signed)
            yield {"type": "content_block_stop", "index": piece.index}

    @staticmethod
    def _delta(piece: ContentBlock, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": piece.index, "delta": delta}

    def _stop(self) -> Event:
        completion = self._done()
        reason = "end_turn"
        if completion.finish_reason == "length":
            reason = "max_tokens"
        elif completion.stopped in self._stops:
            reason = "stop_sequence"
        elif completion.tool_calls:
            reason = "tool_use"
        sequence = completion.stopped if reason == "stop_sequence" else None
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _final_usage(self) -> Event:
        usage = self._done().usage
        return {
            **_usage(usage),
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
            **cost_fields(usage, self._prices),
        }

    def _done(self) -> Completion:
        if self._completion is None:
            raise RuntimeError("a message was asked for before it was over")
        return self._completion


def _usage(usage: Usage) -> Event:
    """Write the usage. As Anthropic counts, input_tokens leaves out cached tokens."""
    return {
        "input_tokens": usage.computed_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def _empty(piece: ContentBlock) -> Event:
    if piece.kind == "call":
        return {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
    if piece.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": "", "citations": None}


def _delta(kind: str, text: str) -> Event:
    if kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _whole(piece: ContentBlock) -> Event:
    """Write a finished block. A call that was cut short is not a call: it is written as text."""
    block = _empty(piece)
    if piece.kind == "call":
        arguments = arguments_of(piece.text)
        if arguments is None:
            return {"type": "text", "text": f"{piece.name}({piece.text}", "citations": None}
        return {**block, "input": arguments}
    if piece.kind == "reasoning":
        return {**block, "thinking": piece.text, "signature": _signature(piece.text)}
    return {**block, "text": piece.text}


def _signature(thoughts: str) -> str:
    """Return a signature that clients expect with reasoning and send back. It is never checked."""
    return hashlib.sha256(thoughts.encode()).hexdigest()


async def messages(service: Service, request: Request) -> Response:
    """POST /v1/messages: generate a message, whole or as a stream of events."""
    body = await read_as(request, MessagesBody)
    chat, params = await converted(request, body, lambda: (chat_request(body), sampling(body)))
    generation = await admitted(request, _begun(service, request, body.model, chat, params))
    total = generation.progress.total
    writer = MessageWriter(
        generation.model,
        prompt_tokens=total,
        stops=params.stop,
        digits=generation.id,
        prices=generation.prices,
    )
    if body.stream:
        return FrameStream(
            _frames(generation, writer), generation.close, on_error=_error_frame, ping=PING
        )
    await read_all(request, generation, lambda chunk: list(writer.push(chunk)))
    return json_response(writer.message())


async def _begun(
    service: Service, request: Request, model: str | None, chat: ChatRequest, params: SamplingParams
) -> Generation:
    """Begin the answer; where the model cannot think, without thoughts, which a header says.

    Claude Code asks every model for them, whether it can or not.
    """
    if chat.thinking.is_demanded:
        thinking = chat.thinking
        if not await service.with_model(model, lambda llm: llm.request_builder.can(thinking)):
            chat = replace(chat, thinking=Thinking("off"))
            request.state.ignored = [*request.state.ignored, "thinking"]
    return await service.chat(model, chat, params, key=tenant(request))


async def count_tokens(service: Service, request: Request) -> Response:
    """POST /v1/messages/count_tokens: count the tokens of the prompt."""
    body = await read_as(request, CountBody)
    chat = await converted(request, body, lambda: chat_request(body))
    return json_response({"input_tokens": await service.count(body.model, chat)})


async def _frames(generation: Generation, writer: MessageWriter) -> AsyncIterator[bytes]:
    for event in writer.start(generation.progress.cached):
        yield sse(event["type"], event)
    async for _, chunk in generation:
        for event in writer.push(chunk):
            yield sse(event["type"], event)


def _error_frame(error: HTTPError) -> bytes:
    return sse("error", anthropic_body(error))
