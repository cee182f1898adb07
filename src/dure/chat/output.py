"""OutputProcessor: turns a request's tokens into text, events, a finish reason and usage."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dure.chat.dialects import PLAIN, Dialect, Event, StreamParser
from dure.chat.usage import Timings, Usage
from dure.engine.request import RequestState
from dure.text.detokenizer import Detokenizer
from dure.text.stop import StopSearch

if TYPE_CHECKING:
    from dure.engine.engine import Engine
    from dure.engine.passes import StepOutput
    from dure.engine.request import FinishReason, Request, TokenLogprobs
    from dure.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """A finished answer. With n > 1 this is the first, and `choices` holds all n of them.

    `text` is all that the model wrote, delimiters included; `reasoning`, `content` and
    `tool_calls` (in OpenAI's form) are its parts.
    """

    text: str  # all that the model wrote
    token_ids: tuple[int, ...]  # the tokens of `text`
    logprobs: tuple[TokenLogprobs | None, ...] | None  # one per token; None for a forced token
    finish_reason: str  # "stop", "length" or "abort"
    usage: Usage  # tokens and seconds
    choices: tuple[Completion, ...] = ()  # all n choices, where n > 1
    content: str = ""  # the answer without reasoning and tool calls
    reasoning: str = ""  # the reasoning, without delimiters
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # in OpenAI's form
    stopped: str | None = None  # the stop string that ended it
    unparsed_calls: int = 0  # calls that could not be read; their text is in `content`
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # one per prompt token

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.usage.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the KV cache."""
        return self.usage.cached_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of `reasoning`."""
        return self.usage.reasoning_tokens

    @property
    def timings(self) -> Timings:
        """Seconds and tokens per second."""
        return self.usage.timings


@dataclass(frozen=True)
class Chunk:
    """What one token adds to a stream. `text` is empty while a character or stop word is open."""

    text: str  # what can be shown
    token_id: int  # the token
    completion: Completion | None = None  # the whole answer, with the last chunk
    events: tuple[Event, ...] = ()  # the same as pieces of reasoning, content and tool calls
    logprobs: TokenLogprobs | None = None  # where params.logprobs asks for them
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # with the first chunk
    usage: Usage | None = None  # what the answer took so far


@dataclass(frozen=True)
class OutputParserOptions:
    """How to parse an answer, and how long its reasoning may be."""

    dialect: Dialect = PLAIN
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # schemas, by name
    starts_in_reasoning: bool = False  # the prompt ends within reasoning
    budget: int | None = None  # reasoning tokens at most
    reasoning_end_ids: tuple[int, ...] = ()  # tokens forced at the end of that budget
    single_call: bool = False  # the answer ends with its first call


class OutputProcessor:
    """Processes one request's outputs. `take` each of them; `chunks` holds what came of them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: Request,
        reading: OutputParserOptions | None = None,
        on_complete: Callable[[Completion], None] | None = None,
    ) -> None:
        reading = reading or OutputParserOptions()
        self.request = request
        self.chunks: deque[Chunk] = deque()
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self.engine = engine  # that computes it
        self._on_complete = on_complete
        self._params = request.params
        self._budget = reading.budget
        self._reasoning_end_ids = reading.reasoning_end_ids
        self._reading = reading
        self._reasoning_tokens = 0
        self._parser = StreamParser(
            reading.dialect, tools=reading.tools, starts_in_reasoning=reading.starts_in_reasoning
        )
        shown = {tokenizer.token_id(mark) for mark in reading.dialect.marks}
        self._stream = Detokenizer(tokenizer, shown={i for i in shown if i is not None})
        # Stop strings end the content: those in reasoning, or in a call's arguments, do not count.
        self._stops = StopSearch(request.params.stop)
        self._held_text = ""  # raw text whose content may yet become a stop string
        self._text: list[str] = []
        self._events: list[Event] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs | None] = []
        self._cached_tokens = 0
        self._began = time.perf_counter()
        self._first: float | None = None
        self._watch_error: Exception | None = None
        self._num_watched = 0  # tokens of this step that were processed before its end
        if reading.budget is not None or (request.constraint and request.constraint.deferred):
            request.watch = self.watch

    @property
    def requests(self) -> tuple[Request, ...]:
        """Its requests in the engine."""
        return (self.request,)

    @property
    def may_move(self) -> bool:
        """Whether it has all tokens that its unfinished request has: so it may go on elsewhere."""
        seen = not self._num_watched and self._watch_error is None
        have = len(self._token_ids) == len(self.request.output_ids)
        return seen and have and not self.request.is_finished

    def move_to(self, engine: Engine) -> None:
        """Note that another engine computes it from now on."""
        self.engine = engine

    @property
    def is_waiting(self) -> bool:
        """Whether the request waits for its turn."""
        return self.request.state is RequestState.WAITING

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache, as far as is known."""
        return self.request.num_cached_tokens

    @property
    def prefilled(self) -> tuple[int, int]:
        """(prompt tokens already in the cache, prompt tokens in all)."""
        total = len(self.request.prompt_ids)
        return min(self.request.num_computed_tokens, total), total

    @property
    def usage(self) -> Usage:
        """What the answer took so far, or in all if it is over."""
        return self._usage() if self.completion is None else self.completion.usage

    @property
    def started(self) -> bool:
        """Whether the first token has come."""
        return self._first is not None

    @property
    def is_over(self) -> bool:
        """Whether no more chunks will come."""
        return self.completion is not None or self.error is not None

    def result(self) -> Completion:
        """Return the completion of a finished answer; raise what went wrong if it failed."""
        if self.completion is None:
            raise self.error or RuntimeError("the answer has not finished yet")
        return self.completion

    def take(self, output: StepOutput) -> None:
        """Process the request's new tokens, or its failure."""
        if not output.token_ids:
            self.error = self.request.error or RuntimeError("the engine failed a request")
        if self._watch_error is not None:
            raise self._watch_error
        first, self._num_watched = self._num_watched, 0
        last = len(output.token_ids) - 1
        for index, (token_id, logprobs) in enumerate(
            zip(output.token_ids, output.logprobs, strict=True)
        ):
            # What was watched is done, and a stop string may have come before the others.
            if index >= first and not self.is_over:
                self._take(token_id, logprobs, output.finish_reason if index == last else None)

    def watch(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """Process a token in the midst of a step, as it may decide how the next is drawn.

        Reasoning may end with it, so that a grammar begins, or its budget may be used up. Returns
        whether the step may go on.
        """
        try:
            self._take(token_id, logprobs, None)
        except Exception as error:  # raised where a step hands out its tokens
            self._watch_error = error
        self._num_watched += 1
        return self._watch_error is None and not self.is_over

    def _take(
        self, token_id: int, logprobs: TokenLogprobs | None, finish_reason: FinishReason | None
    ) -> None:
        request = self.request
        prompt = self._prompt_logprobs() if self._first is None else None
        if self._first is None:
            self._first = time.perf_counter()
            self._cached_tokens = request.num_cached_tokens
        self._token_ids.append(token_id)
        self._logprobs.append(logprobs)
        reason: str | None = finish_reason
        # The token that ends an answer (EOS, a stop token) is not part of its text.
        text = "" if reason and request.stop_token_id is not None else self._stream.push(token_id)
        if reason is not None:
            text += self._stream.finish()
        events = self._read(text, ends=reason is not None)
        if self._stops:
            text, events = self._before_stop(text, events, ends=reason is not None)
            if self._stops.stopped is not None:
                if reason is None:
                    self.engine.finish(request.id, reason="stop")
                reason = "stop"
        if self._reading.single_call and _ends_call(events):
            if reason is None:
                self.engine.finish(request.id, reason="stop")
                reason = "stop"
            events = _first_call(events)
        self._text.append(text)
        self._events += events
        done = None if reason is None else self._complete(reason)
        usage = self._usage() if done is None else done.usage
        self.chunks.append(Chunk(text, token_id, done, tuple(events), logprobs, prompt, usage))
        # After the last chunk: whoever reads on another thread ends when it sees the completion.
        self.completion = done
        if done is not None and self._on_complete is not None:
            self._on_complete(done)

    def end_thinking(self) -> None:
        """Make the model end its reasoning at the next token, and answer.

        Reasoning that it begins later ends at once. The caller holds the engine's lock.
        """
        self._budget = 0
        self.request.watch = self.watch
        self._keep_to_budget()

    def abort(self) -> None:
        """Abort the request, unless it has finished."""
        self.engine.finish(self.request.id, reason="abort")

    def _read(self, text: str, *, ends: bool) -> list[Event]:
        """Parse `text` into events; count the reasoning, and end it beyond its budget."""
        was_thinking = self._parser.thinking
        events = self._parser.push(text)
        if was_thinking and self._parser.thinking:
            self._reasoning_tokens += 1
        if ends:
            return events + self._parser.finish()
        self._keep_to_budget()
        constraint = self.request.constraint
        if constraint is not None and constraint.deferred and not self._parser.thinking:
            constraint.begin()
        return events

    def _before_stop(
        self, text: str, events: list[Event], *, ends: bool
    ) -> tuple[str, list[Event]]:
        """Cut the raw text and the events before a stop string in the content.

        A stop string lies within one run of content: it does not go on after a call. What may yet
        become one is held back, until `ends`.
        """
        made: list[Event] = []
        for event in events:
            is_content = event.kind == "content"
            shown = self._stops.push(event.text) if is_content else self._stops.flush()
            if shown:
                made.append(Event("content", shown))
            if self._stops.stopped is not None:
                break
            if not is_content:
                made.append(event)
        held = self._held_text + text
        if self._stops.stopped is not None:
            self._held_text = ""
            return held[: max(0, held.find(self._stops.stopped))], made
        if ends and (rest := self._stops.flush()):
            made.append(Event("content", rest))
        keep = 0 if ends else len(self._stops.held) + self._parser.pending
        cut = max(0, len(held) - keep)
        self._held_text = held[cut:]
        return held[:cut], made

    def _keep_to_budget(self) -> None:
        """Force the tokens that end the reasoning once its budget is used up."""
        if (
            self._budget is None
            or not self._parser.thinking
            or self._reasoning_tokens < self._budget
        ):
            return
        if not self.request.forced_tokens:
            self.engine.force_tokens(self.request.id, self._reasoning_end_ids)

    def _complete(self, reason: str) -> Completion:
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs),
            finish_reason=reason,
            usage=self._usage(),
            content=_joined(self._events, "content"),
            reasoning=_joined(self._events, "reasoning"),
            tool_calls=_tool_calls(self._events),
            stopped=self._stops.stopped,
            unparsed_calls=self._parser.unparsed,
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _usage(self) -> Usage:
        """Count what the answer took so far."""
        first = self._began if self._first is None else self._first
        return Usage(
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self._cached_tokens,
            output_tokens=len(self._token_ids),
            reasoning_tokens=self._reasoning_tokens,
            drafted_tokens=self.request.num_drafted_tokens,
            accepted_tokens=self.request.num_accepted_tokens,
            prefill_s=first - self._began,
            decode_s=time.perf_counter() - first,
            cost=self.request.account.cost,
            experts=self.request.expert_use,
        )

    def _prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        asked = self._params.prompt_logprobs is not None
        return tuple(self.request.prompt_logprobs) if asked else None


def _ends_call(events: list[Event]) -> bool:
    return any(event.kind == "call_end" for event in events)


def _first_call(events: list[Event]) -> list[Event]:
    """Return the events up to the end of the first call."""
    ends = [event.kind == "call_end" for event in events]
    return events[: ends.index(True) + 1]


def _joined(events: list[Event], kind: str) -> str:
    return "".join(event.text for event in events if event.kind == kind)


def _tool_calls(events: list[Event]) -> tuple[dict[str, Any], ...]:
    """Return the calls in OpenAI's form, with their arguments as JSON text."""
    arguments: dict[int, list[str]] = {}
    for event in events:
        if event.kind == "arguments":
            arguments.setdefault(event.index, []).append(event.text)
    return tuple(
        {
            "id": event.id,
            "type": "function",
            "function": {"name": event.name, "arguments": "".join(arguments.get(event.index, ()))},
        }
        for event in events
        if event.kind == "call"
    )
