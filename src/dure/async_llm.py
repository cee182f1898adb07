"""AsyncLLM: an LLM for coroutines, which share its batches as threads do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from dure import arguments, preparing
from dure.async_driver import AsyncReplicas
from dure.calls import bound, explained
from dure.driver import check_process, closed_error
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError
from dure.llm import LLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from dure.arguments import Chat, Message, Prompt
    from dure.chat.output import Chunk, Completion
    from dure.chat.request import ChatRequest, Format
    from dure.pooling.output import Embedding, RankedDocument
    from dure.pooling.request import Input

T = TypeVar("T")


class AsyncLLM:
    """An LLM whose calls are awaited. What runs at once shares a batch; cancelling ends a request.

    Any number of event loops may use it. `async with AsyncLLM(…) as llm:` loads the model before
    the first call, and frees it at the end.
    """

    @explained(beside=SamplingParams)
    def __init__(self, model: str | os.PathLike[str] | LLM | None = None, **options: Any) -> None:
        """Say which model is wanted; the first call loads it, on a thread.

        model: as for LLM; or an LLM, which may go on being used by threads, and is not closed.
        options: all other arguments of LLM.

        Raises InvalidRequestError for options that LLM does not have.
        """
        given = bound(LLM.__init__, (self, model), options, beside=SamplingParams)
        if not isinstance(model, LLM):
            arguments.check_options(given)
        self._is_own = not isinstance(model, LLM)
        self._llm = model if isinstance(model, LLM) else None
        if self._llm is not None and options:
            raise InvalidRequestError(
                f"{self._llm.name} is loaded already, and {next(iter(options))} is an option of "
                "loading it.",
                hint="AsyncLLM(llm)",
            )
        if not isinstance(model, LLM):
            self._make = partial(LLM, model, **options)
        self._loading = threading.Lock()
        self._computing: AsyncReplicas | None = None
        self._is_closed = False

    async def load(self) -> LLM:
        """Load the model, if that is not done; cancelling it does not stop what has begun.

        Returns the LLM. Raises what LLM raises.
        """
        return await asyncio.to_thread(self._loaded)

    async def __aenter__(self) -> AsyncLLM:
        await self.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what runs, and free the model's memory. Raises nothing."""
        await asyncio.to_thread(self._close)

    @explained(beside=SamplingParams)
    async def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete prompts without a chat template.

        prompts, params: as for `LLM.generate`.

        Returns one Completion per prompt, in order. Raises what that raises.
        """
        prepared = await self._prepared(preparing.completions, prompts, params)
        return await self._driver().answer(prepared)

    @overload
    async def chat(
        self,
        messages: Sequence[Message] | ChatRequest,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,
        prediction: str | None = None,
    ) -> Completion: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Sequence[Message] | ChatRequest],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,
        prediction: str | None = None,
    ) -> list[Completion]: ...

    @explained(beside=SamplingParams)
    async def chat(
        self,
        messages: Chat | Sequence[Chat],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        prediction: str | None = None,
    ) -> Completion | list[Completion]:
        """Answer a chat, or several, through the model's chat template.

        messages, params, tools, think, format, prediction: as for `LLM.chat`.

        Returns the Completion, or a list of them. Raises what that raises.
        """
        prepare = partial(
            preparing.chats, tools=tools, think=think, format=format, prediction=prediction
        )
        prepared, is_single = await self._prepared(prepare, messages, params)
        answers = await self._driver().answer(prepared)
        return answers[0] if is_single else answers

    @explained(beside=SamplingParams)
    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
        prediction: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Answer one prompt or chat token by token.

        prompt, params, tools, think, format, prediction: as for `LLM.stream`.

        Returns an asynchronous iterator of one Chunk per token, the last with the whole Completion;
        closing it, or leaving its loop, ends the request. Raises what `LLM.stream` raises, when the
        first chunk is asked for.
        """
        prepare = partial(
            preparing.stream, tools=tools, think=think, format=format, prediction=prediction
        )
        prepared = await self._prepared(prepare, prompt, params)
        async with contextlib.aclosing(self._driver().stream(prepared)) as chunks:
            async for chunk in chunks:
                yield chunk

    @explained()
    async def embed(
        self,
        texts: str | Sequence[Input],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | int = False,
    ) -> list[Embedding]:
        """Embed texts.

        texts, prompt, prompt_name, dimensions, normalize, truncate: as for `LLM.embed`.

        Returns one Embedding per text, in order. Raises what that raises.
        """
        prepare = partial(
            preparing.embeddings,
            prompt=prompt,
            prompt_name=prompt_name,
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
        )
        prepared = await self._prepared(prepare, texts)
        return (await self._driver().pool(prepared)).embeddings

    @explained()
    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        truncate: bool | int = False,
    ) -> list[RankedDocument]:
        """Score documents by how well each answers a query, with a reranker.

        query, documents, top_n, instruction, truncate: as for `LLM.rank`.

        Returns the documents, best first. Raises what that raises.
        """
        prepare = partial(
            preparing.ranking, top_n=top_n, instruction=instruction, truncate=truncate
        )
        prepared = await self._prepared(prepare, query, documents)
        return (await self._driver().pool(prepared)).ranked(documents)[:top_n]

    async def _prepared(self, prepare: Callable[..., T], *given: Any) -> T:
        """Return prepare(llm, *given), which is made on a thread as it may take a while."""

        def on_thread() -> T:
            return prepare(self._loaded(), *given)

        return await asyncio.to_thread(on_thread)

    def _driver(self) -> AsyncReplicas:
        """Return what computes, of a model that is loaded."""
        driver = self._computing
        if driver is None:
            raise closed_error()
        return driver

    def _loaded(self) -> LLM:
        """Load the model unless that is done. Raises InvalidRequestError if this is closed."""
        with self._loading:
            if self._is_closed:
                raise closed_error()
            if self._llm is None:
                self._llm = self._make()
            check_process()
            if self._computing is None:
                self._computing = AsyncReplicas(self._llm.open_driver())
                # The thread knows the driver alone: it ends when nobody holds this any more.
                self._ends = weakref.finalize(self, self._computing.close)
            return self._llm

    def _close(self) -> None:
        with self._loading:
            self._is_closed = True
            computing, self._computing = self._computing, None
            llm, self._llm = self._llm, None
        if computing is not None:
            self._ends.detach()
            computing.close()
        if llm is not None and self._is_own:
            llm.close()
