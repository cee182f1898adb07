"""One request: what was asked, what has come out so far, and where its tokens lie in the cache."""

from __future__ import annotations

import enum
import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dure.engine.params import SamplingParams
from dure.errors import ContextLengthError, InvalidRequestError
from dure.metering.meter import Account

if TYPE_CHECKING:
    from dure.engine.grammar import GrammarState
    from dure.engine.pooling import Pooler
    from dure.weights.expert_stats import ExpertUse

__all__ = [
    "FinishReason",
    "Request",
    "RequestState",
    "SamplingParams",
    "TokenCounts",
    "TokenLogprobs",
    "check_fits",
    "check_ids",
    "check_prompt",
    "check_room",
    "choice_seed",
    "choices_of",
    "output_limit",
]

FinishReason = Literal["stop", "length", "abort", "error"]

MOST_LOSSES = 2
"""A request that is alone on its way when a pass is lost, so often in a row, is what loses it."""


class RequestState(enum.Enum):
    """Where a request stands: a preempted one is WAITING again, with its output kept."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one output position, of the raw logits: before penalties and bias."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (id, logprob), falling; as many as were asked for


class TokenCounts:
    """How often each id that a request has met was put out; ids of the prompt alone count 0.

    Kept up to date token by token, so that a penalty costs the ids met and not the vocabulary.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = np.unique(np.asarray(prompt_ids, dtype=np.int32))
        self._counts = np.zeros(self._ids.size, dtype=np.int32)
        self._size = self._ids.size
        self._slots = {int(token): slot for slot, token in enumerate(self._ids)}

    @property
    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """Every id met so far, int32 (met,), each once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """How often each of `ids` was put out, int32 (met,)."""
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        """Count one more output of `token_id`."""
        slot = self._slots.setdefault(token_id, self._size)
        if slot == self._size:
            if slot == self._ids.size:  # doubling keeps the cost of a token constant
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[slot] = token_id
            self._size += 1
        self._counts[slot] += 1


@dataclass(eq=False)
class Request:
    """One continuation of one prompt. With n > 1 each choice is a Request of its own.

    Read by anyone; written by the engine, its scheduler and sampler only.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams  # resolved: no distribution field is None
    seed: int  # of this choice's random stream; output token i is drawn at position i
    max_output: int  # finish_reason "length" when the output is this long
    root: bytes  # the digest that its cached blocks descend from: tenant salt and model
    choice: int = 0
    min_tokens_banned_ids: tuple[int, ...] = ()  # the tokens that min_tokens keeps away
    priority: int = 0  # the lowest goes first
    constraint: GrammarState | None = None  # where it stands in its grammar
    # Sees a token before the next one of the same step is drawn, where what it says may decide how
    # that is drawn. Returns whether more may be drawn in this step.
    watch: Callable[[int, TokenLogprobs | None], bool] | None = None
    prediction_ids: tuple[int, ...] = ()  # what the answer is thought to be: drafts, no more
    pooler: Pooler | None = None  # its hidden states become a vector, and nothing is drawn
    choices: tuple[Request, ...] = ()  # all n of them, this one too, in order

    output_ids: list[int] = field(default_factory=list)  # a stop token that ended it is the last
    forced_tokens: deque[int] = field(
        default_factory=deque
    )  # tokens that come next, whatever is drawn
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one a token drawn, if asked
    # One a prompt token as far as scored, if asked; the first has none
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it, if one did
    error: Exception | None = None  # why finish_reason is "error"
    num_cached_tokens: int = 0  # prompt tokens found in the cache when it was first admitted
    num_drafted_tokens: int = 0  # tokens that a drafter guessed for it
    num_accepted_tokens: int = 0  # of them, right
    num_preemptions: int = 0
    num_moves: int = 0  # from one engine to another
    is_suspect: bool = False  # a pass was lost with it, and no token has come since
    num_losses: int = 0  # passes that were lost with nothing but it on its way, one after another
    lost_at: int = 0  # how many tokens it had at the last of them
    # What its steps took of experts that are read from disk; None if all are in memory
    expert_use: ExpertUse | None = None

    account: Account = field(default_factory=Account)  # what its shares of steps took
    in_flight: bool = False  # a pass is on its way that brings it something
    arrival: int = 0  # the order in which requests came; kept when preempted
    tokens: list[int] = field(default_factory=list)  # prompt_ids and output_ids
    num_computed_tokens: int = (
        0  # of `tokens`: their keys and values are in the block table's blocks
    )
    block_table: list[int] = field(default_factory=list)
    # In layers with a window it holds only the blocks of its table from number window_first on
    window_first: int = 0
    window_blocks: list[int] = field(default_factory=list)
    window_marks: list[range] = field(default_factory=list)  # numbers of blocks worth keeping
    digests: list[bytes] = field(default_factory=list)  # of the full blocks of `tokens`
    state_slot: int = -1  # of its recurrent state, which is that after num_computed_tokens
    # Snapshots to be taken on the way: (position, slot), rising; the slots are the request's so far
    snapshots: list[tuple[int, int]] = field(default_factory=list)
    draft_slots: list[int] = field(
        default_factory=list
    )  # states of this step's drafts, but the last
    token_counts: TokenCounts | None = None  # only if a penalty is set

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt_ids)
        if self.params.prompt_logprobs is not None and self.choice == 0:
            self.prompt_logprobs.append(None)  # nothing comes before the first

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache; 1 while decoding."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def is_scoring(self) -> bool:
        """Whether prompt tokens are still to be scored: then every row of the prompt is computed.

        Of several choices the first does it for all.
        """
        return 0 < len(self.prompt_logprobs) < len(self.prompt_ids)

    @property
    def needs_all_rows(self) -> bool:
        """Whether every row of the prompt must be computed: then none may come from the cache."""
        return self.is_scoring or (self.pooler is not None and self.pooler.params.needs_all)

    @property
    def may_draft(self) -> bool:
        """Whether a step may bring it several tokens.

        Not while its grammar waits for somebody who sees no token before the step is over.
        """
        waits = self.constraint is not None and self.constraint.deferred
        return self.watch is not None or not waits

    @property
    def is_finished(self) -> bool:
        """Whether `finish_reason` is set and every block is back."""
        return self.state is RequestState.FINISHED

    def append(self, token_id: int) -> None:
        """Add one output token."""
        self.is_suspect = False
        self.output_ids.append(token_id)
        self.tokens.append(token_id)
        if self.token_counts is not None:
            self.token_counts.add(token_id)

    def note_loss(self, *, alone: bool) -> bool:
        """Note that a pass was lost while this was on its way, `alone` or with others.

        Returns whether that was once too often. One token more than last time is no step ahead:
        computing again brings it, and the pass behind it may be what is lost.
        """
        self.is_suspect = True
        if alone:
            goes_on = len(self.tokens) > self.lost_at + 1
            self.num_losses = 1 if goes_on else self.num_losses + 1
            self.lost_at = len(self.tokens)
        return self.num_losses >= MOST_LOSSES


def choices_of(
    name: str,
    prompt: tuple[int, ...],
    params: SamplingParams,
    *,
    start: Callable[[], GrammarState] | None,
    **more: Any,
) -> tuple[Request, ...]:
    """Make the n choices of one request, each with a seed, and a state of the grammar, of its own.

    name: the id of choice 0. start: returns the first state. more: fields that all have alike.
    """
    seed = choice_seed(params.seed, 0)
    return tuple(
        Request(
            id=f"{name}:{choice}" if choice else name,
            prompt_ids=prompt,
            params=params,
            seed=choice_seed(seed, choice),
            choice=choice,
            constraint=None if start is None else start(),
            **more,
        )
        for choice in range(params.n)
    )


def check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """Return the prompt as plain integers.

    Raises InvalidRequestError if it is empty, or not all of it whole numbers from 0 to
    vocab_size - 1: a bool, a float or a text is none, however whole it looks.
    """
    if len(prompt_ids) == 0:
        raise InvalidRequestError(
            "The prompt is empty: it has no tokens, and at least 1 is needed.",
            hint="send some text, or the model's beginning-of-text token",
        )
    if isinstance(prompt_ids, np.ndarray):
        flat = prompt_ids.ndim == 1 and prompt_ids.dtype.kind in "iu"
        ids = prompt_ids.tolist() if flat else None
    else:
        whole = all(
            isinstance(each, (int, np.integer)) and not isinstance(each, bool)
            for each in prompt_ids
        )
        ids = [int(each) for each in prompt_ids] if whole else None
    if ids is None:
        raise InvalidRequestError(
            "A prompt must be a flat list of whole token ids.",
            hint="[1, 2, 3]; a text is given as it is, and several prompts go to generate()",
        )
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"Token id {token} in the prompt is outside the vocabulary: 0 to {vocab_size - 1}.",
                hint="use this model's own tokenizer",
            )
    return tuple(ids)


def output_limit(
    prompt_tokens: int, max_tokens: int | None, *, context_length: int, cache_tokens: int
) -> int:
    """Return how many tokens may be put out; ContextLengthError if that cannot fit.

    `cache_tokens` is what the whole pool holds. The last token put out is never itself computed,
    so a pool of k tokens is enough for k + 1.
    """
    room = min(context_length, cache_tokens + 1)
    what = "the model's context" if room == context_length else "the cache"
    if prompt_tokens >= room:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens, but {what} holds {room}, "
            "one of them for the answer.",
            hint="shorten the prompt, or load the model with a longer context",
        )
    if max_tokens is None:
        return room - prompt_tokens
    if prompt_tokens + max_tokens > room:
        raise ContextLengthError(
            f"The prompt's {prompt_tokens} tokens and max_tokens {max_tokens} are "
            f"{prompt_tokens + max_tokens} together, but {what} holds {room}.",
            hint=f"ask for at most {room - prompt_tokens} tokens, or leave max_tokens out",
        )
    return max_tokens


def check_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise InvalidRequestError if the parameters name a token outside the vocabulary."""
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        highest = max(ids, default=0)
        if highest >= vocab_size:
            raise InvalidRequestError(
                f"Token id {highest} in {name} is outside the vocabulary: 0 to {vocab_size - 1}.",
                hint="use this model's own tokenizer",
            )


def ends_of(params: SamplingParams, eos_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that would end an answer before it has min_tokens."""
    if params.min_tokens == 0:
        return ()
    ends = () if params.ignore_eos else eos_ids
    known = {each for each in ends if each < vocab_size}
    return tuple(sorted(known.union(params.stop_token_ids)))


def check_fits(prompt_tokens: int, *, context_length: int, cache_tokens: int) -> None:
    """Raise ContextLengthError if a prompt without an answer has more tokens than there is room."""
    room = min(context_length, cache_tokens)
    if prompt_tokens > room:
        what = "the model's context" if room == context_length else "the cache"
        raise ContextLengthError(
            f"The text has {prompt_tokens:,} tokens, but {what} holds {room:,}.",
            hint="shorten it, or load the model with a longer context",
        )


def check_room(request: Request, *, context_length: int, cache_tokens: int) -> None:
    """Raise ContextLengthError if there is no room for all that the request may become."""
    size = len(request.prompt_ids)
    if request.pooler is not None:
        check_fits(size, context_length=context_length, cache_tokens=cache_tokens)
        return
    output_limit(size, request.max_output, context_length=context_length, cache_tokens=cache_tokens)


def choice_seed(seed: int | None, choice: int) -> int:
    """Return the 64-bit seed of choice `choice`: the seed itself (mod 2**64) for choice 0.

    Choice i > 0 takes the first 8 bytes, little-endian, of BLAKE2b over the seed and i as 8
    little-endian bytes each. None draws from the operating system.
    """
    if seed is None:
        return secrets.randbits(64)
    seed %= 2**64
    if choice == 0:
        return seed
    data = seed.to_bytes(8, "little") + choice.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
