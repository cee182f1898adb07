"""LLM: one model and one engine as a Python object that generates, chats, streams and scores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from dure import arguments, machine
from dure.benchmark import DirectRunner
from dure.chat.dialects import Dialect
from dure.chat.output import Chunk, Completion
from dure.chat.prompt import PreparedRequest, RequestBuilder
from dure.chat.request import ChatRequest, Format
from dure.chat.template import default_template
from dure.driver import Driver, check_process
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.params import SamplingParams
from dure.engine.request import check_prompt
from dure.engine.spec_decode.make import make_drafter
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.load import load
from dure.loading.memory import gigabytes
from dure.metering.meter import Meter
from dure.pooling.config import read_pooling
from dure.pooling.output import Embedding, RankedDocument
from dure.pooling.request import Input, PooledModel, PoolingBuilder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure import hub
    from dure.loading.load import Progress

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | ChatRequest
"""Text, token ids, the messages of a chat, or all that a chat may ask."""

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


class LLM:
    """A model in memory. Threads may share it; their requests are then batched together."""

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
        meter: Meter | None = None,
        download_progress: Callable[[hub.Progress], None] | None = None,
        load_progress: Progress | None = None,
    ) -> None:
        """Load a model, and download it first if it is not on this machine.

        model: a short name, a hub id, a GGUF file or a folder; None: the catalogue's default.
        threads: CPU threads; None: the physical cores that this process may use.
        context: tokens of a prompt and its answer; None: the model's own, up to 32,768 and to what
            fits in memory.
        exact: compute in float32 from dequantised weights, for checking; slow.
        quantize: bits for float and FP8 weights, which are quantised while they are read.
        cache_bytes: bytes of the KV cache that all sequences share; None: 32,768 tokens, or 4,096
            for each of `conversations` if half of the free memory holds as many.
        cache_dtype: type of the KV cache; "q8" takes about half the memory of "f16".
        max_sequences: sequences computed in one step at most; others wait.
        conversations: sequences that the KV cache is made for, where `cache_bytes` is None.
        fallback_sampling: fields of SamplingParams for a model whose makers recommend none of them.
        speculate: who guesses tokens, so that a step may bring several; no answer depends on it.
            "auto": texts that repeat, and the model's own draft heads if it has them; "text" or
            "heads": these alone; "off"; or the name of a smaller model of the same vocabulary,
            beside texts.
        memory: budget of all that this process takes for the model: weights, cache and what
            computing needs, in bytes or as "8GB", "512MB", "6GiB"; None: what the machine has free.
        meter: measures what answers take, of all models that share it; None: one of its own.
        download_progress: is called with the progress of a download.
        load_progress: is called with (bytes read, bytes in all) while weights are read.

        Raises ModelNotFoundError, DownloadError, ModelFileError, UnsupportedModelError,
        NotEnoughMemoryError, TokenizerError or InvalidRequestError.
        """
        arguments.check_options(locals())
        check_process()
        loaded = load(
            model,
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
        self.path = loaded.path
        self.threads = loaded.threads
        self.context = loaded.context
        self.exact = exact
        self.cache_dtype = loaded.cache_dtype
        self.memory = loaded.memory
        self._expert_pool = loaded.expert_pool
        self.model = loaded.model
        self.pooling = read_pooling(checkpoint)
        self.tokenizer = loaded.tokenizer
        settings = loaded.settings
        self.notes = loaded.notes
        self.template_source = (
            settings.template
            or checkpoint.chat_template
            or settings.fallback_template
            or default_template(self.tokenizer)
        )
        fallback = fallback_sampling or {}
        usable = {} if fallback.keys() & loaded.sampling.keys() else fallback
        self.request_builder = RequestBuilder(
            self.tokenizer,
            template=self.template_source,
            name=loaded.name,
            context=loaded.context,
            longest=loaded.model.context_length,
            vocab_size=loaded.model.vocab_size,
            sampling_defaults={**usable, **loaded.sampling},
            system=settings.system,
            messages=settings.messages,
        )
        runner = ModelRunner(
            loaded.model,
            num_blocks=loaded.num_blocks,
            num_window_blocks=loaded.num_window_blocks,
            num_states=loaded.num_states,
            cache_dtype=loaded.cache_dtype,
            draft_model=loaded.draft_model,
            draft_heads=loaded.has_draft_heads,
            expert_pool=loaded.expert_pool,
        )
        engine = Engine(
            runner,
            drafter=make_drafter(speculate, runner, threads=loaded.threads),
            max_prefill_tokens=loaded.memory.prefill_rows,
            max_sequences=max_sequences,
            model_id=loaded.name,
            eos_ids=self.tokenizer.eos_ids,
            unused_ids=self.tokenizer.rows_without_token(loaded.model.vocab_size),
            threads=loaded.threads,
            meter=Meter.of_this_machine() if meter is None else meter,
            row_bytes=loaded.memory.row_bytes,
        )
        self.driver = Driver(engine, self.tokenizer, on_complete=self.request_builder.remember)

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What holds for fields of SamplingParams that a request leaves None; read-only."""
        return self.request_builder.sampling_defaults

    def __getattr__(self, name: str) -> Any:
        """Return what a name of before 0.2 means now, with a DeprecationWarning."""
        if name not in _RENAMED:
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
        return self.engine.meter

    @property
    def engine(self) -> Engine:
        """The engine, for reading its counts; the driver steps it."""
        return self.driver.engine

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete prompts without a chat template, all in one batch.

        prompts: a text, or a list of texts and of token ids.
        params: sampling parameters for all prompts, or one for each; None: the model's own.

        Returns one Completion per prompt, in order. Raises ContextLengthError or
        InvalidRequestError before any prompt is begun.
        """
        listed = arguments.check_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            chosen: list[SamplingParams | None] = [params] * len(listed)
        else:
            arguments.check_params(None if isinstance(params, Sequence) else params)
            chosen = list(params)
        if len(chosen) != len(listed):
            raise InvalidRequestError(
                f"There are {len(listed)} prompts and {len(chosen)} sets of sampling parameters.",
                hint="give one set for all, or one for each prompt",
            )
        prepared = [self._asked(*each) for each in zip(listed, chosen, strict=True)]
        return self.driver.answer(prepared)

    def chat(
        self,
        messages: Sequence[Message] | ChatRequest,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        prediction: str | None = None,
    ) -> Completion:
        """Answer a chat through the model's chat template.

        messages: a list of {"role": …, "content": …}, or a ChatRequest, which has more options.
        params: sampling parameters; None: the model's own.
        tools: functions that the model may call, in the form of OpenAI's `tools`.
        think: True or False turns thinking on or off, a number is the most tokens of reasoning.
        format: what the answer must be, such as Format("json_schema", {…}).
        prediction: what the answer may be, such as a file that is to be edited: where it is right
            the answer comes sooner; it changes no token.

        Returns the Completion: `content`, `reasoning`, `tool_calls`, and `text` with all of them.
        A chat that begins like an earlier one computes only what is new. Raises
        ContextLengthError, InvalidRequestError or TemplateError.
        """
        arguments.check_messages(messages)
        prepared = self._asked(
            messages, params, tools=tools, think=think, format=format, prediction=prediction
        )
        return self.driver.answer([prepared])[0]

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
        prepared = self._asked(
            prompt, params, tools=tools, think=think, format=format, prediction=prediction
        )
        if prepared.params.n != 1:
            raise InvalidRequestError("A stream has one answer; n is more than 1.")
        return self.driver.stream(prepared, on_prefill)

    @cached_property
    def pooling_builder(self) -> PoolingBuilder:
        """Builds the requests of `embed` and `rank`."""
        model = cast(PooledModel, self.model)
        return PoolingBuilder(
            self.tokenizer, self.pooling, model=model, name=self.name, context=self.context
        )

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

        Returns one Embedding per text, in order. Where the checkpoint does not say how its hidden
        states become a vector, that is the last token's, with the length 1 (`LLM.pooling` tells).
        Raises ContextLengthError or InvalidRequestError before any text is begun.
        """
        check_process()
        arguments.check_pooling(dimensions=dimensions, normalize=normalize, truncate=truncate)
        prepared = self.pooling_builder.embeddings(
            arguments.check_prompts(texts),
            prompt=arguments.check_text("prompt", prompt),
            prompt_name=arguments.check_text("prompt_name", prompt_name),
            dimensions=dimensions,
            normalize=normalize,
            truncate=truncate,
        )
        return self.driver.pool(prepared).embeddings

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

        Returns the documents, best first. Raises ContextLengthError, or InvalidRequestError, also
        for a model that is no reranker.
        """
        check_process()
        arguments.check_ranking(query, documents, top_n)
        arguments.check_pooling(truncate=truncate)
        prepared = self.pooling_builder.ranking(
            query,
            documents,
            instruction=arguments.check_text("instruction", instruction),
            truncate=truncate,
        )
        return self.driver.pool(prepared).ranked(documents)[:top_n]

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute the raw logits after each token of one sequence, from an empty KV cache.

        token_ids: the sequence, at most the context length.

        Returns float32 logits (len(token_ids), vocab_size), as transformers does: a column for each
        of the model's rows, also those that no token has. Raises NotEnoughMemoryError if they do
        not fit in memory, ContextLengthError or InvalidRequestError.
        """
        check_process()
        if isinstance(token_ids, str):
            raise InvalidRequestError("logits takes token ids.", hint="llm.tokenizer.encode(text)")
        arguments.check_prompt(token_ids)
        vocab_size = self.model.vocab_size
        ids = check_prompt(token_ids, vocab_size)
        needed, available = len(ids) * vocab_size * 4, machine.memory_available()
        if needed > available:
            raise NotEnoughMemoryError(
                f"The logits of {len(ids):,} tokens need {gigabytes(needed)} of memory, "
                f"and {gigabytes(available)} is available.",
                hint=f"ask for {available // (vocab_size * 4):,} tokens or fewer at a time",
            )
        result = np.empty((len(ids), vocab_size), np.float32)
        done = 0
        run = DirectRunner(
            self.model,
            tokens=len(ids),
            cache_dtype=self.cache_dtype,
            expert_pool=self._expert_pool,
        )
        for part in run.logits(ids):
            result[done : done + len(part)] = part
            done += len(part)
        return result

    @property
    def dialect(self) -> Dialect:
        """The format of reasoning and tool calls, found from the template and the vocabulary."""
        return self.request_builder.dialect

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

    def check_think(self, think: bool | int | None) -> None:
        """Check that the model's template can do what `think` asks for, which is as for `chat`.

        Raises TemplateError or InvalidRequestError.
        """
        arguments.check_think(think)
        self.request_builder.check_thinking(arguments.thinking(think))

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
        check_process()
        self.pooling.check_writes(self.name)
        arguments.check_params(params)
        arguments.check_format(format)
        arguments.check_prediction(prediction)
        if not isinstance(prompt, ChatRequest):
            arguments.check_prompt(prompt)
        if not isinstance(cache_salt, str):
            raise InvalidRequestError(f"cache_salt must be a text, but is {cache_salt!r:.60}.")
        if type(priority) is not int:
            raise InvalidRequestError(f"priority must be a whole number, not {priority!r:.60}.")
        return self.request_builder.make(
            prompt,
            params,
            format=format,
            cache_salt=cache_salt,
            priority=priority,
            prediction=prediction or "",
        )

    def _asked(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
        prediction: str | None = None,
    ) -> PreparedRequest:
        """Prepare a prompt of generate, chat or stream."""
        arguments.check_params(params)
        arguments.check_format(format)
        arguments.check_tools(tools)
        arguments.check_think(think)
        if isinstance(prompt, ChatRequest):
            return self.prepare(prompt, params, format=format, prediction=prediction)
        arguments.check_prompt(prompt)
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            arguments.check_messages(prompt)
            self.check_think(think)
            messages = cast(Sequence[Message], prompt)
            request = ChatRequest(messages, tools or (), thinking=arguments.thinking(think))
            return self.prepare(request, params, format=format, prediction=prediction)
        if think is not None or tools is not None:
            raise InvalidRequestError(
                "Tools and thinking belong to a chat, and this prompt is plain text.",
                hint='give messages: [{"role": "user", "content": "…"}]',
            )
        text = cast("str | Sequence[int]", prompt)
        return self.prepare(text, params, format=format, prediction=prediction)
