"""From rows of logits to tokens, as the request's SamplingParams say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from dure.engine.request import Request, TokenCounts, TokenLogprobs
from dure.errors import ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sampled = tuple[int, TokenLogprobs | None] | Exception
    Replaced = list[tuple[NDArray[np.int32], NDArray[np.float32]]]  # ids and what their logits were


class SamplingFunctions(Protocol):
    """The functions of dure.kernels that the sampler needs; the numpy reference has them, too."""

    def sample_rows(
        self,
        logits: NDArray[np.float32],
        *,
        temperatures: Sequence[float],
        top_ks: Sequence[int],
        top_ps: Sequence[float],
        min_ps: Sequence[float],
        uniforms: Sequence[float],
        threads: int,
    ) -> list[int]:
        """Draw a token id from each row of logits (n, V); -1 if its highest is not finite."""
        ...

    def top_logprobs(
        self, logits: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the likeliest ids (count,) and their log-probabilities (count,), falling."""
        ...

    def logprob(self, logits: NDArray[np.float32], token_id: int) -> float:
        """Return the log-probability of one id."""
        ...

    def uniform(self, seed: int, position: int) -> float:
        """Return the random number in [0, 1) of stream `seed` at `position`."""
        ...


class Sampler:
    """Draws tokens. A draw depends on the request alone: its logits, its seed, its output."""

    def __init__(
        self,
        functions: SamplingFunctions | None = None,
        *,
        threads: int = 1,
        unused_ids: Sequence[int] = (),
    ) -> None:
        """unused_ids: rows of logits that no token has, which are never drawn, nor listed among the
        likeliest. Log-probabilities count them: a softmax goes over all rows, as in transformers.
        """
        if functions is None:
            from dure import kernels  # noqa: PLC0415  # loads the C++ extension

            functions = kernels
        self._functions = functions
        self._threads = threads
        self._unused = np.array(unused_ids, np.int32)

    def sample(self, requests: Sequence[Request], logits: NDArray[np.float32]) -> list[Sampled]:
        """Draw each request's next token, with its log-probabilities if asked for.

        logits: (requests, V), a row each, left as they are. What went wrong takes a request's
        place: a ModelFileError if a logit is not a number or infinitely high.
        Order: penalties and bias, temperature, top_k, top_p, min_p.
        """
        try:
            return self._sample(requests, logits)
        except Exception as error:  # whoever's fault it is, the others get their tokens
            if len(requests) == 1:
                return [error]
            return [self.sample([each], logits[i : i + 1])[0] for i, each in enumerate(requests)]

    def guess(
        self, requests: Sequence[Request], logits: NDArray[np.float32], depth: int
    ) -> list[tuple[int, float]]:
        """Draw what each request may draw `depth` tokens after its next one.

        logits: (requests, V) of what guesses. The rule and the random number are those of the draw
        that is guessed, without what the tokens before it change. Returns (id, its probability).
        """
        params = [request.params for request in requests]
        ids = self._functions.sample_rows(
            logits,
            temperatures=[cast("float", each.temperature) for each in params],
            top_ks=[cast("int", each.top_k) for each in params],
            top_ps=[cast("float", each.top_p) for each in params],
            min_ps=[cast("float", each.min_p) for each in params],
            uniforms=[self._uniform(request, depth) for request in requests],
            threads=self._threads,
        )
        return [
            (token_id, math.exp(self._functions.logprob(row, token_id)) if token_id >= 0 else 0.0)
            for token_id, row in zip(ids, logits, strict=True)
        ]

    def score(self, request: Request, logits: NDArray[np.float32]) -> None:
        """Give the request's next prompt tokens their log-probabilities, from logits (rows, V)."""
        count = request.params.prompt_logprobs or 0
        for row in logits:
            token_id = request.prompt_ids[len(request.prompt_logprobs)]
            request.prompt_logprobs.append(self._logprobs(row, token_id, count))

    def _sample(self, requests: Sequence[Request], logits: NDArray[np.float32]) -> list[Sampled]:
        replaced: list[tuple[NDArray[np.float32], Replaced]] = []
        try:
            for request, row in zip(requests, logits, strict=True):
                replaced.append((row, adjust(request, row)))
            ids = self._draw(requests, logits)
        finally:
            for row, old in replaced:
                for places, values in reversed(old):
                    row[places] = values
        return [
            self._drawn(request, token_id, row)
            for request, token_id, row in zip(requests, ids, logits, strict=True)
        ]

    def _draw(self, requests: Sequence[Request], logits: NDArray[np.float32]) -> list[int]:
        # Resolved parameters: none of the four is None.
        params = [request.params for request in requests]
        without_token = logits[:, self._unused]
        logits[:, self._unused] = -np.inf
        try:
            return self._functions.sample_rows(
                logits,
                temperatures=[cast("float", each.temperature) for each in params],
                top_ks=[cast("int", each.top_k) for each in params],
                top_ps=[cast("float", each.top_p) for each in params],
                min_ps=[cast("float", each.min_p) for each in params],
                uniforms=[self._uniform(request) for request in requests],
                threads=self._threads,
            )
        finally:
            logits[:, self._unused] = without_token

    def _uniform(self, request: Request, ahead: int = 0) -> float:
        """The number that decides the draw `ahead` of the next; 0 where the highest logit does."""
        if not request.params.temperature:
            return 0.0
        return self._functions.uniform(request.seed, len(request.output_ids) + ahead)

    def _drawn(self, request: Request, token_id: int, logits: NDArray[np.float32]) -> Sampled:
        if token_id < 0:
            return ModelFileError(
                f"The model's logits have {logits.max()} as their highest: nothing can be drawn.",
                hint="a weight of the file is no number or far too large: download it again",
            )
        count = request.params.logprobs
        return token_id, None if count is None else self._logprobs(logits, token_id, count)

    def _logprobs(self, logits: NDArray[np.float32], token_id: int, count: int) -> TokenLogprobs:
        chosen = self._functions.logprob(logits, token_id)
        if count == 0:
            return TokenLogprobs(token_id, chosen, ())
        most = min(count, len(logits) - self._unused.size)
        ids, values = self._functions.top_logprobs(logits, most)
        if np.isin(ids, self._unused).any():  # so many more that enough have a token
            ids, values = self._functions.top_logprobs(logits, most + self._unused.size)
            used = ~np.isin(ids, self._unused)
            ids, values = ids[used][:most], values[used][:most]
        listed = values > -np.inf
        top = tuple(zip(ids[listed].tolist(), values[listed].tolist(), strict=True))
        return TokenLogprobs(token_id, chosen, top)


def adjust(request: Request, logits: NDArray[np.float32]) -> Replaced:
    """Change logits (V,) in place by penalties, bias, min_tokens and grammar.

    Returns what they were, as (ids, values).

    Repetition first (a positive logit is divided, a negative one multiplied, as CTRL's paper
    has it), then presence and frequency, then the bias, then
    what min_tokens and a grammar forbid. To undo it, go from the last to the first.
    """
    params = request.params
    replaced: Replaced = []
    repetition = cast("float", params.repetition_penalty)
    presence = cast("float", params.presence_penalty)
    frequency = cast("float", params.frequency_penalty)
    if repetition != 1.0 or presence or frequency:
        if request.token_counts is None:
            request.token_counts = _count(request)
        ids, counts = request.token_counts.ids, request.token_counts.counts
        values = logits[ids]
        replaced.append((ids, values))
        if repetition != 1.0:
            factor = np.float32(repetition)
            values = np.where(values > 0, values / factor, values * factor)
        penalty = np.float32(presence) * (counts > 0)
        values = values - penalty - np.float32(frequency) * counts.astype(np.float32)
        logits[ids] = values
    if params.logit_bias:
        biased = np.fromiter(params.logit_bias.keys(), dtype=np.int32)
        replaced.append((biased, logits[biased]))
        logits[biased] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
    if len(request.output_ids) < params.min_tokens and request.constraint is None:
        ending = np.array(request.min_tokens_banned_ids, dtype=np.int32)
        replaced.append((ending, logits[ending]))
        logits[ending] = -np.inf
    if request.constraint is not None:
        forbidden = request.constraint.forbidden()
        replaced.append((forbidden, logits[forbidden]))
        logits[forbidden] = -np.inf
    return replaced


def _count(request: Request) -> TokenCounts:
    counts = TokenCounts(request.prompt_ids)
    for token_id in request.output_ids:
        counts.add(token_id)
    return counts
