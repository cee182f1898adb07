"""From the arguments of a call of LLM to checked requests, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from dure import arguments
from dure.arguments import Chat, Prompt
from dure.chat.request import ChatRequest, Format
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.chat.prompt import PreparedRequest, RequestBuilder
    from dure.pooling.config import PoolingConfig
    from dure.pooling.request import Input, PoolingBuilder, PreparedPooling


class Loaded(Protocol):
    """What preparing needs of an LLM."""

    name: str
    pooling: PoolingConfig
    request_builder: RequestBuilder

    @property
    def pooling_builder(self) -> PoolingBuilder:
        """Builds the requests of `embed` and `rank`."""
        ...


def request(
    llm: Loaded,
    prompt: str | Sequence[int] | ChatRequest,
    params: SamplingParams | None,
    *,
    format: Format | None = None,  # noqa: A002 - the word that requests use
    cache_salt: str = "",
    priority: int = 0,
    prediction: str | None = None,
) -> PreparedRequest:
    """Prepare a request of `LLM.prepare`."""
    llm.pooling.check_writes(llm.name)
    arguments.check_request(prompt, params, format, cache_salt, priority, prediction)
    return llm.request_builder.make(
        prompt,
        params,
        format=format,
        cache_salt=cache_salt,
        priority=priority,
        prediction=prediction or "",
    )


def completions(
    llm: Loaded,
    prompts: str | Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None,
) -> list[PreparedRequest]:
    """Prepare the prompts of `LLM.generate`."""
    listed = arguments.check_prompts(prompts)
    chosen = arguments.each_params(params, len(listed), "prompts")
    return arguments.of_each("prompt", partial(any_request, llm), listed, chosen)


def chats(
    llm: Loaded,
    messages: Chat | Sequence[Chat],
    params: SamplingParams | Sequence[SamplingParams] | None,
    **options: Any,
) -> tuple[list[PreparedRequest], bool]:
    """Prepare the chats of `LLM.chat`; return them, and whether a single one was given.

    options: tools, think, format and prediction.
    """
    listed = arguments.listed_chats(messages)
    is_single = listed is None
    several = [messages] if listed is None else listed
    chosen = arguments.each_params(params, len(several), "chats", single=is_single)
    make = partial(any_request, llm, **options)
    return arguments.of_each("chat", make, several, chosen), is_single


def stream(
    llm: Loaded, prompt: Prompt, params: SamplingParams | None, **options: Any
) -> PreparedRequest:
    """Prepare the prompt of `LLM.stream`. options: as for `chats`."""
    prepared = any_request(llm, prompt, params, **options)
    if prepared.params.n != 1:
        raise InvalidRequestError(
            f"A stream has one answer, and n is {prepared.params.n}.",
            hint="leave n out, or use generate() or chat()",
        )
    return prepared


def any_request(
    llm: Loaded,
    prompt: Prompt,
    params: SamplingParams | None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    think: bool | int | None = None,
    format: Format | None = None,  # noqa: A002
    prediction: str | None = None,
) -> PreparedRequest:
    """Prepare a text, token ids, the messages of a chat, or a ChatRequest."""
    arguments.check_params(params)
    asked = arguments.request_of(prompt, tools, think)
    if think is not None:
        check_think(llm, think)
    return request(llm, asked, params, format=format, prediction=prediction)


def check_think(llm: Loaded, think: bool | int | None) -> None:
    """Check what `LLM.check_think` checks."""
    arguments.check_think(think)
    llm.request_builder.check_thinking(arguments.thinking(think))


def embeddings(
    llm: Loaded,
    texts: str | Sequence[Input],
    *,
    prompt: str | None,
    prompt_name: str | None,
    dimensions: int | None,
    normalize: bool | None,
    truncate: bool | int,
) -> PreparedPooling:
    """Prepare the texts of `LLM.embed`."""
    arguments.check_pooling(dimensions=dimensions, normalize=normalize, truncate=truncate)
    return llm.pooling_builder.embeddings(
        arguments.check_prompts(texts),
        prompt=arguments.check_text("prompt", prompt),
        prompt_name=arguments.check_text("prompt_name", prompt_name),
        dimensions=dimensions,
        normalize=normalize,
        truncate=truncate,
    )


def ranking(
    llm: Loaded,
    query: str,
    documents: Sequence[str],
    *,
    top_n: int | None,
    instruction: str | None,
    truncate: bool | int,
) -> PreparedPooling:
    """Prepare the query and the documents of `LLM.rank`."""
    arguments.check_ranking(query, documents, top_n)
    arguments.check_pooling(truncate=truncate)
    return llm.pooling_builder.ranking(
        query,
        documents,
        instruction=arguments.check_text("instruction", instruction),
        truncate=truncate,
    )
