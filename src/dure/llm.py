"""LLM: one model and one engine as a Python object that generates, chats, streams and scores."""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from dure import arguments, preparing
from dure.arguments import Chat, Message, Prompt
from dure.assembly import make_builder, make_driver
from dure.benchmark import DirectRunner
from dure.calls import explained
from dure.chat.dialects import Dialect
from dure.chat.output import Chunk, Completion
from dure.chat.prompt import PreparedRequest
from dure.chat.request import ChatRequest, Format
from dure.cluster.open import open_runners
from dure.driver import check_process
from dure.engine.engine import Engine
from dure.engine.params import SamplingParams
from dure.engine.request import check_prompt
from dure.errors import InvalidRequestError
from dure.loading.load import load
from dure.loading.memory import check_logits
from dure.metering.meter import Meter
from dure.pooling.config import read_pooling
from dure.pooling.output import Embedding, RankedDocument
from dure.pooling.request import Input, PooledModel, PoolingBuilder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure import hub
    from dure.loading.load import Progress
    from dure.replicas import Drivers

_RENAMED = {
    "question": "prepare",
    "questions": "request_builder",
    "begin": "driver.begin",
    "answer": "driver.answer",
    "step": "driver.step",
    "abandon": "driver.abandon",
    "lock": "driver.lock",
}
"""Names that people who drive an LLM may hold -> where that is now."""

_FREED = ("driver", "model", "pooling_builder", "_expert_pool")
"""What a closed LLM has no more."""


class LLM:
    """A model in memory. Threads may share it; their requests are then batched together.

    `with LLM(…) as llm:` frees the memory at the end, as `close` does.
    """

    @explained(beside=SamplingParams)
    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        context: int | None = None,
        exact: bool = False,
        quantize: Literal["q8", "q6", "q4"] | None = None,
        cache_bytes: int | None = None,
        cache_dtype: Literal["f16", "q8"] = "f16",
        max_sequences: int = 64,
        conversations: int = 1,
        fallback_sampling: Mapping[str, float] | None = None,
        speculate: str = "auto",
        memory: int | str | None = None,
        ray: str | None = None,
        stages: int | str = "auto",
        replicas: int = 1,
        meter: Meter | None = None,
        require_tokenizer: bool = False,
        download_progress: Callable[[hub.Progress], None] | None = None,
        load_progress: Progress | None = None,
    ) -> None:
        """Load a model, and download it first if it is not on this machine.

        model: a short name, a hub id, a GGUF file or a folder; None: the catalogue's default.
        threads: CPU threads; None: the physical cores that this process may use.
        context: tokens of a prompt and its answer; None: the model's own, up to 32,768 and to what
            fits in memory.
        exact: compute in float32 from the file's own weights, for checking; slow. By default FP8,
            BF16 and F16 are multiplied as integers (docs/quantization.md has the bounds).
        quantize: bits for float and FP8 weights, which are quantised while they are read.
        cache_bytes: bytes of the KV cache that all sequences share; None: 32,768 tokens, or 4,096
            for each of `conversations` if half of the free memory holds as many.
        cache_dtype: type of the KV cache; "q8" takes about half the memory of "f16".
        max_sequences: sequences computed in one step at most; others wait. Of each replica.
        conversations: sequences that the KV cache is made for, where `cache_bytes` is None.
        fallback_sampling: fields of SamplingParams for a model whose makers recommend none of them.
        speculate: who guesses tokens, so that a step may bring several; no answer depends on it.
            "auto": texts that repeat, and the model's own draft heads if it has them; "text" or
            "heads": these alone; "off"; or the name of a smaller model of the same vocabulary,
            beside texts.
        memory: budget of all that this process takes for the model: weights, cache and what
            computing needs, in bytes or as "8GB", "512MB", "6GiB"; None: what the machine has free.
        ray: the Ray cluster on whose nodes the layers lie in stages, each with these threads and
            memory: "auto", "local" or "HOST:PORT"; None: all are in this process.
        stages: how many, this process's own, the last, included; "auto": one on each node.
        replicas: engines of the model, each with these threads and a cache; with `ray`, copies.
        meter: measures what answers take, of all models that share it; None: one of its own.
        require_tokenizer: whether a model without a tokenizer is an error before it is loaded; else
            it takes and gives token ids, and a text is a TokenizerError.
        download_progress: is called with the progress of a download.
        load_progress: is called with (bytes read, bytes in all) while weights are read.

        Raises ModelNotFoundError, DownloadError, ModelFileError, UnsupportedModelError,
        NotEnoughMemoryError, TokenizerError or InvalidRequestError.
        """
        arguments.check_options(locals())
        check_process()
        loaded, runners, self.stages = open_runners(
            partial(load, with_tokenizer=True if require_tokenizer else None),
            model,
            ray=ray,
            stages=stages,
            replicas=replicas,
            threads=threads,
            context=context,
            exact=exact,
            quantize=quantize,
            cache_bytes=cache_bytes,
            cache_dtype=cache_dtype,
            conversations=conversations,
            speculate=speculate,
            memory=arguments.memory_budget(memory),
            download_progress=download_progress,
            load_progress=load_progress,
        )
        self.checkpoint = checkpoint = loaded.checkpoint
        self.name = loaded.name
        self.path, self.threads = loaded.path, loaded.threads
        self.context = loaded.context
        self.exact = exact
        self.cache_dtype = loaded.cache_dtype
        self.memory, self._expert_pool = loaded.memory, loaded.expert_pool
        self.model = loaded.model
        self.pooling = read_pooling(checkpoint)
        self.tokenizer = loaded.tokenizer
        if require_tokenizer:
            self.tokenizer.encode("")  # of stages it is not known before
        self.notes = loaded.notes
        self.request_builder = make_builder(loaded, fallback_sampling)
        self.template_source = self.request_builder.template_source
        self._meter = Meter.of_this_machine() if meter is None else meter
        if self.stages is not None:
            self._end_stages = weakref.finalize(self, self.stages.close)
        self.driver = make_driver(
            loaded,
            runners,
            self.request_builder,
            speculate=speculate,
            max_sequences=max_sequences,
            meter=self._meter,
        )

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory.

        Answers that still run end with an InvalidRequestError, and so does each later call but this
        one. Raises nothing.
        """
        if (driver := self.__dict__.get("driver")) is not None:
            driver.close()
        del driver
        if self.__dict__.get("stages") is not None:
            self._end_stages()
        for name in _FREED:
            self.__dict__.pop(name, None)
        gc.collect()  # answers and the engine know each other

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What holds for fields of SamplingParams that a request leaves None; read-only."""
        return self.request_builder.sampling_defaults

    def __getattr__(self, name: str) -> Any:
        """Return what a name of before 0.2 means now, with a DeprecationWarning."""
        if name not in _RENAMED:
            if name in _FREED and "name" in self.__dict__:
                raise AttributeError(f"{self.name} is closed, and has no {name} any more.")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f"LLM.{name} is LLM.{_RENAMED[name]} now, and goes in 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return attrgetter(_RENAMED[name])(self)

    @property
    def meter(self) -> Meter:
        """What measures processor seconds and joules; `meter.totals()` has those of all answers."""
        return self._meter

    @property
    def engine(self) -> Engine:
        """The engine, for reading its counts; the driver steps it. Of replicas the first's."""
        return self.driver.engine

    @explained(beside=SamplingParams)
    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | Callable[[int, int], None] = False,
    ) -> list[Completion]:
        """Complete prompts without a chat template, all in one batch.

        prompts: a text, or a list of texts and of token ids.
        params: sampling parameters for all prompts, or one for each; None: the model's own.
        progress: True shows on stderr how many are done; a function is called with (answers done,
            answers in all).

        Returns one Completion per prompt, in order. Raises ContextLengthError or
        InvalidRequestError before any prompt is begun.
        """
        driver, told = self.open_driver(), arguments.reporter(progress)
        return driver.answer(preparing.completions(self, prompts, params), told)

    @overload
    def chat(
        self,
        messages: Sequence[Message] | ChatRequest,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,
        prediction: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message] | ChatRequest],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,
        prediction: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> list[Completion]: ...

    @explained(beside=SamplingParams)
    def chat(
        self,
        messages: Chat | Sequence[Chat],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
        prediction: str | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> Completion | list[Completion]:
        """Answer a chat, or several in one batch, through the model's chat template.

        messages: a list of {"role": …, "content": …}, or a ChatRequest, which has more options; or
            a list of such chats.
        params: sampling parameters; None: the model's own. Of several chats also one for each.
        tools: functions that the model may call, in the form of OpenAI's `tools`.
        think: True or False turns thinking on or off, a number is the most tokens of reasoning.
        format: what the answer must be, such as Format("json_schema", {…}).
        prediction: what the answer may be, such as a file that is to be edited: where it is right
            the answer comes sooner; it changes no token.
        progress: as for `generate`.

        Returns the Completion: `content`, `reasoning`, `tool_calls`, and `text` with all of them;
        of several chats a list of them, in order. A chat that begins like an earlier one computes
        only what is new. Raises ContextLengthError, InvalidRequestError or TemplateError.
        """
        driver, told = self.open_driver(), arguments.reporter(progress)
        options = {"tools": tools, "think": think, "format": format, "prediction": prediction}
        prepared, is_single = preparing.chats(self, messages, params, **options)
        answers = driver.answer(prepared, told)
        return answers[0] if is_single else answers

    @explained(beside=SamplingParams)
    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
        prediction: str | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer one prompt or chat token by token.

        prompt: a text, token ids, messages or a ChatRequest, as for `generate` and `chat`.
        params, tools, think, format, prediction: as for `chat`; `params.n` is 1.
        on_prefill: is called with (tokens done, tokens in all) while the prompt is computed.

        Returns an iterator of one Chunk per token, the last with the whole Completion; closing it
        aborts the request. Raises ContextLengthError, InvalidRequestError or TemplateError at the
        call, not at the first chunk.
        """
        arguments.check_callable("on_prefill", on_prefill)
        driver = self.open_driver()
        options = {"tools": tools, "think": think, "format": format, "prediction": prediction}
        return driver.stream(preparing.stream(self, prompt, params, **options), on_prefill)

    @cached_property
    def pooling_builder(self) -> PoolingBuilder:
        """Builds the requests of `embed` and `rank`."""
        model = cast(PooledModel, self.model)
        return PoolingBuilder(
            self.tokenizer, self.pooling, model=model, name=self.name, context=self.context
        )

    @explained()
    def embed(
        self,
        texts: str | Sequence[Input],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | int = False,
    ) -> list[Embedding]:
        """Embed texts, all in one batch.

        texts: a text, or a list of texts and of token ids, to which nothing is added.
        prompt, prompt_name: what is written before each text, or the name of one that the
            checkpoint brings, such as "query"; None: the checkpoint's default.
        dimensions: numbers of each vector; None: all that the model has.
        normalize: whether vectors get the length 1; None: as the checkpoint says.
        truncate: whether a text that is too long is cut, or after how many tokens; else an error.

        One call takes 2,048 texts, and 300,000 tokens of all of them; a text as many as the context
        or the checkpoint's `max_seq_length`. Returns one Embedding per text, in order. Where the
        checkpoint does not say how its hidden states become a vector, that is the last token's,
        with the length 1 (`LLM.pooling` tells). Raises ContextLengthError or InvalidRequestError
        before any text is begun.
        """
        driver = self.open_driver()
        prepared = preparing.embeddings(
            self,
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
        )
        return driver.pool(prepared).embeddings

    @explained()
    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        truncate: bool | int = False,
    ) -> list[RankedDocument]:
        """Score documents by how well each answers a query, with a reranker.

        query, documents: texts. top_n: how many of the best are returned; None: all.
        instruction: what is looked for, in a sentence; None: the one of the model's makers.
        truncate: as for `embed`, of documents.

        The limits are those of `embed`. Returns the documents, best first. Raises
        ContextLengthError, or InvalidRequestError, also for a model that is no reranker.
        """
        driver = self.open_driver()
        prepared = preparing.ranking(
            self, query, documents, top_n=top_n, instruction=instruction, truncate=truncate
        )
        return driver.pool(prepared).ranked(documents)[:top_n]

    @explained()
    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute the raw logits after each token of one sequence, from an empty KV cache.

        token_ids: the sequence, at most the context length.

        Returns float32 logits (len(token_ids), vocab_size), as transformers does: a column for each
        of the model's rows, also those that no token has. Raises NotEnoughMemoryError if they do
        not fit in memory, ContextLengthError or InvalidRequestError.
        """
        self.open_driver()
        if self.stages is not None:
            raise InvalidRequestError("Raw logits need all layers in one process.")
        if isinstance(token_ids, str):
            raise InvalidRequestError("logits takes token ids.", hint="llm.tokenizer.encode(text)")
        arguments.check_prompt(token_ids)
        ids = check_prompt(token_ids, self.model.vocab_size)
        check_logits(len(ids), self.model.vocab_size)
        run = DirectRunner(
            self.model,
            tokens=len(ids),
            cache_dtype=self.cache_dtype,
            expert_pool=self._expert_pool,
        )
        return run.all_logits(ids)

    @property
    def dialect(self) -> Dialect:
        """The format of reasoning and tool calls, found from the template and the vocabulary."""
        return self.request_builder.dialect

    @explained()
    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
    ) -> str:
        """Render `messages` with the model's chat template, up to where the answer begins.

        messages, tools, think: as for `chat`.

        Returns the prompt's text. Raises TemplateError or InvalidRequestError.
        """
        arguments.check_messages(messages)
        arguments.check_tools(tools)
        self.check_think(think)
        return self.request_builder.render(
            ChatRequest(messages, tools or (), thinking=arguments.thinking(think))
        )

    @explained()
    def check_think(self, think: bool | int | None) -> None:
        """Check that the model's template can do what `think` asks for, which is as for `chat`.

        Raises TemplateError or InvalidRequestError.
        """
        preparing.check_think(self, think)

    @explained(beside=SamplingParams)
    def prepare(
        self,
        prompt: str | Sequence[int] | ChatRequest,
        params: SamplingParams | None = None,
        *,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        cache_salt: str = "",
        priority: int = 0,
        prediction: str | None = None,
    ) -> PreparedRequest:
        """Render, tokenise and check a request, for those who drive an LLM themselves.

        prompt: a text, token ids or a ChatRequest.
        params, format, prediction: as for `chat`.
        cache_salt: requests reuse KV cache of requests with the same salt only.
        priority: the lowest number runs first.

        Returns what `driver.begin` takes. May be called from any thread, without the lock. Raises
        ContextLengthError, InvalidRequestError or TemplateError.
        """
        self.open_driver()
        return preparing.request(
            self,
            prompt,
            params,
            format=format,
            cache_salt=cache_salt,
            priority=priority,
            prediction=prediction,
        )

    def open_driver(self) -> Drivers:
        """Find what steps the engine, for those who drive an LLM themselves.

        Returns `driver`. Raises InvalidRequestError if the LLM is closed, or in a forked process.
        """
        check_process()
        driver = self.__dict__.get("driver")
        if driver is None:
            raise InvalidRequestError(
                f"{self.name} is closed, and its memory is free.", hint="load it again: LLM(…)"
            )
        return cast("Drivers", driver)
