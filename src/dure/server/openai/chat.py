"""OpenAI's chat completions: from a body to a ChatRequest, and from chunks to the response."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dure import __version__
from dure.chat.request import ChatRequest
from dure.server.errors import invalid
from dure.server.http.sse import (
    DONE,
    FrameStream,
    cancel_on_disconnect,
    data,
    json_response,
    sse_error,
)
from dure.server.openai import sampling
from dure.server.openai.schemas import ChatBody, ControlBody
from dure.server.openai.usage import beside, completion_usage, progress, timings, usage_of
from dure.server.serving.generation import Generation, Progress
from dure.server.wire.body import admitted, converted, read_as
from dure.server.wire.logprobs import chat_logprobs
from dure.server.wire.prefill import is_prefill
from dure.server.wire.tenant import tenant
from dure.server.wire.thinking import variables_of
from dure.server.wire.validation import refuse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.chat.dialects import Event
    from dure.chat.output import Chunk, Completion
    from dure.engine.params import SamplingParams
    from dure.server.serving.service import Service

FINGERPRINT = f"dure-{__version__}"


def chat_request(body: ChatBody) -> ChatRequest:
    """Convert the body to a ChatRequest."""
    tools, choice = sampling.tools_of(body)
    return ChatRequest(
        messages=[message.model_dump(exclude_none=True) for message in body.messages],
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        thinking=sampling.chat_thinking(body),
        format=sampling.format_of(body),
        template_variables=variables_of(body),
        continue_final=continues(body),
        prediction=sampling.prediction_of(body),
    )


def continues(body: ChatBody) -> bool:
    """Whether the answer continues the last message, as llama-server has it for the assistant's.

    `continue_final_message`, or `add_generation_prompt` as vLLM has it, says otherwise.
    """
    wanted, is_new_turn = body.continue_final_message, body.add_generation_prompt
    if wanted and is_new_turn:
        raise invalid(
            "continue_final_message and add_generation_prompt are both true: an answer continues "
            "the last message, or is a new one.",
            "continue_final_message",
        )
    if is_new_turn is False and wanted is False:
        raise invalid(
            "add_generation_prompt is false: the prompt would not say whose turn it is.",
            "add_generation_prompt",
        )
    last = body.messages[-1]
    if wanted is not None or is_new_turn:
        return wanted is True
    if is_prefill(last):
        return True
    if is_new_turn is False:
        raise invalid(
            "add_generation_prompt is false, and the last message is not one of the assistant's "
            "that could be continued.",
            "add_generation_prompt",
        )
    return False


def chat_params(body: ChatBody) -> SamplingParams:
    """Read the sampling parameters of a chat."""
    longest = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return sampling.sampling_params(body, max_tokens=longest, logprobs=logprobs)


async def chat(service: Service, request: Request) -> Response:
    """Generate the reply to a chat, whole or as a stream of server-sent events."""
    body = await read_as(request, ChatBody)
    asked, params = await converted(request, body, lambda: (chat_request(body), chat_params(body)))
    begun = service.chat(
        body.model, asked, params, key=tenant(request), priority=sampling.priority_of(body)
    )
    generation = await admitted(request, begun)
    if body.stream:
        frames = chat_chunks(generation, body)
        return FrameStream(frames, generation.close, on_error=sse_error)
    try:
        await cancel_on_disconnect(request.receive, _all(generation))
        scored = sum(len(done.token_ids) for done in finished(generation)) if body.logprobs else 0
        return await service.built(scored, lambda: json_response(chat_completion(generation)))
    finally:
        generation.close()


async def control(service: Service, request: Request) -> Response:
    """Control a running chat completion: `reasoning_end` makes the model stop reasoning."""
    body = await read_as(request, ControlBody)
    refuse(body, {})
    service.end_thinking(body.id, key=tenant(request))
    return json_response({"id": body.id, "action": body.action, "success": True})


async def _all(generation: Generation) -> None:
    async for _ in generation:
        pass


def chat_completion(generation: Generation) -> dict[str, Any]:
    """Return the choices, all of which are over, as a chat completion."""
    done = finished(generation)
    return {
        "id": f"chatcmpl-{generation.id}",
        "object": "chat.completion",
        "created": generation.created,
        "model": generation.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": index,
                "message": _message(completion),
                "logprobs": chat_logprobs(completion.logprobs, generation.tokenizer),
                "finish_reason": finish_reason(completion),
            }
            for index, completion in enumerate(done)
        ],
        "usage": completion_usage(usage_of(generation, done), generation.prices),
        "timings": timings(done[0].usage),
    }


async def chat_chunks(generation: Generation, body: ChatBody) -> AsyncGenerator[bytes, None]:
    """Stream the response as server-sent events of chat completion chunks."""
    start = {
        "id": f"chatcmpl-{generation.id}",
        "object": "chat.completion.chunk",
        "created": generation.created,
        "model": generation.model,
        "system_fingerprint": FINGERPRINT,
    }
    head = json.dumps(start, ensure_ascii=False, separators=(",", ":"))[:-1]
    for index in range(len(generation.completions)):
        yield _frame(head, index, {"role": "assistant", "content": ""})
    began = generation.times.asked
    async for item in generation.updates():
        if isinstance(item, Progress):
            if body.return_progress:
                yield data({**start, "choices": [], "prompt_progress": progress(item, began)})
            continue
        yield _chunk(head, *item, body=body, generation=generation)
    done = finished(generation)
    if body.stream_options is not None and body.stream_options.include_usage:
        usage = completion_usage(usage_of(generation, done), generation.prices)
        yield data({**start, "choices": [], "usage": usage})
    yield DONE


def deltas(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Convert the parser's events of a step to OpenAI's deltas; runs of one kind are merged."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event.kind == "content":
            delta: dict[str, Any] = {"content": event.text}
        elif event.kind == "reasoning":
            delta = {"reasoning_content": event.text, "reasoning": event.text}
        elif event.kind == "call":
            function = {"name": event.name, "arguments": event.text}
            call = {"index": event.index, "id": event.id, "type": "function", "function": function}
            delta = {"tool_calls": [call]}
        elif event.kind == "arguments":
            call = {"index": event.index, "function": {"arguments": event.text}}
            delta = {"tool_calls": [call]}
        else:
            continue
        if found and found[-1].keys() == delta.keys() and "tool_calls" not in delta:
            for name, text in delta.items():
                found[-1][name] += text
        else:
            found.append(delta)
    return found


def finished(generation: Generation) -> list[Completion]:
    """Return the completions of a generation that is over."""
    return [each for each in generation.completions if each is not None]


def finish_reason(completion: Completion) -> str:
    """Return OpenAI's finish_reason."""
    if completion.tool_calls and completion.finish_reason == "stop":
        return "tool_calls"
    return completion.finish_reason


def _chunk(head: str, index: int, chunk: Chunk, *, body: ChatBody, generation: Generation) -> bytes:
    """Write the events of one token."""
    more: dict[str, Any] = {}
    if chunk.logprobs is not None:
        more["logprobs"] = chat_logprobs([chunk.logprobs], generation.tokenizer)
    if body.return_token_ids:
        more["token_ids"] = [chunk.token_id]
    found = deltas(chunk.events) or ([{}] if more and chunk.completion is None else [])
    frames = [_frame(head, index, delta) for delta in found[:-1]]
    also = beside(chunk, body, generation.prices)
    if found:
        frames.append(_frame(head, index, found[-1], more, also))
        more = {}
    if chunk.completion is not None:
        last = {"timings": timings(chunk.completion.usage), **also} if index == 0 else also
        reason = {**more, "finish_reason": finish_reason(chunk.completion)}
        frames.append(_frame(head, index, {}, reason, last))
    return b"".join(frames)


def _frame(
    head: str,
    index: int,
    delta: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
) -> bytes:
    """Write one event. `head` is the JSON that all events of a stream begin with, encoded once."""
    choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
    if more:
        choice.update(more)
    tail = {"choices": [choice], **(also or {})}
    text = json.dumps(tail, ensure_ascii=False, separators=(",", ":"))
    return f"data: {head},{text[1:]}\n\n".encode()


def _message(completion: Completion) -> dict[str, Any]:
    calls = list(completion.tool_calls)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.content or (None if calls else ""),
    }
    if completion.reasoning:
        message["reasoning_content"] = message["reasoning"] = completion.reasoning
    if calls:
        message["tool_calls"] = calls
    return message
