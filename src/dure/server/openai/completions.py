"""OpenAI's completions: one or more prompts as text or token ids, with echo and suffix (FIM)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dure.chat.usage import Usage
from dure.errors import InvalidRequestError
from dure.server import limits
from dure.server.errors import invalid
from dure.server.http.sse import (
    DONE,
    FrameStream,
    cancel_on_disconnect,
    data,
    json_response,
    json_text,
    sse_error,
)
from dure.server.openai import chat, sampling
from dure.server.openai.schemas import CompletionBody
from dure.server.openai.usage import beside, completion_usage, progress, timings, usage_of
from dure.server.serving.generation import Generation, Progress
from dure.server.wire.body import admitted, converted, read_as
from dure.server.wire.logprobs import TextOffset, completion_logprobs
from dure.server.wire.tenant import tenant
from dure.server.wire.thinking import first
from dure.text.fim import infill_prompt, infill_stops

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from dure.chat.output import Completion
    from dure.chat.request import Format
    from dure.engine.params import SamplingParams
    from dure.engine.request import TokenLogprobs
    from dure.llm import LLM
    from dure.server.serving.service import Service


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """Return the prompts, one or several.

    Raises a 400 if there is none, or if the choices of all are too many.
    """
    prompt = body.prompt
    if prompt is None:
        raise invalid("prompt is missing.", "prompt")
    listed: list[Any] = [prompt]
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        listed = list(prompt)
    if len(listed) * (body.n or 1) > limits.MAX_CHOICES:
        raise invalid(
            f"{len(listed)} prompts of {body.n or 1} answers each are more than "
            f"{limits.MAX_CHOICES} answers.",
            "prompt",
        )
    return listed


def max_tokens_of(body: CompletionBody) -> int:
    """Return max_tokens, by any of its names; OpenAI's default is 16."""
    longest: int = first(body.max_tokens, body.n_predict, body.max_new_tokens, body.num_predict, 16)
    return longest


def completion_params(body: CompletionBody) -> SamplingParams:
    """Read the sampling parameters of a completion. OpenAI's default of max_tokens is 16."""
    longest = max_tokens_of(body)
    if longest == 0 and not body.echo:
        raise invalid("max_tokens is 0: that is of use with echo alone.", "max_tokens")
    if body.best_of not in (None, 1, body.n):
        raise invalid("best_of is not supported: ask for n, and take the best.", "best_of")
    more = {"prompt_logprobs": body.logprobs} if body.echo else {}
    # For max_tokens=0 we generate one token that is not shown: the prompt is computed and scored.
    return sampling.sampling_params(
        body, max_tokens=max(longest, 1) if longest != -1 else -1, logprobs=body.logprobs, **more
    )


def with_suffix(body: CompletionBody, prompt: str | list[int], llm: LLM) -> list[int]:
    """Build the FIM prompt that asks for the text between the prompt and the body's suffix."""
    if not isinstance(prompt, str):
        raise InvalidRequestError("A suffix goes with a prompt that is text, not token ids.")
    llm.request_builder.check_length([prompt, body.suffix or ""])
    return infill_prompt(llm.tokenizer, prompt, body.suffix or "")


@dataclass(frozen=True)
class Asked:
    """What a body asks: its prompts, how each is continued, and in which form."""

    prompts: Sequence[str | list[int]]
    params: SamplingParams
    format: Format | None

    @classmethod
    def of(cls, body: CompletionBody) -> Asked:
        """Read the body."""
        return cls(prompts_of(body), completion_params(body), sampling.format_of(body))


async def ask(
    service: Service, body: CompletionBody, asked: Asked, *, key: str, priority: int
) -> list[Generation]:
    """Start a generation for each prompt; if one is refused, stop all."""
    prompts, params = asked.prompts, asked.params
    if body.suffix:
        prompts, stops = await service.with_model(
            body.model,
            lambda llm: (
                [with_suffix(body, prompt, llm) for prompt in prompts],
                infill_stops(llm.tokenizer),
            ),
        )
        params = replace(params, stop_token_ids=[*params.stop_token_ids, *stops])
    begun: list[Generation] = []
    try:
        for prompt in prompts:
            begun.append(
                await service.complete(
                    body.model,
                    prompt,
                    params,
                    key=key,
                    priority=priority,
                    format=asked.format,
                )
            )
    except BaseException:
        for generation in begun:
            generation.close()
        raise
    return begun


async def complete(service: Service, request: Request) -> Response:
    """Continue texts or token ids, whole or as a stream of server-sent events."""
    body = await read_as(request, CompletionBody)
    asked = await converted(request, body, lambda: Asked.of(body))
    begun = ask(service, body, asked, key=tenant(request), priority=sampling.priority_of(body))
    generations = await admitted(request, begun)

    def close() -> None:
        for generation in generations:
            generation.close()

    if body.stream:
        frames = completion_chunks(service, generations, body)
        return FrameStream(frames, close, on_error=sse_error)
    try:
        await cancel_on_disconnect(request.receive, _finished(generations))
        return await service.built(
            _scored(generations, body), lambda: json_response(completion(generations, body))
        )
    finally:
        close()


async def _finished(generations: Sequence[Generation]) -> None:
    for generation in generations:
        async for _ in generation:
            pass


def _scored(generations: Sequence[Generation], body: CompletionBody) -> int:
    """Count the tokens whose texts or log-probabilities are written."""
    tokens = 0
    for generation in generations:
        if body.echo:
            tokens += len(generation.prompt_ids) * len(generation.completions)
        if body.logprobs is not None:
            tokens += sum(len(done.token_ids) for done in chat.finished(generation))
    return tokens


def completion(generations: Sequence[Generation], body: CompletionBody) -> dict[str, Any]:
    """Return the choices, all of which are over, as a completion."""
    choices: list[dict[str, Any]] = []
    for generation in generations:
        for done in chat.finished(generation):
            choices.append(_choice(len(choices), generation, done, body))
    leading = generations[0]
    return {
        **_start(leading),
        "choices": choices,
        "usage": _usage(generations, shown=max_tokens_of(body) != 0),
        "timings": timings(chat.finished(leading)[0].usage),
    }


async def completion_chunks(
    service: Service, generations: Sequence[Generation], body: CompletionBody
) -> AsyncGenerator[bytes, None]:
    """Stream the choices as server-sent events."""
    leading = generations[0]
    tokenizer = leading.tokenizer
    start = _start(leading)
    head = json.dumps(start, ensure_ascii=False, separators=(",", ":"))[:-1]
    width = body.n or 1
    offsets = [TextOffset() for _ in range(width * len(generations))]
    if body.echo and body.logprobs is None:
        for number, generation in enumerate(generations):
            ids = generation.prompt_ids
            text = await service.built(len(ids), partial(tokenizer.decode, ids))
            for choice in range(width):
                yield _frame(head, {"index": number * width + choice, "text": text})
    async for number, item in _merged(generations):
        if isinstance(item, Progress):
            if body.return_progress:
                read = progress(item, generations[number].times.asked)
                yield data({**start, "choices": [], "prompt_progress": read})
            continue
        choice, chunk = item
        if chunk.prompt_logprobs is not None:
            at = offsets[number * width + choice]
            scored = partial(_echoed, generations[number], chunk.prompt_logprobs, at)
            begun = {"index": number * width + choice}
            yield await service.built(
                len(chunk.prompt_logprobs), partial(_echoed_frame, head, begun, scored)
            )
        entry: dict[str, Any] = {"index": number * width + choice, "text": chunk.text}
        if chunk.logprobs is not None:
            entry["logprobs"] = completion_logprobs(
                [chunk.logprobs], [chunk.token_id], tokenizer, offsets[entry["index"]]
            )
        if body.return_token_ids:
            entry["token_ids"] = [chunk.token_id]
        also = beside(chunk, body, leading.prices)
        if chunk.completion is not None:
            entry["finish_reason"] = chunk.completion.finish_reason
            if entry["index"] == 0:
                also["timings"] = timings(chunk.completion.usage)
        yield _frame(head, entry, also)
    if body.stream_options is not None and body.stream_options.include_usage:
        yield data({**start, "choices": [], "usage": _usage(generations)})
    yield DONE


async def _merged(
    generations: Sequence[Generation],
) -> AsyncGenerator[tuple[int, Any], None]:
    """Yield (number of the generation, update) of all generations, in the order of arrival."""
    if len(generations) == 1:
        async for item in generations[0].updates():
            yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(limits.MAX_BUFFERED_CHUNKS)

    async def pump(number: int, generation: Generation) -> None:
        try:
            async for item in generation.updates():
                await queue.put((number, item))
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(pump(*each)) for each in enumerate(generations)]
    try:
        open_ones = len(tasks)
        while open_ones:
            number, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                open_ones -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()


def _start(generation: Generation) -> dict[str, Any]:
    return {
        "id": f"cmpl-{generation.id}",
        "object": "text_completion",
        "created": generation.created,
        "model": generation.model,
        "system_fingerprint": chat.FINGERPRINT,
    }


def _choice(
    index: int,
    generation: Generation,
    done: Completion,
    body: CompletionBody,
) -> dict[str, Any]:
    tokenizer = generation.tokenizer
    shown = max_tokens_of(body) != 0
    prompt_ids = generation.prompt_ids if body.echo else []
    before = tokenizer.decode(prompt_ids) if body.echo else ""
    choice: dict[str, Any] = {
        "index": index,
        "text": before + (done.text if shown else ""),
        "logprobs": None,
        "finish_reason": done.finish_reason if shown else "length",
    }
    if body.logprobs is not None:
        entries: list[TokenLogprobs | None] = list(done.prompt_logprobs or ()) if body.echo else []
        ids = list(prompt_ids)
        if shown:
            entries += done.logprobs or ()
            ids += done.token_ids
        choice["logprobs"] = completion_logprobs(entries, ids, tokenizer, TextOffset())
    if body.return_token_ids:
        choice["token_ids"] = list(done.token_ids) if shown else []
        choice["prompt_token_ids"] = list(generation.prompt_ids)
    return choice


def _echoed(
    generation: Generation, logprobs: Sequence[TokenLogprobs | None], at: TextOffset
) -> dict[str, Any]:
    """Write the prompt as a part of a stream, with its log-probabilities."""
    ids, tokenizer = generation.prompt_ids, generation.tokenizer
    scored = completion_logprobs(list(logprobs), list(ids), tokenizer, at)
    return {"text": tokenizer.decode(ids), "logprobs": scored}


def _echoed_frame(head: str, begun: dict[str, Any], scored: Callable[[], dict[str, Any]]) -> bytes:
    return _frame(head, {**begun, **scored()})


def _usage(generations: Sequence[Generation], *, shown: bool = True) -> dict[str, Any]:
    """Add up the usage of all prompts; without `shown`, of the prompts alone."""
    each = (usage_of(one, chat.finished(one) if shown else []) for one in generations)
    return completion_usage(Usage.of_prompts(each), generations[0].prices)


def _frame(head: str, choice: dict[str, Any], also: dict[str, Any] | None = None) -> bytes:
    whole = {"logprobs": None, "finish_reason": None, **choice}
    text = json_text({"choices": [whole], **(also or {})})
    return f"data: {head},{text[1:]}\n\n".encode()
