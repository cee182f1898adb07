"""Ollama's API: chat and generate, streamed as lines of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dure.errors import ModelNotFoundError
from dure.server.errors import ollama_body
from dure.server.http.sse import FrameStream, json_response
from dure.server.ollama import request as reading
from dure.server.ollama.schemas import Asked, ChatBody, GenerateBody
from dure.server.wire.blocks import BlockDelta, ContentBlocks, arguments_of
from dure.server.wire.body import admitted, converted, read_as
from dure.server.wire.cost import energy_fields
from dure.server.wire.logprobs import chat_logprobs
from dure.server.wire.single_choice import read_all
from dure.server.wire.tenant import tenant
from dure.text.fim import infill_prompt

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.chat.output import Chunk, Completion
    from dure.llm import LLM
    from dure.metering.prices import Prices
    from dure.server.serving.generation import Generation
    from dure.server.serving.service import Service
    from dure.text.tokenizer import Tokenizer

NDJSON = "application/x-ndjson"
LATEST = ":latest"


class LineWriter:
    """Writes one response in Ollama's form: a line for each chunk, or the whole at the end."""

    def __init__(
        self,
        model: str,
        *,
        chat: bool,
        began: float,
        tokenizer: Tokenizer | None,
        prices: Prices | None = None,
    ) -> None:
        """began: when the request came, by time.perf_counter. tokenizer: if logprobs are wanted.

        prices: what is charged.
        """
        self._model = model
        self._chat = chat
        self._began = began
        self._loaded = time.perf_counter()
        self._tokenizer = tokenizer
        self._prices = prices
        self._pieces = ContentBlocks()
        self._said = ""
        self._thought = ""
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}

    def push(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Return the lines of one chunk."""
        said, thought, calls = "", "", []
        changes = [change for event in chunk.events for change in self._pieces.push(event)]
        if chunk.completion is not None:
            changes += self._pieces.finish()
        for change in changes:
            if change.piece.kind == "call":
                call, text = self._called(change)
                calls += call
                said += text
            elif change.piece.kind == "content":
                said += change.text
            else:
                thought += change.text
        shown = self._shown(chunk)
        lines = []
        if said or thought or calls or (shown and chunk.completion is None):
            lines.append({**self._line(said, thought, calls), "done": False, **shown})
            shown = {}
        self._said += said
        self._thought += thought
        self._calls += calls
        if chunk.completion is not None:
            self._last = self._end(chunk.completion)
            lines.append({**self._line("", "", []), **self._last, **shown})
        return lines

    def whole(self) -> dict[str, Any]:
        """Return the whole response as one object, after its last chunk was pushed."""
        line = self._line(self._said, self._thought, self._calls)
        logprobs = {"logprobs": self._logprobs} if self._logprobs else {}
        return {**line, **self._last, **logprobs}

    def _called(self, change: BlockDelta) -> tuple[list[dict[str, Any]], str]:
        """Return a finished call, or the text of one that was cut short."""
        if change.what != "close":
            return [], ""
        arguments = arguments_of(change.piece.text)
        if arguments is None:
            return [], f"{change.piece.name}({change.piece.text}"
        function = {
            "index": len(self._calls),
            "name": change.piece.name,
            "arguments": arguments,
        }
        return [{"id": change.piece.id, "function": function}], ""

    def _shown(self, chunk: Chunk) -> dict[str, Any]:
        if self._tokenizer is None or chunk.logprobs is None:
            return {}
        found = (chat_logprobs([chunk.logprobs], self._tokenizer) or {})["content"]
        self._logprobs += found
        return {"logprobs": found}

    def _line(self, said: str, thought: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        line: dict[str, Any] = {"model": self._model, "created_at": now}
        thinking = {"thinking": thought} if thought else {}
        if not self._chat:
            return {**line, "response": said, **thinking}
        message: dict[str, Any] = {"role": "assistant", "content": said, **thinking}
        if calls:
            message["tool_calls"] = list(calls)
        return {**line, "message": message}

    def _end(self, completion: Completion) -> dict[str, Any]:
        usage, prices = completion.usage, self._prices
        charged: dict[str, Any] = {}
        if prices is not None:
            charged = {"cost": usage.money(prices), "currency": prices.currency}
        return {
            "done": True,
            "done_reason": completion.finish_reason,
            "total_duration": _nanoseconds(time.perf_counter() - self._began),
            "load_duration": _nanoseconds(self._loaded - self._began),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(usage.prefill_s),
            "eval_count": usage.output_tokens,
            "eval_duration": _nanoseconds(usage.decode_s),
            "processor_duration": _nanoseconds(usage.cost.cpu_s),
            **energy_fields(usage),
            **charged,
        }


async def chat(service: Service, request: Request) -> Response:
    """POST /api/chat: generate the reply to a chat, as lines unless `stream` is false."""
    began = time.perf_counter()
    body = await read_as(request, ChatBody)
    body.model = known_name(service, body.model)
    if not body.messages:
        return await _load(service, body, {"message": {"role": "assistant", "content": ""}})
    asked, params = await converted(
        request, body, lambda: (reading.chat_request(body), reading.sampling(body))
    )

    async def begin() -> Generation:
        await _check_context(service, body)
        return await service.chat(
            body.model,
            asked,
            params,
            key=tenant(request),
            keep_alive=reading.keep_alive(body.keep_alive),
        )

    generation = await admitted(request, begin())
    return await _answer(request, body, generation, began)


async def generate(service: Service, request: Request) -> Response:
    """POST /api/generate: continue a prompt, as lines unless `stream` is false."""
    began = time.perf_counter()
    body = await read_as(request, GenerateBody)
    body.model = known_name(service, body.model)
    asked = await converted(request, body, lambda: reading.GenerateRequest.of(body))
    if not body.prompt and not body.suffix:
        return await _load(service, body, {"response": ""})
    generation = await admitted(request, _generated(service, body, asked, tenant(request)))
    return await _answer(request, body, generation, began)


def known_name(service: Service, asked: str) -> str:
    """Return the model's name, without the ":latest" that Ollama's clients add."""
    try:
        return service.registry.find(asked)
    except ModelNotFoundError:
        if not asked.endswith(LATEST):
            raise
    return service.registry.find(asked.removesuffix(LATEST))


async def _generated(
    service: Service, body: GenerateBody, asked: reading.GenerateRequest, key: str
) -> Generation:
    await _check_context(service, body)
    params, kept = asked.params, reading.keep_alive(body.keep_alive)
    if asked.chat is not None:
        return await service.chat(body.model, asked.chat, params, key=key, keep_alive=kept)
    text, suffix = body.prompt or "", body.suffix
    prompt: str | list[int] = text
    if suffix:

        def gap(llm: LLM) -> list[int]:
            llm.request_builder.check_length([text, suffix])
            return infill_prompt(llm.tokenizer, text, suffix)

        prompt = await service.with_model(body.model, gap)
    return await service.complete(
        body.model, prompt, params, key=key, keep_alive=kept, format=asked.format
    )


async def _check_context(service: Service, body: Asked) -> None:
    if body.options is not None and body.options.num_ctx is not None:
        context = await service.with_model(body.model, lambda llm: llm.context)
        reading.check_context(body, context)


async def _answer(request: Request, body: Asked, generation: Generation, began: float) -> Response:
    tokenizer = generation.tokenizer if body.logprobs else None
    is_chat = isinstance(body, ChatBody)
    writer = LineWriter(
        generation.model,
        chat=is_chat,
        began=began,
        tokenizer=tokenizer,
        prices=generation.prices,
    )
    if body.stream is False:
        await read_all(request, generation, writer.push)
        return json_response(writer.whole())
    return FrameStream(
        _frames(generation, writer),
        generation.close,
        on_error=lambda error: _frame(ollama_body(error)),
        ping=b"",  # its clients parse every line, an empty one too
        media_type=NDJSON,
    )


async def _frames(generation: Generation, writer: LineWriter) -> AsyncIterator[bytes]:
    async for _, chunk in generation:
        for line in writer.push(chunk):
            yield _frame(line)


async def _load(service: Service, body: Asked, empty: dict[str, Any]) -> Response:
    """Answer a request without a prompt: load the model, or let it be unloaded."""
    kept = reading.keep_alive(body.keep_alive)
    entry = await service.registry.acquire(body.model, keep_alive=kept)
    service.registry.release(entry)
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    reason = "unload" if kept == 0 else "load"
    line = {"model": body.model, "created_at": now, **empty, "done": True, "done_reason": reason}
    return json_response(line)


def _frame(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
