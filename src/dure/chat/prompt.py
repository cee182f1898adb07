"""RequestBuilder: turns a prompt into a PreparedRequest that the engine can take."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from dure.chat.conversation import arranged, results_in_order
from dure.chat.dialects import PLAIN, Dialect, dialect_of
from dure.chat.dialects.thinking import has_switch, template_variables
from dure.chat.messages import prepared, said_thinking, shown_texts, with_suffix
from dure.chat.output import Completion, OutputParserOptions
from dure.chat.prefill import begin_answer
from dure.chat.reasoning_cache import ReasoningCache
from dure.chat.request import ChatRequest, Format, Thinking, tool_schemas
from dure.chat.structured_output import GrammarBuilder, is_strict
from dure.chat.template import ChatTemplate
from dure.chat.template_check import TemplateCheck
from dure.chat.template_probe import Needs, needs_of
from dure.chat.tool_prompt import with_tools
from dure.engine.grammar import Grammar
from dure.engine.params import SamplingParams
from dure.engine.request import check_prompt
from dure.errors import (
    ContextLengthError,
    InvalidRequestError,
    PromptLengthError,
    TemplateError,
)
from dure.text.length import least_tokens, longest_text
from dure.text.tokenizer import Tokenizer

_SYSTEM = ("system", "developer")

Prompt = str | Sequence[int] | ChatRequest
"""Text, token ids, or a chat."""


@dataclass(frozen=True)
class PreparedRequest:
    """A checked prompt: its tokens, resolved parameters, and how to parse the answer.

    Only requests of one `cache_salt` share cached prefixes. `prediction_ids` are what the answer
    may be: guesses, which change nothing but its speed.
    """

    token_ids: tuple[int, ...]
    params: SamplingParams
    reading: OutputParserOptions = field(default_factory=OutputParserOptions)
    grammar: Grammar | None = None
    cache_salt: str = ""
    priority: int = 0
    prediction_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.token_ids)

    @property
    def num_choices(self) -> int:
        """Answers to it."""
        return self.params.n

    @property
    def max_tokens(self) -> int | None:
        """Tokens of each answer at most; None: what the context has room for."""
        return self.params.max_tokens


class RequestBuilder:
    """Builds a model's requests: template, tokens, limits. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: str | None,
        name: str,
        context: int,
        longest: int,
        vocab_size: int,
        sampling_defaults: Mapping[str, Any],
        system: str = "",
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Take what requests are built with.

        template: its source, if there is one. context: tokens of a prompt and its answer; longest:
        the model's own limit of these. vocab_size: of the logits. system: the system message of a
        chat that has none; messages: what stands before the messages of every chat.
        """
        self.tokenizer = tokenizer
        self.template_source = template
        self.name = name
        self.context = context
        self._longest = longest
        self._vocab_size = vocab_size
        self._sampling_defaults = MappingProxyType(dict(sampling_defaults))
        self.system = system
        self._messages_before = tuple(messages)
        self._template: ChatTemplate | None = None
        self._needs: Needs | None = None
        self._reasoning_cache = ReasoningCache()
        self.dialect: Dialect = PLAIN
        if template is not None:
            self.dialect = dialect_of(template, lambda text: tokenizer.token_id(text) is not None)
        self.grammars = GrammarBuilder(tokenizer, self.dialect, vocab_size)

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What the model's makers recommend, for fields that a request leaves open; read-only."""
        return self._sampling_defaults

    @property
    def has_think_switch(self) -> bool:
        """Whether the chat template can turn thinking on and off."""
        return self.template_source is not None and has_switch(self.template_source)

    def prepare(self) -> None:
        """Build what the first long text and the first grammar need.

        Each stops all threads of Python for up to a second, so a server does it before it answers.
        """
        self.tokenizer.prepare_long()
        with contextlib.suppress(InvalidRequestError):  # of a vocabulary without any end
            self.grammars.prepare()

    def check_thinking(self, thinking: Thinking) -> None:
        """Raise TemplateError if the model's template cannot honour `thinking`."""
        if self.has_think_switch or not (thinking.is_on or thinking.is_off):
            return
        source = self.template_source or ""
        always = self.dialect.think is not None and self.dialect.think.open in source
        if always and not thinking.is_off:
            return
        raise TemplateError(
            f"{self.name} has no switch for thinking in its chat template.",
            hint="a number of tokens caps its thinking" if always else "leave thinking unset",
        )

    def can(self, thinking: Thinking) -> bool:
        """Whether the model's template can honour `thinking`."""
        try:
            self.check_thinking(thinking)
        except TemplateError:
            return False
        return True

    def make(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        cache_salt: str = "",
        priority: int = 0,
        prediction: str = "",
    ) -> PreparedRequest:
        """Build the request of `prompt`.

        prediction: what the answer may be, if the prompt does not bring one itself.

        Raises ContextLengthError, InvalidRequestError, TemplateError, or TokenizerError for texts
        if the model has no tokenizer.
        """
        params = params or SamplingParams()
        if isinstance(prompt, (str, ChatRequest)) or format is not None or params.stop:
            self.tokenizer.encode("")  # raises if the model has no tokenizer
        if isinstance(prompt, ChatRequest):
            prompt = self._with_system(prompt)
            # A template leaves out no text of these, but may strip white space around it.
            self.check_length(shown_texts(prompt.messages))
            prompt = _with_said(prompt)
            prediction = prompt.prediction or prediction
            if format is not None:
                prompt = replace(prompt, format=prompt.format or format)
            text, reading = self._chat(prompt, cache_salt)
            self.check_length([text])
            # The template wrote BOS itself where the model wants it.
            raw: Sequence[int] = self.tokenizer.encode(text, add_special=False)
            grammar = self.grammars.of_chat(prompt, text, reading)
            if prompt.tool_choice.mode == "none":
                params = self.grammars.without_calls(params)
        else:
            reading = OutputParserOptions()
            if isinstance(prompt, str):
                self.check_length([prompt])
            elif len(prompt) > self.context:
                raise self._too_long(len(prompt), None)
            raw = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            grammar = self.grammars.of_format(format)
        ids = check_prompt(raw, self._vocab_size)
        resolved = self._with_room(len(ids), params)
        reading = self._with_budget(reading, resolved, leave_room=grammar is not None)
        predicted = self._prediction(prediction)
        return PreparedRequest(ids, resolved, reading, grammar, cache_salt, priority, predicted)

    def render(self, request: ChatRequest, *, cache_salt: str = "") -> str:
        """Render a chat with the model's template, up to where the reply begins."""
        self.tokenizer.encode("")  # raises if the model has no tokenizer, and so none of its marks
        return self._render(self._with_system(request), cache_salt)[0]

    def _with_system(self, request: ChatRequest) -> ChatRequest:
        """Put the model's own system message before a chat that begins with none, and its own
        messages behind that.
        """
        if not (self.system or self._messages_before) or not request.messages:
            return request
        given = list(request.messages)
        has_system = isinstance(given[0], Mapping) and given[0].get("role") in _SYSTEM
        first: list[Mapping[str, Any]] = [given.pop(0)] if has_system else []
        if self.system and not has_system:
            first = [{"role": "system", "content": self.system}]
        return replace(request, messages=[*first, *self._messages_before, *given])

    def _render(self, request: ChatRequest, cache_salt: str) -> tuple[str, bool]:
        """Return the rendered prompt, and whether it ends within reasoning."""
        source = self.template_source
        if source is None:
            raise TemplateError(
                f"{self.name} has no chat template: it completes text and was not taught to chat.",
                hint="generate from plain text instead (`dure run --raw`)",
            )
        if self._template is None:
            made = ChatTemplate(
                source, bos_token=self.tokenizer.bos_token, eos_token=self.tokenizer.eos_token
            )
            self._check = TemplateCheck(made)
            self._template = made
        request = _with_said(request)
        thinking = request.thinking
        on = False if thinking.is_off else True if thinking.is_on else None
        variables = template_variables(source, on=on, effort=thinking.effort)
        messages = self._messages(request, cache_salt, off=on is False)
        shown = messages[:-1] if request.continue_final else messages
        switches = {**variables, **request.template_variables}
        text: str = self._template.render(
            shown, tools=list(request.tools) or None, add_generation_prompt=True, **switches
        )
        self._check.check(shown, tools=bool(request.tools), variables=switches)
        if request.continue_final:
            return begin_answer(text, messages[-1], self.dialect)
        return text, self.dialect.opens_thinking(text)

    def _messages(
        self, request: ChatRequest, cache_salt: str, *, off: bool
    ) -> list[dict[str, Any]]:
        """Return the messages as the template needs them, with reasoning the client dropped."""
        if self._needs is None and self._template is not None:
            self._needs = needs_of(self._template)
        needs = self._needs or Needs()
        if not (request.tools or needs.calls_alone):
            needs = replace(needs, calls=False)
        tools = request.tools if request.tool_choice.mode != "none" else ()
        made = prepared(
            request.messages,
            needs,
            recall=lambda call_id: self._reasoning_cache.recall(cache_salt, call_id),
            continued=request.continue_final,
        )
        begun = made.pop() if request.continue_final else None
        made = results_in_order(made)
        if self.dialect.call_format is not None:
            made = with_tools(made, tools, needs, self.dialect.call_format)
        made = with_suffix(arranged(made, needs), self.dialect.no_think if off else "")
        return made if begun is None else [*made, begun]

    def _chat(self, request: ChatRequest, cache_salt: str) -> tuple[str, OutputParserOptions]:
        text, starts_in_reasoning = self._render(request, cache_salt)
        thinking = request.thinking
        if starts_in_reasoning and self.dialect.think and (thinking.is_off or thinking.budget == 0):
            # The template has no switch, or ignores it: end the reasoning before it begins.
            end = self.dialect.think.reasoning_end
            open_line = text.endswith(("\n", self.dialect.think.open))
            text, starts_in_reasoning = text + (end.lstrip("\n") if open_line else end), False
        choice = request.tool_choice.mode
        tools = tool_schemas(request.tools) if choice != "none" else {}
        # Whatever the template did: reasoning that begins all the same ends at once.
        budget = 0 if thinking.is_off else thinking.budget

        # A fallback parser enforces no schema, and requested JSON is not a call.
        certain = request.format is not None or any(is_strict(tool) for tool in request.tools)
        return text, OutputParserOptions(
            replace(self.dialect, fallback_parser=None) if certain else self.dialect,
            tools,
            starts_in_reasoning,
            budget,
            single_call=not request.parallel_tool_calls,
        )

    def _with_budget(
        self, reading: OutputParserOptions, params: SamplingParams, *, leave_room: bool
    ) -> OutputParserOptions:
        """Return the options with a reasoning budget that leaves tokens for the answer.

        leave_room: set one even if none was asked for, since a cut answer would break its grammar.
        """
        think = reading.dialect.think
        if think is None:
            return reading
        reasoning_end_ids = tuple(self.tokenizer.encode(think.reasoning_end, add_special=False))
        marks = len(reasoning_end_ids)
        if not reading.starts_in_reasoning:
            marks += len(self.tokenizer.encode(think.open, add_special=False))
        budget, most = reading.budget, params.max_tokens or 0
        if budget is None and leave_room:
            budget = most
        if budget is not None:
            budget = max(0, min(budget, most - marks - max(1, min(256, most // 4))))
        return replace(reading, budget=budget, reasoning_end_ids=reasoning_end_ids)

    def _with_room(self, prompt_tokens: int, params: SamplingParams) -> SamplingParams:
        """Resolve the parameters; raise ContextLengthError if they ask for too many tokens.

        The model's own max_tokens, for which nobody asked, is less where there is less room.
        """
        resolved = params.resolve(self._sampling_defaults)
        room = self.context - prompt_tokens
        if params.max_tokens is None and 1 <= room < (resolved.max_tokens or 0):
            resolved = replace(resolved, max_tokens=room)
        if room < 1 or (resolved.max_tokens or 0) > room:
            raise self._too_long(prompt_tokens, resolved.max_tokens)
        return resolved if resolved.max_tokens is not None else replace(resolved, max_tokens=room)

    def _prediction(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prediction; InvalidRequestError if no answer could be as long."""
        if not text:
            return ()
        encode = partial(self.tokenizer.encode, add_special=False, parse_special=False)
        too_long = len(text) > longest_text(self.context)
        too_long = too_long or least_tokens(encode, [text], self.context) > self.context
        ids = [] if too_long else encode(text)
        if too_long or len(ids) > self.context:
            raise InvalidRequestError(
                f"The prediction has {len(text):,} characters, which are more tokens than the "
                f"context holds: {self.context:,}.",
                hint="shorten it, or leave it out: it changes no answer",
            )
        return tuple(each for each in ids if each < self._vocab_size)  # no others are drawn

    def check_length(self, texts: Sequence[str]) -> None:
        """Raise ContextLengthError for texts of a prompt that are far longer than the context.

        No more of them is tokenised than the context holds.
        """
        encode = partial(self.tokenizer.encode, add_special=False)
        least = least_tokens(encode, texts, self.context)
        if least > self.context:
            raise self._too_long(least, None, at_least=True)
        characters, most = sum(map(len, texts)), longest_text(self.context)
        if characters > most:
            raise PromptLengthError(
                f"The prompt has {characters:,} characters; for a context of {self.context:,} "
                f"tokens at most {most:,} are tokenised.",
                hint="shorten it, above all runs of white space",
            )

    def _too_long(
        self, prompt_tokens: int, max_tokens: int | None, *, at_least: bool = False
    ) -> ContextLengthError:
        asked = f" and {max_tokens:,} are asked for" if max_tokens else ""
        more = f"load the model with a larger context (it allows {self._longest:,})"
        kind = PromptLengthError if prompt_tokens >= self.context else ContextLengthError
        error = kind(
            f"The prompt has {'at least ' if at_least else ''}{prompt_tokens:,} tokens{asked}, "
            "and the context holds "
            f"{self.context:,} for both the prompt and its answer.",
            hint=f"shorten it, or {more}" if self._longest > self.context else "shorten it",
        )
        error.room = max(0, self.context - prompt_tokens)
        return error

    def remember(self, request: PreparedRequest, completion: Completion) -> None:
        """Keep the reasoning before the answer's calls, for clients that send it back without."""
        if request.reading.tools:
            self._reasoning_cache.remember(request.cache_salt, completion)


def _with_said(request: ChatRequest) -> ChatRequest:
    """Apply /think and /no_think of the messages, if the request leaves thinking open."""
    thinking = request.thinking
    if thinking.mode != "auto" or thinking.effort is not None:
        return request
    said = said_thinking(request.messages)
    if said is None:
        return request
    return replace(request, thinking=replace(thinking, mode="on" if said else "off"))
