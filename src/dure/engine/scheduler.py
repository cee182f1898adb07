"""Whose tokens go into the next forward pass: decode rows first, then chunks of prompts."""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from dure.engine.digests import block_key, uncomputed
from dure.engine.request import Request, RequestState

if TYPE_CHECKING:
    from dure.batch import CacheOps
    from dure.engine.kv_manager import KVCacheManager
    from dure.engine.spec_decode.draft import Drafter

# A prompt that yields to others still gets this much of a step: less would only add steps.
MIN_CHUNK = 32

# Rows of a step whose logits score a prompt: of a vocabulary of 152,000, 78 MB of logits.
MAX_SCORED = 128

_arrivals = itertools.count(1)  # of all engines, as a request may go from one to another
_by_turn = attrgetter("priority", "arrival")


def _decodes(request: Request) -> bool:
    """Whether all but its last token is computed."""
    return request.num_uncomputed_tokens == 1


@dataclass(frozen=True)
class Chunk:
    """`count` rows of one request from position `start` on, to be computed in this step.

    The last `len(drafts)` rows are guesses, which are not among the request's tokens yet.
    """

    request: Request
    start: int
    count: int
    logit_rows: tuple[int, ...]  # rows of the chunk whose logits are wanted, rising
    num_sampled: int  # the last of these, from which a next token is drawn; the others score
    drafts: tuple[int, ...] = ()
    hidden_rows: tuple[int, ...] = ()  # rows whose hidden states are pooled

    @property
    def is_silent(self) -> bool:
        """Whether its rows only fill the cache: nothing is drawn, scored or pooled of them."""
        return not self.logit_rows and not self.hidden_rows

    @property
    def num_scored(self) -> int:
        """The first of `logit_rows`, whose logits score the prompt's tokens after them."""
        return len(self.logit_rows) - self.num_sampled


@dataclass
class Stats:
    """Counts since the engine was made."""

    steps: int = 0
    prompt_tokens: int = 0  # of requests when first admitted
    cached_tokens: int = 0  # of them, found in the cache
    computed_tokens: int = 0  # rows of forward passes, those recomputed after preemption too
    output_tokens: int = 0
    drafted_tokens: int = 0  # rows of forward passes that were guesses
    accepted_tokens: int = 0  # of them, right
    preemptions: int = 0
    taken_over: int = 0  # from another engine, which had begun with them or not
    finished: int = 0  # for any reason
    failed: int = 0  # of them, with finish_reason "error"


class Scheduler:
    """Chooses the chunks of each step: first come, first served within a priority.

    There are three limits: tokens a step, sequences, and blocks. A request of a lower priority
    number preempts a running one of a higher.

    When a running request needs a block and none is free, the last running one is preempted: its
    blocks go back, its output stays, and it waits to be computed again, from whatever of it is
    still in the cache. What a request holds of the cache is the `KVCacheManager`'s.
    """

    def __init__(
        self,
        cache: KVCacheManager,
        *,
        max_batch_tokens: int,
        max_prefill_tokens: int = 0,
        max_sequences: int,
        drafter: Drafter | None = None,
    ) -> None:
        """max_prefill_tokens: of a step in which nobody decodes, if more than max_batch_tokens.

        drafter: guesses tokens for requests that decode, where rows are left in a step.
        """
        self.cache = cache
        self._drafter = drafter
        self.max_batch_tokens = max_batch_tokens
        self.max_prefill_tokens = max(max_batch_tokens, max_prefill_tokens)
        if cache.states:
            max_sequences = min(max_sequences, cache.states.num_slots)
        # One row of the budget for every running request: decoding never waits for its turn.
        self.max_sequences = min(max_sequences, max_batch_tokens)
        self.waiting: list[Request] = []  # both by priority, then by arrival
        self.running: list[Request] = []
        self.stats = Stats()

    def add(self, request: Request) -> None:
        """Queue the request, unless it has finished, behind earlier ones of equal priority.

        Which engine one came to first does not matter for that.
        """
        if request.is_finished:
            return
        self.stats.taken_over += request.num_moves > 0
        request.arrival = request.arrival or next(_arrivals)
        insort(self.waiting, request, key=_by_turn)

    def schedule(self, passes: int = 1) -> list[Chunk]:
        """Choose the chunks of the next step, at most one a request; none only if none has work.

        passes: how many may be on their way at once. Each takes its part of those who decode, and
        of the rows of a step; a request that is in one of the others is left out. While a suspect
        is left, one that passes were lost with, one at a time is computed, and nothing else: so
        that which of them loses passes shows, and no other ends with it.
        """
        counts: dict[Request, int] = {}
        suspect = next((each for each in (*self.running, *self.waiting) if each.is_suspect), None)
        if suspect is None:
            self._make_way()
        elif not self._set_apart(suspect):
            return []
        if self.running and self.cache.windows and not self.running[0].in_flight:
            self._grow(self.running[0])  # whoever else waits: the first in turn gets on
        most_decoding = -(-sum(map(_decodes, self.running)) // passes)
        for request in list(self.running):  # the first in turn, so a victim is not yet counted
            if len(counts) == most_decoding:
                break
            ready = _decodes(request) and not request.in_flight
            if ready and request.state is RequestState.RUNNING and self._grow(request):
                counts[request] = 1
        decoding = list(counts)
        # Where a step costs the same for few rows and for many (its experts are read from disk),
        # prompts take all they can, unless somebody would wait for his next token meanwhile.
        most = self.max_batch_tokens if decoding else self.max_prefill_tokens
        most = max(MIN_CHUNK, -(-most // passes)) if passes > 1 else most
        budget, to_score = max(0, most - len(counts)), MAX_SCORED
        for request in self._prefills(counts, suspect):
            if budget == 0:
                break
            share = self._share(request, min(budget, to_score) if request.is_scoring else budget)
            share = self.cache.fit(request, share)
            if share == 0:
                continue
            counts[request] = share
            budget -= share
            to_score -= share if request.is_scoring else 0
        for request, count in counts.items():  # what nobody behind could use: back to the oldest
            room = min(budget, to_score) if request.is_scoring else budget
            extra = min(room, request.num_uncomputed_tokens - count)
            extra = self.cache.fit(request, count + extra) - count if extra else 0
            counts[request] = count + extra
            budget -= extra
            to_score -= extra if request.is_scoring else 0
        drafts = self._drafts(decoding, sum(counts.values()), budget)
        return [
            self._chunk(request, count, drafts.get(request, ()))
            for request, count in counts.items()
        ]

    def take_cache_ops(self) -> CacheOps:
        """Return what a runner must do to its cache before the chunks of the last `schedule`."""
        return self.cache.take_ops()

    def commit(self, chunk: Chunk, *, rejected: int = 0) -> None:
        """Record that the chunk's rows are in the cache, and make its full blocks findable.

        rejected: its last rows, whose drafts were wrong; the blocks that only they had go back.
        """
        request = chunk.request
        request.num_computed_tokens += chunk.count - rejected
        self.stats.computed_tokens += chunk.count
        accepted = len(chunk.drafts) - rejected
        request.num_drafted_tokens += len(chunk.drafts)
        request.num_accepted_tokens += accepted
        self.stats.drafted_tokens += len(chunk.drafts)
        self.stats.accepted_tokens += accepted
        self.cache.commit(request, chunk.start, accepted=accepted, rejected=rejected)

    def finish(self, request: Request, *, forget: bool = False) -> None:
        """Remove the request and take its blocks back. `forget`: its pass went wrong."""
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.RUNNING:
            self._release(request, forget=forget)
        request.state = RequestState.FINISHED
        if self._drafter is not None:
            self._drafter.forget(request)

    def give_up(self, request: Request) -> None:
        """Queue the request no more, unless it has finished; what it holds of the cache is lost."""
        if request.is_finished:
            return
        if request.state is RequestState.RUNNING:
            self._preempt(request, forget=True)
        self.waiting.remove(request)
        if self._drafter is not None:
            self._drafter.forget(request)

    def start_over(self) -> None:
        """Let every running request wait, and compute all of it again: the cache was lost."""
        for request in reversed(list(self.running)):
            self._preempt(request, forget=True)
        self.cache.forget_all()

    def check(self) -> None:
        """Raise RuntimeError if a block or a state is held by none of the running requests."""
        self.cache.check(self.running)

    def _grow(self, request: Request) -> bool:
        """Give the request a block for its next token.

        False if it had to be preempted itself, or the one that should be is in another pass.
        """
        while not self.cache.grow(request):
            victim = self.running[-1]
            if victim.in_flight:
                return False
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _make_way(self) -> None:
        """Preempt running requests of a higher priority number if the first in turn lacks room.

        A preempted request's blocks stay findable: what it loses is mostly its place.
        """
        first = self.waiting[0] if self.waiting else None
        while first is not None and self.running and first.priority < self.running[-1].priority:
            prefix = self.cache.reusable(first, self.cache.find(first))
            fits = self.cache.has_room(first, prefix, len(self.running))
            if fits and len(self.running) < self.max_sequences:
                return
            if self.running[-1].in_flight:
                return
            self._preempt(self.running[-1])

    def _set_apart(self, suspect: Request) -> bool:
        """Let all others wait; False while one of them is in a pass."""
        others = [each for each in self.running if each is not suspect]
        if any(each.in_flight for each in others):
            return False
        for each in reversed(others):
            self._preempt(each)
        return True

    def _preempt(self, request: Request, *, forget: bool = False) -> None:
        self._release(request, forget=forget)
        request.state = RequestState.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.stats.preemptions += 1
        insort(self.waiting, request, key=_by_turn)

    def _release(self, request: Request, *, forget: bool = False) -> None:
        self.cache.release(request, forget=forget)
        self.running.remove(request)

    def _prefills(
        self, scheduled: dict[Request, int], suspect: Request | None
    ) -> Iterator[Request]:
        """Yield requests with more of a prompt to compute: running ones, then newly admitted.

        suspect: the only one that may be admitted, if there is one.
        """
        yield from [
            request
            for request in self.running
            if request not in scheduled and not _decodes(request) and not request.in_flight
        ]
        if not self.waiting:
            return
        in_progress = {key for request in self.running for key in uncomputed(request)}
        for request in list(self.waiting):
            if len(self.running) == self.max_sequences:
                return
            if suspect not in (None, request):
                continue
            found = self.cache.find(request)
            if block_key(request, len(found)) in in_progress:
                continue  # another is computing its next block: a step later it is found
            if not self._admit(request, found):
                return  # nobody overtakes: the oldest must get its blocks some day
            in_progress.update(uncomputed(request))
            yield request

    def _share(self, request: Request, budget: int) -> int:
        """Return how many rows of what is left of the budget the request gets.

        All it needs if that fits; else half, so that a short prompt behind a long one need not
        wait for its end. `schedule` gives it the other half if nobody takes that.
        """
        needed = request.num_uncomputed_tokens
        return needed if needed <= budget else min(budget, max(MIN_CHUNK, budget // 2))

    def _drafts(
        self, decoding: Sequence[Request], rows: int, budget: int
    ) -> dict[Request, tuple[int, ...]]:
        """Return guesses for requests that decode, as rows, blocks, states and output allow.

        rows: of the step without guesses. Requests that were just admitted get none: what is to be
        copied into their blocks comes with the pass, and would overwrite what a guess computes.
        """
        if self._drafter is None or budget <= 0:
            return {}
        limits = {
            request: limit
            for request in decoding
            if request.may_draft
            and (limit := self._reserve(request, min(budget, self._drafter.max_drafts))) > 0
        }
        if not limits:
            return {}
        proposed = self._drafter.propose(list(limits), list(limits.values()), rows)
        drafts = {}
        for (request, limit), tokens in zip(limits.items(), proposed, strict=True):
            most = max(0, min(limit, budget, self.cache.spare_states()))
            drafts[request] = tuple(tokens)[:most]
            budget -= len(drafts[request])
            self.cache.keep(request, len(drafts[request]))
        return drafts

    def _reserve(self, request: Request, limit: int) -> int:
        """Take blocks for `limit` drafts, or as many as there can be; return how many.

        Nobody is preempted for a guess, and running requests keep a block each for what is sure.
        """
        limit = min(limit, request.max_output - len(request.output_ids) - 1)
        return self.cache.reserve(request, limit, len(self.running))

    def _chunk(self, request: Request, count: int, drafts: tuple[int, ...]) -> Chunk:
        start = request.num_computed_tokens
        if request.pooler is not None:
            wanted = request.pooler.rows(start, count)
            return Chunk(request, start, count, (), num_sampled=0, hidden_rows=wanted)
        ends = count == request.num_uncomputed_tokens
        followed = min(start + count, len(request.prompt_ids) - 1) - start
        rows = list(range(followed)) if request.is_scoring else []
        if ends:
            rows += range(count - 1, count + len(drafts))
        return Chunk(
            request,
            start,
            count + len(drafts),
            tuple(rows),
            num_sampled=1 + len(drafts) if ends else 0,
            drafts=drafts,
        )

    def _admit(self, request: Request, found: list[int]) -> bool:
        """Run the request, with `found` as its first blocks; False if there is no room for it."""
        prefix = self.cache.reusable(request, found)
        if not self.cache.has_room(request, prefix, len(self.running)):
            return False
        self.cache.admit(request, prefix)
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_computed_tokens
            self.stats.prompt_tokens += len(request.prompt_ids)
            self.stats.cached_tokens += request.num_cached_tokens
        request.state = RequestState.RUNNING
        self.waiting.remove(request)
        insort(self.running, request, key=_by_turn)
        return True
