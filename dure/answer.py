"""One answer as it grows: tokens from the engine become text, a reason to end, and timings."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dure.text.stream import TextStream

if TYPE_CHECKING:
    from dure.engine.engine import Engine
    from dure.engine.request import Request, TokenLogprobs
    from dure.text.tokenizer import Tokenizer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True)
class Timings:
    """How long an answer took. Prefill ends with the first token, and includes any queueing."""

    prefill_s: float
    decode_s: float
    prefill_tps: float  # prompt tokens computed (not those found in the cache) per second
    decode_tps: float  # tokens after the first per second; 0 if there is none


@dataclass(frozen=True)
class Completion:
    """A finished answer. With n > 1 this is the first, and `choices` holds all n of them."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...] | None  # None for a token that we put in ourselves
    finish_reason: str  # "stop", "length" or "abort"
    prompt_tokens: int
    cached_tokens: int
    timings: Timings
    choices: tuple[Completion, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """What one token adds to a stream. `text` is empty while a character or stop word is open."""

    text: str
    token_id: int
    completion: Completion | None = None  # the whole answer, with its last chunk


@dataclass(frozen=True)
class ThinkLimit:
    """Thinking tokens allowed, and whether the prompt itself already opened the thinking."""

    tokens: int
    already_open: bool = False


class Answer:
    """One request as it is answered. `take` each of its tokens; `chunks` can then be read."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        request: Request,
        *,
        think: ThinkLimit | None = None,
    ) -> None:
        self.request = request
        self.chunks: deque[Chunk] = deque()
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self._engine = engine
        self._tokenizer = tokenizer
        self._params = request.params
        self._prompt_ids = request.prompt_ids
        self._think = think
        self._thinking = True if think is not None and think.already_open else None
        self._thought = 0
        self._stream = TextStream(tokenizer, stop=request.params.stop)
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs | None] = []
        self._cached_tokens = 0
        self._began = time.perf_counter()
        self._first: float | None = None

    @property
    def prefilled(self) -> tuple[int, int]:
        """(prompt tokens already in the cache, prompt tokens in all)."""
        total = len(self._prompt_ids)
        return min(self.request.num_computed_tokens, total), total

    @property
    def started(self) -> bool:
        """Whether the first token has come."""
        return self._first is not None

    @property
    def is_over(self) -> bool:
        """Whether no more chunks will come."""
        return self.completion is not None or self.error is not None

    def result(self) -> Completion:
        """The completion of an answer that is over; raises what went wrong if it failed."""
        if self.completion is None:
            raise self.error or RuntimeError("an answer was asked for before it was over")
        return self.completion

    def take(self, token_id: int | None) -> None:
        """Nothing; our request's newest token (None: it failed) becomes a chunk or the end."""
        request = self.request
        if token_id is None:
            self.error = request.error or RuntimeError("the engine gave up a request")
            return
        if self._first is None:
            self._first = time.perf_counter()
            self._cached_tokens = request.num_cached_tokens
        self._token_ids.append(token_id)
        self._logprobs += request.logprobs[-1:]
        reason: str | None = request.finish_reason
        # The token that ends an answer (EOS, a stop token) is not part of its text.
        text = "" if reason == "stop" else self._stream.push(token_id)
        if reason is None and self._stream.stopped is not None:
            self._engine.finish(request.id, reason="stop")
            reason = "stop"
        if reason is None and self._thinks_too_long(text):
            text, reason = self._close_thinking(text)
        if reason is not None:
            text += self._stream.finish()
            # The last text to be released may complete a stop string, too.
            reason = "stop" if self._stream.stopped is not None else reason
        self._text.append(text)
        if reason is not None:
            self.completion = self._complete(reason)
        self.chunks.append(Chunk(text, token_id, self.completion))

    def abort(self) -> None:
        """Nothing; the engine forgets our request, if it is not done with it already."""
        self._engine.finish(self.request.id, reason="abort")

    def _thinks_too_long(self, text: str) -> bool:
        """Whether the model is still thinking after all the tokens it may think for."""
        if self._think is None or self._thinking is False:
            return False
        so_far = "".join(self._text) + text
        if self._thinking is None:
            said = so_far.lstrip()
            if len(said) < len(THINK_OPEN) and THINK_OPEN.startswith(said):
                return False  # nothing yet, or the beginning of the mark
            self._thinking = said.startswith(THINK_OPEN)
        elif THINK_CLOSE in so_far:
            self._thinking = False
        self._thought += 1
        return self._thinking and self._thought >= self._think.tokens

    def _close_thinking(self, text: str) -> tuple[str, str | None]:
        """(text, reason to end or None): the model is made to stop thinking and go on to answer.

        The prompt, its thoughts and the closing mark become a new prompt, nearly all of which is
        still in the cache.
        """
        self._engine.finish(self.request.id, reason="abort")
        self._thinking = False
        closing = f"\n{THINK_CLOSE}\n\n"
        closing_ids = self._tokenizer.encode(closing, add_special=False)
        text += self._stream.finish() + closing
        self._token_ids += closing_ids
        if self._params.logprobs is not None:
            self._logprobs += [None] * len(closing_ids)  # we chose these, not the model
        left = (self._params.max_tokens or 0) - len(self._token_ids)
        if left <= 0:
            return text, "length"
        # Random numbers are drawn by output position: a seed of its own repeats none of them.
        params = replace(self._params, n=1, max_tokens=left, seed=self.request.seed ^ 1)
        self.request = self._engine.add([*self._prompt_ids, *self._token_ids], params)
        self._stream = TextStream(self._tokenizer, stop=self._params.stop, continues=True)
        return text, None

    def _complete(self, reason: str) -> Completion:
        first = self._began if self._first is None else self._first
        prefill_s, decode_s = first - self._began, time.perf_counter() - first
        computed = len(self._prompt_ids) - self._cached_tokens
        later = len(self._token_ids) - 1
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs),
            finish_reason=reason,
            prompt_tokens=len(self._prompt_ids),
            cached_tokens=self._cached_tokens,
            timings=Timings(
                prefill_s=prefill_s,
                decode_s=decode_s,
                prefill_tps=computed / prefill_s if prefill_s else 0.0,
                decode_tps=later / decode_s if decode_s else 0.0,
            ),
        )
