"""LLM: one model and one engine as a Python object that generates, chats, streams and scores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from dure import arguments, machine
from dure.benchmark import DirectRunner
from dure.chat.dialects import Dialect
from dure.chat.output import Chunk, Completion
from dure.chat.prompt import PreparedRequest, RequestBuilder
from dure.chat.request import ChatRequest, Format, Thinking
from dure.chat.template import default_template
from dure.driver import Driver, check_process
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.params import SamplingParams
from dure.engine.request import check_prompt
from dure.errors import InvalidRequestError, NotEnoughMemoryError
from dure.loading.load import load
from dure.loading.memory import gigabytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure import hub
    from dure.loading.load import Progress

Message = Mapping[str, Any]
_MOVED = {
    "question": "prepare",
    "questions": "request_builder",
    "begin": "driver.begin",
    "answer": "driver.answer",
    "step": "driver.step",
    "abandon": "driver.abandon",
    "lock": "driver.lock",
}
"""Names of before version 0.2, and what they are now; they go with version 0.3."""

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
        fallback_sampling: Mapping[str, float] | None = None,
        download_progress: Callable[[hub.Progress], None] | None = None,
        load_progress: Progress | None = None,
    ) -> None:
        """Load `model`: a short name, a hub id, a GGUF file, a folder, or the catalogue's default.

        threads: None for this process's physical cores. context: tokens of a prompt and its answer;
        None for the model's own, up to 32,768 and to what fits in memory. exact: float32 arithmetic
        from dequantised weights, for checking. quantize: weights that the files have in floats (FP8
        is one) become blocks of about so many bits. cache_bytes: size of the KV cache that all
        sequences share, else one of 32,768 tokens, or of 4,096 for each of `conversations` if half
        of the free memory holds as many; cache_dtype "q8" keeps it in 8 bits, in about half the
        memory. max_sequences: requests computed at once. fallback_sampling: fields of
        SamplingParams for a model whose makers recommend none of them.

        Raises ModelNotFoundError, DownloadError, ModelFileError, UnsupportedModelError,
        TokenizerError, NotEnoughMemoryError, and InvalidRequestError for a wrong argument.
        """
        self._check_options(locals())
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
        fallback = fallback_sampling or {}
        recommended = {**({} if fallback.keys() & loaded.sampling.keys() else fallback)}
        recommended |= loaded.sampling
        self.request_builder = RequestBuilder(
            self.tokenizer,
            template=self.template_source,
            name=loaded.name,
            context=loaded.context,
            longest=loaded.model.context_length,
            vocab_size=loaded.model.vocab_size,
            sampling_defaults=recommended,
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
        self.driver = Driver(engine, self.tokenizer, on_complete=self.request_builder.remember)

    @staticmethod
    def _check_options(options: Mapping[str, Any]) -> None:
        """Raise InvalidRequestError for an argument of the constructor that is of a wrong type."""
        model = options["model"]
        if model is not None and not isinstance(model, (str, os.PathLike)):
            raise InvalidRequestError(
                f"A model is a name or a path, not {model!r:.60}.", hint='LLM("smollm2:135m")'
            )
        for name, low in (("threads", 1), ("context", 1), ("cache_bytes", 1)):
            arguments.check_integer(name, options[name], low=low)
        for name in ("max_sequences", "conversations"):
            arguments.check_integer(name, options[name], low=1, optional=False)
        arguments.check_flag("exact", options["exact"])
        arguments.check_choice("quantize", options["quantize"], ("q8", "q6", "q4"), optional=True)
        arguments.check_choice("cache_dtype", options["cache_dtype"], ("f16", "q8"), optional=False)
        for name in ("download_progress", "load_progress"):
            arguments.check_callable(name, options[name])

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What holds for fields of SamplingParams that a request leaves None; read-only."""
        return self.request_builder.sampling_defaults

    def __getattr__(self, name: str) -> Any:
        """Return what an attribute of before version 0.2 has become, with a DeprecationWarning."""
        if name not in _MOVED:
            raise AttributeError(f"'LLM' object has no attribute {name!r}")
        warnings.warn(f"LLM.{name} is now LLM.{_MOVED[name]}", DeprecationWarning, stacklevel=2)
        return attrgetter(_MOVED[name])(self)

    @property
    def engine(self) -> Engine:
        """The engine, for reading its counts; the driver steps it."""
        return self.driver.engine

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Complete prompts, which are text or lists of token ids; no chat template is applied.

        Returns one Completion a prompt, in order; all are computed in shared batches. params: one
        for all, or one for each. Raises ContextLengthError or InvalidRequestError before any prompt
        is begun.
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
    ) -> Completion:
        """Reply to `messages`, a list of {"role": …, "content": …}, or to a ChatRequest.

        think: True or False turns a thinking model's thinking on or off, a number caps its tokens.
        format: what the reply must be, such as Format("json_schema", {…}).
        Calling again with the reply and a new message appended computes only what is new.
        Raises ContextLengthError, TemplateError or InvalidRequestError.
        """
        arguments.check_messages(messages)
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
        """Yield a Chunk a token, the last with the whole Completion; `prompt` is text, token ids,
        messages or a ChatRequest.

        on_prefill is called with (tokens done, tokens in all) while the prompt is computed. Errors
        are raised here, not at the first chunk. Closing the iterator aborts the request.
        """
        arguments.check_callable("on_prefill", on_prefill)
        prepared = self._asked(prompt, params, tools=tools, think=think, format=format)
        if prepared.params.n != 1:
            raise InvalidRequestError("A stream has one answer; n is more than 1.")
        return self.driver.stream(prepared, on_prefill)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Score `token_ids` from an empty cache: raw logits float32 (tokens, vocab_size).

        Raises InvalidRequestError for what are no ids, NotEnoughMemoryError for too many.
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
        """Render `messages` with the model's template, up to where the reply begins."""
        arguments.check_messages(messages)
        arguments.check_tools(tools)
        self.check_think(think)
        return self.request_builder.render(
            ChatRequest(messages, tools or (), thinking=_thinking(think))
        )

    def check_think(self, think: bool | int | None) -> None:
        """Raise TemplateError if the model cannot do what `think` asks: it is never dropped."""
        arguments.check_think(think)
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
        """Render, tokenise and check `prompt`: the slow part of asking, before an answer begins.

        cache_salt: only requests of one salt share cached prefixes. priority: the lowest goes
        first. Safe from any thread, without the driver's lock. Raises ContextLengthError,
        TemplateError or InvalidRequestError.
        """
        check_process()
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
        """Prepare what generate, chat or stream were asked."""
        arguments.check_params(params)
        arguments.check_format(format)
        arguments.check_tools(tools)
        arguments.check_think(think)
        if isinstance(prompt, ChatRequest):
            return self.prepare(prompt, params, format=format)
        arguments.check_prompt(prompt)
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            arguments.check_messages(prompt)
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
    """Translate `think`: on, off, a number of tokens at most, or None for the model's own way."""
    if think is None:
        return Thinking()
    if isinstance(think, bool):
        return Thinking("on" if think else "off")
    return Thinking("on", budget=think)
