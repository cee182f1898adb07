"""Usage: what one answer took, in tokens and in seconds. Every API's own form is mapped from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dure.errors import InvalidRequestError
from dure.metering.cost import NOTHING, Cost
from dure.metering.prices import Prices
from dure.weights.expert_stats import ExpertUse


@dataclass(frozen=True)
class Timings:
    """How long an answer took. Prefill ends with the first token, and includes any queueing."""

    prefill_s: float  # seconds to the first token
    decode_s: float  # seconds from the first token to the last
    prefill_tps: float  # prompt tokens computed (not those found in the cache) per second
    decode_tps: float  # tokens after the first per second; 0 if there is none


@dataclass(frozen=True)
class Usage:
    """What an answer took: tokens, and seconds of wall time."""

    prompt_tokens: int  # tokens of the prompt
    cached_tokens: int = 0  # of them, found in the KV cache
    output_tokens: int = 0  # all that the model wrote, reasoning and the last stop token too
    reasoning_tokens: int = 0  # of them, tokens of the reasoning
    drafted_tokens: int = 0  # tokens that a drafter guessed
    accepted_tokens: int = 0  # of them, right
    prefill_s: float = 0.0  # seconds to the first token, queueing included
    decode_s: float = 0.0  # seconds from the first token to the last
    cost: Cost = NOTHING  # processor seconds and joules, shared with who was in the same steps
    experts: ExpertUse | None = None  # what its steps read from disk; None: all is in memory

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that went through the model: those that were not in the KV cache."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of the prompt and of the answer."""
        return self.prompt_tokens + self.output_tokens

    def money(self, prices: Prices) -> float:
        """Compute what the answer costs.

        Returns an amount in the currency of `prices`. Raises InvalidRequestError for anything else.
        """
        if not isinstance(prices, Prices):
            raise InvalidRequestError(
                f"prices must be Prices, not {prices!r:.60}.",
                hint='Prices(input=0.1, output=0.4, currency="EUR")',
            )
        return prices.money(
            prompt=self.prompt_tokens,
            cached=self.cached_tokens,
            output=self.output_tokens,
            cost=self.cost,
        )

    @property
    def timings(self) -> Timings:
        """The seconds, and the tokens per second that follow from them."""
        later = self.output_tokens - 1
        return Timings(
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            prefill_tps=self.computed_tokens / self.prefill_s if self.prefill_s else 0.0,
            decode_tps=max(0, later) / self.decode_s if self.decode_s else 0.0,
        )

    @classmethod
    def of_choices(cls, choices: Iterable[Usage], *, prompt_tokens: int = 0) -> Usage:
        """Add up several answers to one prompt, whose tokens count once.

        prompt_tokens: the size of the prompt where there are no choices. They are written side by
        side, so the seconds are those of the slowest, and the experts those of the longest.
        """
        each = list(choices)
        if not each:
            return cls(prompt_tokens)
        return cls(
            prompt_tokens=each[0].prompt_tokens,
            cached_tokens=each[0].cached_tokens,
            output_tokens=sum(one.output_tokens for one in each),
            reasoning_tokens=sum(one.reasoning_tokens for one in each),
            drafted_tokens=sum(one.drafted_tokens for one in each),
            accepted_tokens=sum(one.accepted_tokens for one in each),
            prefill_s=max(one.prefill_s for one in each),
            decode_s=max(one.decode_s for one in each),
            cost=sum((one.cost for one in each), NOTHING),
            experts=max(
                (one.experts for one in each if one.experts is not None),
                key=lambda use: use.needed,
                default=None,
            ),
        )

    @classmethod
    def of_prompts(cls, prompts: Iterable[Usage]) -> Usage:
        """Add up the answers to several prompts of one request, whose tokens all count."""
        each = list(prompts)
        return replace(
            cls.of_choices(each),
            prompt_tokens=sum(one.prompt_tokens for one in each),
            cached_tokens=sum(one.cached_tokens for one in each),
        )
