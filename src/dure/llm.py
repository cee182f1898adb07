"""LLM: one model and one engine as a Python object that generates, chats, streams and scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from dure import machine
from dure.benchmark import DirectRunner
from dure.chat.dialects import Dialect
from dure.chat.output import Chunk, Completion
from dure.chat.prompt import PreparedRequest, RequestBuilder
from dure.chat.request import ChatRequest, Format, Thinking
from dure.chat.template import default_template
from dure.driver import Driver
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.load import load
from dure.loading.memory import gigabytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure import hub
    from dure.loading.load import Progress

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | ChatRequest
"""Text, token ids, the messages of a chat, or all that a chat may ask."""


class LLM:
    """A model ready to answer. Threads may share it; their requests are then batched together."""

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
        download_progress: Callable[[hub.Progress], None] | None = None,
        load_progress: Progress | None = None,
    ) -> None:
        """Load `model`: a short name, a hub id, a GGUF file, a folder, or the catalogue's default.

        threads: None for this process's physical cores. context: tokens of a prompt and its answer;
        None for the model's own, up to 32,768 and to what fits in memory. exact: float32 arithmetic
        from dequantised weights, for checking. quantize: weights that the files have in floats (FP8
        is one) become blocks of about so many bits. cache_bytes: size of the key-value cache that
        all sequences share, else one of 32,768 tokens, or of 4,096 for each of `conversations` if
        half of the free memory holds as many; cache_dtype "q8" keeps it in 8 bits, in about half
        the memory. Raises the errors of dure.errors.
        """
        loaded = load(
            model,
            threads=threads,
            context=context,
            exact=exact,
            quantize=quantize,
            cache_bytes=cache_bytes,
            cache_dtype=cache_dtype,
            conversations=conversations,
            download_progress=download_progress,
            load_progress=load_progress,
        )
        checkpoint = loaded.checkpoint
        self.name = loaded.name
        self.path = loaded.path
        self.threads = loaded.threads
        self.context = loaded.context
        self.exact = exact
        self.cache_dtype = loaded.cache_dtype
        self.checkpoint = checkpoint
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.template_source = checkpoint.chat_template or default_template(self.tokenizer)
        self.sampling_defaults: dict[str, Any] = dict(loaded.sampling)
        self.request_builder = RequestBuilder(
            self.tokenizer,
            template=self.template_source,
            name=loaded.name,
            context=loaded.context,
            longest=loaded.model.context_length,
            vocab_size=loaded.model.vocab_size,
            sampling_defaults=self.sampling_defaults,
        )
        engine = Engine(
            ModelRunner(
                loaded.model,
                num_blocks=loaded.num_blocks,
                num_states=loaded.num_states,
                cache_dtype=loaded.cache_dtype,
            ),
            max_sequences=max_sequences,
            model_id=loaded.name,
            eos_ids=self.tokenizer.eos_ids,
            threads=loaded.threads,
        )
        self.driver = Driver(engine, self.tokenizer)

    @property
    def engine(self) -> Engine:
        """The engine, for reading its counts; the driver steps it."""
        return self.driver.engine

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """One Completion a prompt, in order. Prompts are text, or token ids, and are batched.

        No chat template is applied. Raises ContextLengthError or InvalidRequestError before any
        prompt is begun.
        """
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        if params is None or isinstance(params, SamplingParams):
            chosen = [params] * len(listed)
        else:
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
    ) -> Completion:
        """The reply to `messages`, a list of {"role": …, "content": …}, or to a ChatRequest.

        think: True or False turns a thinking model's thinking on or off, a number caps its tokens.
        format: what the reply must be, such as Format("json_schema", {…}).
        Calling again with the reply and a new message appended computes only what is new.
        """
        prepared = self._asked(messages, params, tools=tools, think=think, format=format)
        return self.driver.answer([prepared])[0]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generator[Chunk, None, None]:
        """A Chunk a token, the last with the whole Completion. `prompt` as for generate or chat.

        on_prefill is called with (tokens done, tokens in all) while the prompt is computed. Errors
        are raised here, not at the first chunk. Closing the iterator aborts the request.
        """
        prepared = self._asked(prompt, params, tools=tools, think=think, format=format)
        if prepared.params.n != 1:
            raise InvalidRequestError("A stream has one answer; n is more than 1.")
        return self.driver.stream(prepared, on_prefill)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits (tokens, vocab_size) after each of `token_ids`, from an empty cache."""
        ids = self.request_builder.checked_ids(token_ids)
        vocab_size = self.model.vocab_size
        needed, available = len(ids) * vocab_size * 4, machine.memory_available()
        if needed > available:
            raise NotEnoughMemoryError(
                f"The logits of {len(ids):,} tokens need {gigabytes(needed)} of memory, "
                f"and {gigabytes(available)} is available.",
                hint=f"ask for {available // (vocab_size * 4):,} tokens or fewer at a time",
            )
        result = np.empty((len(ids), vocab_size), np.float32)
        done = 0
        run = DirectRunner(self.model, tokens=len(ids), cache_dtype=self.cache_dtype)
        for part in run.logits(ids):
            result[done : done + len(part)] = part
            done += len(part)
        return result

    @property
    def dialect(self) -> Dialect:
        """How the model writes thoughts and calls, found from its template and vocabulary."""
        return self.request_builder.dialect

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
    ) -> str:
        """The text that the model's template makes of `messages`, up to where the reply begins."""
        self.check_think(think)
        return self.request_builder.render(
            ChatRequest(messages, tools or (), thinking=_thinking(think))
        )

    def check_think(self, think: bool | int | None) -> None:
        """Nothing, or an error: a wish about thinking is never silently dropped."""
        self.request_builder.check_thinking(_thinking(think))

    def prepare(
        self,
        prompt: str | Sequence[int] | ChatRequest,
        params: SamplingParams | None = None,
        *,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        cache_salt: str = "",
        priority: int = 0,
    ) -> PreparedRequest:
        """`prompt`, rendered, tokenised and checked: what an answer needs before it can begin.

        The slow part of asking. Safe from any thread, without the lock. Raises the errors of
        dure.errors that are the asker's.
        """
        return self.request_builder.make(
            prompt, params, format=format, cache_salt=cache_salt, priority=priority
        )

    def _asked(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002
    ) -> PreparedRequest:
        """The question that a prompt of generate, chat or stream is."""
        if isinstance(prompt, int):
            raise InvalidRequestError(
                "A prompt is text or a list of token ids, not a single number.",
                hint="give a list of prompts: [[1, 2, 3]]",
            )
        if isinstance(prompt, ChatRequest):
            return self.prepare(prompt, params, format=format)
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            self.check_think(think)
            messages = cast(Sequence[Message], prompt)
            request = ChatRequest(messages, tools or (), thinking=_thinking(think))
            return self.prepare(request, params, format=format)
        if think is not None or tools is not None:
            raise InvalidRequestError(
                "Tools and thinking belong to a chat, and this prompt is plain text.",
                hint='give messages: [{"role": "user", "content": "…"}]',
            )
        return self.prepare(cast("str | Sequence[int]", prompt), params, format=format)


def _thinking(think: bool | int | None) -> Thinking:
    """What `think` says: on, off, a number of tokens at most, or None for the model's own way."""
    if think is None:
        return Thinking()
    if isinstance(think, bool):
        return Thinking("on" if think else "off")
    return Thinking("on", budget=think)
