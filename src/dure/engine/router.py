"""Which of several engines over one model gets a request: where its prefix is, or the least busy?

All engines are in this process, so what is known of their caches is exact. Nothing is locked:
a step may be under way, and what it changes meanwhile makes a choice no worse than a moment old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dure.batch import BLOCK_SIZE
from dure.engine.block_pool import block_digest

if TYPE_CHECKING:
    from dure.engine.engine import Engine
    from dure.engine.kv_manager import KVCacheManager
    from dure.engine.request import Request

ANEW = 2.0
"""What a token counts that is computed although another engine has it: all who come later wait."""

DECODED = 2.0
"""What a token counts that is drawn, beside one of a prompt: its step has few rows."""

AHEAD = 128
"""Tokens of an answer that are counted at most: few answers are as long as they may be."""

MOST_COMPARED = 1 << 16
"""Tokens of a prompt that are looked for; whoever has as many is where the rest is."""


@dataclass(frozen=True)
class Asked:
    """A request before it is begun, as far as it matters who computes it."""

    root: bytes  # the digest that its blocks descend from
    prompt: Sequence[int]  # none if nothing of it can be in a cache
    num_tokens: int  # of its prompts
    answers: int = 1  # that are drawn; 0: none is
    max_tokens: int | None = None  # of each
    cached: int = 0  # tokens that were thought to be found where it was sent

    @property
    def work(self) -> float:
        """What it takes where nothing of it is cached, in tokens of a prompt."""
        drawn = AHEAD if self.max_tokens is None else min(AHEAD, self.max_tokens)
        return self.num_tokens + DECODED * drawn * self.answers


def asked_of(requests: Sequence[Request]) -> Asked:
    """Return what unfinished requests ask of an engine that goes on with them."""
    longest = max(requests, key=lambda each: len(each.tokens))
    return Asked(
        longest.root,
        () if longest.needs_all_rows else tuple(longest.tokens),
        sum(len(each.tokens) for each in requests),
        answers=sum(each.pooler is None for each in requests),
        max_tokens=max(each.max_output - len(each.output_ids) for each in requests),
    )


class Place(Protocol):
    """One engine, and what was sent to it."""

    @property
    def engine(self) -> Engine:
        """The engine."""
        ...

    @property
    def expected(self) -> Mapping[int, Asked]:
        """What was sent to it and is not begun."""
        ...


def choose(asked: Asked, places: Sequence[Place], turn: int) -> tuple[int, int]:
    """Return which place is to compute the request, and how much of its prompt is cached there.

    Each is weighed by what waits and runs there, and by what of the prompt it would compute anew:
    so a cached prefix decides, unless that engine has more to do than the prefix is worth. One
    that was lost, and is not there again, comes last. turn: of equal ones, from this number on
    the first is taken.
    """
    digests = _Digests(asked)
    found = [_cached(asked, digests, place) for place in places]
    costs = [
        (
            not place.engine.runner.is_whole,
            _backlog(place) + ANEW * (asked.num_tokens - cached),
            (index - turn) % len(places),
        )
        for index, (place, cached) in enumerate(zip(places, found, strict=True))
    ]
    best = min(range(len(places)), key=costs.__getitem__)
    return best, found[best]


def _backlog(place: Place) -> float:
    """Return what an engine has to do yet, in tokens of a prompt."""
    scheduler, work = place.engine.scheduler, 0.0
    for request in [*scheduler.waiting, *scheduler.running]:
        left = request.max_output - len(request.output_ids)
        work += max(0, request.num_uncomputed_tokens - 1)
        work += DECODED * max(0, min(AHEAD, left))
    for each in list(place.expected.values()):
        work += each.work - each.cached
    return work


def _cached(asked: Asked, digests: _Digests, place: Place) -> int:
    """Return how many tokens of the prompt are in the cache, or will be when those before it are.

    The last one is always computed, as its logits are wanted.
    """
    if not asked.prompt:
        return 0
    engine = place.engine
    longest = _found(asked, digests, engine.scheduler.cache)
    others: list[tuple[bytes, Sequence[int]]] = [
        (request.root, request.prompt_ids)
        for request in [*engine.scheduler.waiting, *engine.scheduler.running]
    ]
    others += [(each.root, each.prompt) for each in list(place.expected.values())]
    for root, prompt in others:
        if root == asked.root and len(prompt) > longest:
            same = common_prefix(asked.prompt, prompt)
            if engine.states:  # only a state at the end of its full blocks is kept for sure
                end = (len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE
                same = end if same >= end else 0
            longest = max(longest, same)
    return min(longest, len(asked.prompt) - 1)


def _found(asked: Asked, digests: _Digests, cache: KVCacheManager) -> int:
    """Return how many tokens of the prompt a request could start behind.

    Blocks alone are not enough where a model has recurrent states, or layers with a window.
    """
    blocks = cache.pool.find(digests)
    if not (cache.states or cache.windows):
        return len(blocks) * BLOCK_SIZE
    end = min(len(asked.prompt) - 1, (len(blocks) + 1) * BLOCK_SIZE)
    known = digests.known[: end // BLOCK_SIZE]
    try:
        return cache.start_of(
            _Prompt(asked.root, list(asked.prompt[: end + 1]), known), blocks
        ).tokens
    except (KeyError, RuntimeError):  # what was looked at was changed by a step
        return 0


@dataclass
class _Prompt:
    """A prompt as far as some engine may have it; see `digests.Named`."""

    root: bytes
    tokens: list[int]
    digests: list[bytes]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two sequences of one type begin with alike."""
    most, same, step = min(len(left), len(right), MOST_COMPARED), 0, BLOCK_SIZE
    while same < most:  # pieces that grow, compared in C, then the piece that differs in halves
        end = min(most, same + step)
        if left[same:end] == right[same:end]:
            same, step = end, 2 * step
        elif end - same == 1:
            break
        else:
            step = max(1, (end - same) // 2)
    return same


class _Digests:
    """The digests of a prompt's full blocks, each computed when it is first asked for."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self.known = asked, list[bytes]()

    def __iter__(self) -> Iterator[bytes]:
        prompt, known = self._asked.prompt[:MOST_COMPARED], self.known
        for index in range((len(prompt) - 1) // BLOCK_SIZE):
            if index == len(known):
                parent = known[-1] if known else self._asked.root
                tokens = prompt[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
                known.append(block_digest(parent, tokens))
            yield known[index]
