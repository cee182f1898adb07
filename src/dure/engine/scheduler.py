"""Whose tokens go into the next forward pass: decode rows first, then chunks of prompts."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE, CacheOps
from dure.engine.block_pool import BlockPool, block_digest, blocks_for
from dure.engine.request import Request, RequestState
from dure.engine.states import StatePool

if TYPE_CHECKING:
    from dure.engine.spec_decode.draft import Drafter

# A prompt that yields to others still gets this much of a step: less would only add steps.
MIN_CHUNK = 32

# Drafts for one request of a recurrent model: each takes a state of its own while it is checked.
MAX_STATE_DRAFTS = 8

# Rows of a step whose logits score a prompt: of a vocabulary of 152,000, 78 MB of logits.
MAX_SCORED = 128

_by_turn = attrgetter("priority", "arrival")


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
    finished: int = 0  # for any reason
    failed: int = 0  # of them, with finish_reason "error"


class Scheduler:
    """Chooses the chunks of each step: first come, first served within a priority.

    There are three limits: tokens a step, sequences, and blocks. A request of a lower priority
    number preempts a running one of a higher.

    Blocks for a whole prompt are taken when it is admitted; then only decoding needs new ones. When
    none is free, the last running request is preempted: its blocks go back, its output stays, and
    it waits to be computed again, from whatever of it is still in the cache.

    In a model with recurrent states each running request holds a slot of `states`, and a prefix is
    reused up to where a snapshot of its state was kept: at the end of every request, at the last
    full block of every prompt, and where a prompt was found to part from an earlier one.
    """

    def __init__(
        self,
        pool: BlockPool,
        states: StatePool | None = None,
        *,
        max_batch_tokens: int,
        max_prefill_tokens: int = 0,
        max_sequences: int,
        drafter: Drafter | None = None,
    ) -> None:
        """max_prefill_tokens: of a step in which nobody decodes, if more than max_batch_tokens.

        drafter: guesses tokens for requests that decode, where rows are left in a step.
        """
        self.pool = pool
        self._drafter = drafter
        self.states = StatePool(0) if states is None else states
        self.max_batch_tokens = max_batch_tokens
        self.max_prefill_tokens = max(max_batch_tokens, max_prefill_tokens)
        if self.states:
            max_sequences = min(max_sequences, self.states.num_slots)
        # One row of the budget for every running request: decoding never waits for its turn.
        self.max_sequences = min(max_sequences, max_batch_tokens)
        self.waiting: list[Request] = []  # both by priority, then by arrival
        self.running: list[Request] = []
        self.stats = Stats()
        self._arrivals = 0

    def add(self, request: Request) -> None:
        """Queue the request behind earlier ones of equal priority."""
        self._arrivals += 1
        request.arrival = self._arrivals
        insort(self.waiting, request, key=_by_turn)

    def schedule(self) -> list[Chunk]:
        """Choose the chunks of the next step, at most one a request; none only if none has work."""
        counts: dict[Request, int] = {}
        self._make_way()
        for request in list(self.running):  # the first in turn, so a victim is not yet counted
            decodes = request.num_uncomputed_tokens == 1
            if decodes and request.state is RequestState.RUNNING and self._grow(request):
                counts[request] = 1
        decoding = list(counts)
        # Where a step costs the same for few rows and for many (its experts are read from disk),
        # prompts take all they can, unless somebody would wait for his next token meanwhile.
        most = self.max_batch_tokens if decoding else self.max_prefill_tokens
        budget, to_score = most - len(counts), MAX_SCORED
        for request in self._prefills(counts):
            if budget == 0:
                break
            share = self._share(request, min(budget, to_score) if request.is_scoring else budget)
            if share == 0:
                continue
            counts[request] = share
            budget -= share
            to_score -= share if request.is_scoring else 0
        for request, count in counts.items():  # what nobody behind could use: back to the oldest
            room = min(budget, to_score) if request.is_scoring else budget
            extra = min(room, request.num_uncomputed_tokens - count)
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
        clears, copies = self.pool.take_ops()
        return CacheOps(clears, copies, self.states.take_copies())

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
        if rejected:
            self._go_back(request, accepted)
        ends_prompt = chunk.start < len(request.prompt_ids) <= request.num_computed_tokens
        self._publish(request, chunk.start // BLOCK_SIZE, tail=ends_prompt)
        for slot in request.draft_slots:
            self.states.release(slot)
        request.draft_slots = []
        while request.snapshots and request.snapshots[0][0] <= request.num_computed_tokens:
            position, slot = request.snapshots.pop(0)
            self.states.publish(slot, *self._prefix(request, position))

    def finish(self, request: Request, *, forget: bool = False) -> None:
        """Remove the request and take its blocks back. `forget`: its pass went wrong."""
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.RUNNING:
            self._release(request, forget=forget)
        request.state = RequestState.FINISHED
        if self._drafter is not None:
            self._drafter.forget(request)

    def check(self) -> None:
        """Raise RuntimeError if a block or a state is held by none of the running requests."""
        self.pool.check([request.block_table for request in self.running])
        if self.states:
            slots = [request.state_slot for request in self.running]
            slots += [slot for request in self.running for slot in request.draft_slots]
            self.states.check([*slots, *(slot for r in self.running for _, slot in r.snapshots)])

    def _go_back(self, request: Request, accepted: int) -> None:
        """Leave the blocks of wrong drafts, and take the state after the last right one."""
        kept = blocks_for(request.num_computed_tokens)
        self.pool.release(request.block_table[kept:])
        del request.block_table[kept:]
        if self.states:
            slots = request.draft_slots
            request.state_slot, slots[accepted] = slots[accepted], request.state_slot

    def _grow(self, request: Request) -> bool:
        """Give the request a block for its next token; False if it had to be preempted itself."""
        if request.num_computed_tokens < len(request.block_table) * BLOCK_SIZE:
            return True
        while self.pool.num_free == 0:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.block_table.append(self.pool.allocate())
        return True

    def _make_way(self) -> None:
        """Preempt running requests of a higher priority number if the first in turn lacks room.

        A preempted request's blocks stay findable: what it loses is mostly its place.
        """
        first = self.waiting[0] if self.waiting else None
        while first is not None and self.running and first.priority < self.running[-1].priority:
            found, _, _ = self._reusable(first, self.pool.find(self._matchable(first)))
            if len(self.running) < self.max_sequences and self._has_room(first, found):
                return
            self._preempt(self.running[-1])

    def _has_room(self, request: Request, found: list[int]) -> bool:
        """Check whether there are blocks for all its tokens, and a state slot if it needs one.

        found: the blocks of its cached prefix. One block a running request is left for their next
        tokens, or admitting would preempt.
        """
        needed = blocks_for(len(request.tokens)) - len(found)
        if needed + len(self.running) > self.pool.num_free - self.pool.count_free(found):
            return False
        return not (self.states and self.states.num_free == 0)

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.state = RequestState.WAITING
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.stats.preemptions += 1
        insort(self.waiting, request, key=_by_turn)

    def _release(self, request: Request, *, forget: bool = False) -> None:
        if not forget:
            self._publish(request, request.num_computed_tokens // BLOCK_SIZE, tail=True)
        self.pool.release(request.block_table, forget=forget)
        request.block_table = []
        if self.states:
            self._release_states(request, forget=forget)
        self.running.remove(request)

    def _release_states(self, request: Request, *, forget: bool) -> None:
        """Turn the request's state into a snapshot unless it is to be forgotten."""
        for slot in [*request.draft_slots, *(slot for _, slot in request.snapshots)]:
            self.states.release(slot)
        if forget or request.num_computed_tokens == 0:
            self.states.release(request.state_slot)
        else:
            prefix = self._prefix(request, request.num_computed_tokens)
            self.states.publish(request.state_slot, *prefix)
        if forget:
            self.states.forget([request.root, *self._digests(request)])
        request.state_slot, request.snapshots, request.draft_slots = -1, [], []

    def _prefills(self, scheduled: dict[Request, int]) -> Iterator[Request]:
        """Yield requests with more of a prompt to compute: running ones, then newly admitted."""
        yield from [request for request in self.running if request not in scheduled]
        if not self.waiting:
            return
        in_progress = {key for request in self.running for key in self._uncomputed(request)}
        for request in list(self.waiting):
            if len(self.running) == self.max_sequences:
                return
            found = [] if request.is_scoring else self.pool.find(self._matchable(request))
            if self._key(request, len(found)) in in_progress:
                continue  # another is computing its next block: a step later it is found
            if not self._admit(request, found):
                return  # nobody overtakes: the oldest must get its blocks some day
            in_progress.update(self._uncomputed(request))
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
            most = max(0, min(limit, budget, self._spare_states()))
            drafts[request] = tuple(tokens)[:most]
            budget -= len(drafts[request])
            self._keep(request, len(drafts[request]))
        return drafts

    def _reserve(self, request: Request, limit: int) -> int:
        """Take blocks for `limit` drafts, or as many as there can be; return how many.

        Nobody is preempted for a guess, and running requests keep a block each for what is sure.
        """
        limit = min(limit, request.max_output - len(request.output_ids) - 1, self._spare_states())
        if limit <= 0:
            return 0
        spare = max(0, self.pool.num_free - len(self.running))
        room = (len(request.block_table) + spare) * BLOCK_SIZE - request.num_computed_tokens - 1
        limit = min(limit, room)
        lacking = blocks_for(request.num_computed_tokens + 1 + limit) - len(request.block_table)
        request.block_table += [self.pool.allocate() for _ in range(lacking)]
        return limit

    def _keep(self, request: Request, drafts: int) -> None:
        """Give back the blocks of more than so many drafts, and take a state for each of these."""
        kept = blocks_for(request.num_computed_tokens + 1 + drafts)
        self.pool.release(request.block_table[kept:])
        del request.block_table[kept:]
        if self.states:  # snapshots go for these, so no more than are tried
            request.draft_slots = [self.states.allocate() for _ in range(drafts)]

    def _spare_states(self) -> int:
        """Return how many drafts have a state to go back to; one slot is the next request's."""
        if not self.states:
            return self.max_batch_tokens  # no limit beside that of rows
        return min(self.states.num_free - 1, MAX_STATE_DRAFTS)

    def _chunk(self, request: Request, count: int, drafts: tuple[int, ...]) -> Chunk:
        start = request.num_computed_tokens
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
        shared = len(found) * BLOCK_SIZE
        found, tail, state = self._reusable(request, found)
        if not self._has_room(request, found):
            return False
        needed = blocks_for(len(request.tokens)) - len(found)
        for block in found:
            self.pool.hold(block)
        start = len(found) * BLOCK_SIZE
        source, common = self.pool.find_tail(self._parent(request, len(found)), tail)
        blocks = [self.pool.allocate()]
        if common and source != blocks[0]:  # if the same, it has just been allocated as it is
            self.pool.copy(source, blocks[0])
        blocks += [self.pool.allocate() for _ in range(needed - 1)]
        request.block_table = found + blocks
        request.num_computed_tokens = start + common
        if self.states:
            self._take_states(request, state, shared)
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_computed_tokens
            self.stats.prompt_tokens += len(request.prompt_ids)
            self.stats.cached_tokens += request.num_cached_tokens
        request.state = RequestState.RUNNING
        self.waiting.remove(request)
        insort(self.running, request, key=_by_turn)
        return True

    def _reusable(self, request: Request, found: list[int]) -> tuple[list[int], list[int], int]:
        """Return what the request can start from: full blocks, tokens after, a state's slot.

        Without recurrent states all that was found, and as much of a block as another shares. With
        them up to the last snapshot, or nothing. The last token is always computed: its logits are
        wanted. Nor is anything reused where the prompt is scored: cached blocks hold no logits.
        """
        if request.is_scoring:
            return [], [], -1
        counts = range(len(found), -1, -1) if self.states else [len(found)]
        for count in counts:
            start = count * BLOCK_SIZE
            tail = request.tokens[start : min(start + BLOCK_SIZE, len(request.tokens) - 1)]
            if not self.states:
                return found, tail, -1
            parent = self._parent(request, count)
            slot, length = self.states.find(parent, tail)
            if slot >= 0 and self.pool.find_tail(parent, tail[:length])[1] == length:
                return found[:count], tail[:length], slot
        return [], [], -1

    def _take_states(self, request: Request, source: int, shared: int) -> None:
        """Give the request a state slot, a copy of `source` if there is one, and snapshot slots.

        Snapshots are taken where it parts from `shared` tokens of another, and at its last full
        block.
        """
        request.state_slot = self.states.allocate(source)
        last = (len(request.tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE
        for position in sorted({shared, last}):
            # One slot is left to the next request: a snapshot is a wish, a state is a need.
            if position > request.num_computed_tokens and self.states.num_free > 1:
                request.snapshots.append((position, self.states.allocate()))

    def _parent(self, request: Request, count: int) -> bytes:
        """Return the digest of the request's first `count` full blocks."""
        return self._digests(request)[count - 1] if count else request.root

    def _prefix(self, request: Request, position: int) -> tuple[bytes, list[int]]:
        """Return what names the request's tokens before `position`: a digest, and tokens after."""
        count = position // BLOCK_SIZE
        return self._parent(request, count), request.tokens[count * BLOCK_SIZE : position]

    def _publish(self, request: Request, first: int, *, tail: bool) -> None:
        """Make full blocks from number `first` on findable, or also a part-filled last one.

        If an equal block exists, it takes the place of the request's own.
        """
        full, rest = divmod(request.num_computed_tokens, BLOCK_SIZE)
        for index in range(first, full + (tail and rest > 0)):
            start = index * BLOCK_SIZE
            tokens = request.tokens[start : min(start + BLOCK_SIZE, request.num_computed_tokens)]
            parent = self._parent(request, index)
            block = request.block_table[index]
            request.block_table[index] = self.pool.publish(block, parent, tokens)

    def _digests(self, request: Request) -> list[bytes]:
        """Return the digest of every full block of the request's tokens; each is computed once."""
        digests = request.digests
        for index in range(len(digests), len(request.tokens) // BLOCK_SIZE):
            tokens = request.tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            digests.append(block_digest(digests[-1] if digests else request.root, tokens))
        return digests

    def _matchable(self, request: Request) -> list[bytes]:
        """Return the digests of full blocks before the last token, which is always computed."""
        return self._digests(request)[: (len(request.tokens) - 1) // BLOCK_SIZE]

    def _uncomputed(self, request: Request) -> list[bytes]:
        """Return what names each block of its prompt that the request is still computing."""
        if request.num_uncomputed_tokens == 1:  # decoding, or a token that each must compute itself
            return []
        first = request.num_computed_tokens // BLOCK_SIZE
        return [self._key(request, i) for i in range(first, blocks_for(len(request.tokens)))]

    def _key(self, request: Request, index: int) -> bytes:
        """Return a digest of one block of the request's tokens, the part-filled last one too."""
        digests = self._digests(request)
        if index < len(digests):
            return digests[index]
        parent = digests[-1] if digests else request.root
        return block_digest(parent, request.tokens[index * BLOCK_SIZE :])
