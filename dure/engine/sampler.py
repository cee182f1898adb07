"""From one row of logits to one token, as the request's SamplingParams say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from dure.engine.request import Request, TokenCounts, TokenLogprobs

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SamplingFunctions(Protocol):
    """What the sampler needs of dure.kernels; its numpy reference has the same four."""

    def sample(
        self,
        logits: NDArray[np.float32],
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        uniform: float,
    ) -> int:
        """The id drawn from logits (V,) at `uniform`."""
        ...

    def top_logprobs(
        self, logits: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The likeliest ids (count,) and their log-probabilities (count,), falling."""
        ...

    def logprob(self, logits: NDArray[np.float32], token_id: int) -> float:
        """The log-probability of one id."""
        ...

    def uniform(self, seed: int, position: int) -> float:
        """The number in [0, 1) of stream `seed` at `position`."""
        ...


class Sampler:
    """Draws tokens. A draw depends on the request alone: its logits, its seed, its output."""

    def __init__(self, functions: SamplingFunctions | None = None) -> None:
        if functions is None:
            from dure import kernels  # noqa: PLC0415  # loads the C++ extension

            functions = kernels
        self._functions = functions

    def sample(
        self, request: Request, logits: NDArray[np.float32]
    ) -> tuple[int, TokenLogprobs | None]:
        """The request's next token and, if asked for, its log-probabilities.

        Order: penalties and bias, temperature, top_k, top_p, min_p. ArithmeticError if a logit
        is not a number or infinitely high. `logits` (V,) is left as it is.
        """
        # The highest is NaN if any is: one pass in numpy, 20 us for 150,000.
        highest = float(logits.max())
        if not math.isfinite(highest):
            raise ArithmeticError(f"the model's logits have {highest} as their highest")
        params = request.params
        temperature = cast("float", params.temperature)  # resolved: none of the four is None
        token_id = self._functions.sample(
            adjust(request, logits),
            temperature=temperature,
            top_k=cast("int", params.top_k),
            top_p=cast("float", params.top_p),
            min_p=cast("float", params.min_p),
            uniform=self._functions.uniform(request.seed, len(request.output_ids))
            if temperature > 0.0
            else 0.0,
        )
        if params.logprobs is None:
            return token_id, None
        return token_id, self._logprobs(logits, token_id, params.logprobs)

    def _logprobs(self, logits: NDArray[np.float32], token_id: int, count: int) -> TokenLogprobs:
        chosen = self._functions.logprob(logits, token_id)
        if count == 0:
            return TokenLogprobs(token_id, chosen, ())
        ids, values = self._functions.top_logprobs(logits, min(count, logits.size))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogprobs(token_id, chosen, top)


def adjust(request: Request, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (V,) after penalties and bias: a copy, or the same array if none is set.

    Repetition first (a positive logit is divided, a negative one multiplied, as CTRL's paper
    has it), then presence and frequency, then the bias.
    """
    params = request.params
    repetition = cast("float", params.repetition_penalty)
    penalised = repetition != 1.0 or params.presence_penalty or params.frequency_penalty
    if not penalised and not params.logit_bias:
        return logits
    logits = logits.copy()
    if penalised:
        if request.token_counts is None:
            request.token_counts = _count(request)
        ids, counts = request.token_counts.ids, request.token_counts.counts
        values = logits[ids]
        if repetition != 1.0:
            factor = np.float32(repetition)
            values = np.where(values > 0, values / factor, values * factor)
        values -= np.float32(params.presence_penalty) * (counts > 0)
        values -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
        logits[ids] = values
    if params.logit_bias:
        biased = np.fromiter(params.logit_bias.keys(), dtype=np.int32)
        logits[biased] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
    return logits


def _count(request: Request) -> TokenCounts:
    counts = TokenCounts(request.prompt_ids)
    for token_id in request.output_ids:
        counts.add(token_id)
    return counts
