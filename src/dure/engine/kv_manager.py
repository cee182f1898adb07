"""What of the cache each request holds: how it is found, taken, made findable, and given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE, CacheOps
from dure.engine.block_pool import BlockPool, blocks_for
from dure.engine.digests import Named, digests_of, matchable, parent_of, prefix_of
from dure.engine.states import StatePool
from dure.engine.windows import WindowBlocks

if TYPE_CHECKING:
    from dure.engine.request import Request

# Drafts for one request of a recurrent model: each takes a state of its own while it is checked.
MAX_STATE_DRAFTS = 8

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Prefix:
    """What of a request's tokens the cache has, and it can go on from."""

    shared: int = 0  # tokens of all full blocks found, whether it can go on from there or not
    blocks: Sequence[int] = ()  # its first full blocks
    tail: Sequence[int] = ()  # tokens after these, which a copied block may have
    state: int = -1  # the slot of the state after all of them
    window_blocks: Sequence[int] = ()  # of `blocks`, those that the next token's window needs

    @property
    def tokens(self) -> int:
        """Tokens in all: the position to go on from."""
        return len(self.blocks) * BLOCK_SIZE + len(self.tail)


class KVCacheManager:
    """Gives running requests their blocks and recurrent states. It decides about no request.

    Blocks for a whole prompt are taken when it is admitted; then only decoding needs new ones. In
    layers with a window they are taken for the rows of a step, and given back after it when no
    later token sees them; a prefix is reused up to where all that its next token sees is there.

    In a model with recurrent states each running request holds a slot of `states`, and a prefix is
    reused up to where a snapshot of its state was kept: at the end of every request, at the last
    full block of every prompt, and where a prompt was found to part from an earlier one.
    """

    def __init__(
        self,
        pool: BlockPool,
        states: StatePool | None = None,
        windows: WindowBlocks | None = None,
    ) -> None:
        self.pool = pool
        self.states = StatePool(0) if states is None else states
        self.windows = WindowBlocks(0, 0) if windows is None else windows

    def find(self, request: Request) -> list[int]:
        """Find the request's first full blocks; the last token's is not among them."""
        return [] if request.needs_all_rows else self.pool.find(matchable(request))

    def reusable(self, request: Request, found: Sequence[int]) -> Prefix:
        """Return what the request can start from, of `found` and the tokens after.

        That is all that was found, and as much of a block as another shares; in models with states
        or windows up to where these are there, too. The last token is always computed: its logits
        are wanted. Nor is anything reused where the prompt is scored, or all of its hidden states
        are pooled: cached blocks hold neither.
        """
        return Prefix() if request.needs_all_rows else self.start_of(request, found)

    def start_of(self, request: Named, found: Sequence[int]) -> Prefix:
        """Return what tokens can start from, of `found` and the tokens after; see `reusable`."""
        shared = len(found) * BLOCK_SIZE
        for count in range(len(found), -1, -1):
            start = count * BLOCK_SIZE
            tail = request.tokens[start : min(start + BLOCK_SIZE, len(request.tokens) - 1)]
            start_point = self._start(request, count, tail)
            if start_point is not None:
                common, state, seen = start_point
                return Prefix(shared, found[:count], tail[:common], state, seen)
        return Prefix(shared)

    def has_room(self, request: Request, prefix: Prefix, running: int) -> bool:
        """Check whether there are blocks for all its tokens, and a state slot if it needs one.

        One block for each of `running` requests is left for their next tokens, or admitting would
        preempt.
        """
        needed = blocks_for(len(request.tokens)) - len(prefix.blocks)
        if needed + running > self.pool.num_free - self.pool.count_free(prefix.blocks):
            return False
        seen, position = prefix.window_blocks, prefix.tokens
        if self.windows and not self.windows.has_room(request, seen, position, running):
            return False
        return not (self.states and self.states.num_free == 0)

    def admit(self, request: Request, prefix: Prefix) -> None:
        """Give the request, which has room, the blocks of its prefix and new ones for the rest."""
        for block in prefix.blocks:
            self.pool.hold(block)
        count = len(prefix.blocks)
        parent = parent_of(request, count)
        source, _ = self.pool.find_tail(parent, prefix.tail)
        blocks = [self.pool.allocate()]
        if prefix.tail and source != blocks[0]:  # if the same, it has just been allocated as it is
            self.pool.copy(source, blocks[0])
        needed = blocks_for(len(request.tokens)) - count
        blocks += [self.pool.allocate() for _ in range(needed - 1)]
        request.block_table = [*prefix.blocks, *blocks]
        request.num_computed_tokens = prefix.tokens
        if self.windows:
            self.windows.admit(request, prefix.window_blocks, parent, prefix.tail)
            last = (len(request.tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE
            self.windows.mark(request, (prefix.tokens, prefix.shared, last))
        if self.states:
            self._take_states(request, prefix)

    def grow(self, request: Request) -> bool:
        """Give the request a block for its next token if it lacks one; False if none is free."""
        tokens = request.num_computed_tokens + 1
        if self.windows:
            if self.windows.room(request) < tokens:
                return False
            self.windows.extend(request, tokens)
        if tokens <= len(request.block_table) * BLOCK_SIZE:
            return True
        if self.pool.num_free == 0:
            return False
        request.block_table.append(self.pool.allocate())
        return True

    def fit(self, request: Request, count: int) -> int:
        """Return how many of `count` rows there are window blocks for, and take these."""
        if not self.windows:
            return count
        start = request.num_computed_tokens
        count = min(count, self.windows.room(request) - start)
        self.windows.extend(request, start + count)
        return count

    def reserve(self, request: Request, limit: int, running: int) -> int:
        """Take blocks for `limit` drafts, or as many as there can be; return how many.

        `running` requests keep a block each for what is sure.
        """
        limit = min(limit, self.spare_states())
        if limit <= 0:
            return 0
        spare = max(0, self.pool.num_free - running)
        room = (len(request.block_table) + spare) * BLOCK_SIZE - request.num_computed_tokens - 1
        limit = min(limit, room)
        if self.windows:
            limit = min(
                limit, self.windows.room(request, running) - request.num_computed_tokens - 1
            )
            self.windows.extend(request, request.num_computed_tokens + 1 + limit)
        lacking = blocks_for(request.num_computed_tokens + 1 + limit) - len(request.block_table)
        request.block_table += [self.pool.allocate() for _ in range(lacking)]
        return limit

    def keep(self, request: Request, drafts: int) -> None:
        """Give back the blocks of more than so many drafts, and take a state for each of these."""
        self._cut(request, request.num_computed_tokens + 1 + drafts)
        if self.states:  # snapshots go for these, so no more than are tried
            request.draft_slots = [self.states.allocate() for _ in range(drafts)]

    def spare_states(self) -> int:
        """Return how many drafts have a state to go back to; one slot is the next request's."""
        if not self.states:
            return NO_LIMIT
        return min(self.states.num_free - 1, MAX_STATE_DRAFTS)

    def commit(self, request: Request, start: int, *, accepted: int, rejected: int) -> None:
        """Make what was computed from position `start` on findable.

        accepted and rejected: drafts, whose last ones were wrong; the blocks that only they had go
        back, and the request gets the state after the last right one.
        """
        if rejected:
            self._cut(request, request.num_computed_tokens)
            if self.states:
                slots = request.draft_slots
                request.state_slot, slots[accepted] = slots[accepted], request.state_slot
        ends_prompt = start < len(request.prompt_ids) <= request.num_computed_tokens
        self._publish(request, start // BLOCK_SIZE, tail=ends_prompt)
        if self.windows:
            self.windows.leave(request)
        for slot in request.draft_slots:
            self.states.release(slot)
        request.draft_slots = []
        while request.snapshots and request.snapshots[0][0] <= request.num_computed_tokens:
            position, slot = request.snapshots.pop(0)
            self.states.publish(slot, *prefix_of(request, position))

    def release(self, request: Request, *, forget: bool = False) -> None:
        """Take all that the request holds. `forget`: it may be wrong, and nobody finds it again."""
        if not forget:
            self._publish(request, request.num_computed_tokens // BLOCK_SIZE, tail=True)
        self.pool.release(request.block_table, forget=forget)
        request.block_table = []
        if self.windows:
            self.windows.release(request, forget=forget)
        if self.states:
            self._release_states(request, forget=forget)

    def forget_all(self) -> None:
        """Let nothing be found again: the cache was lost. No request may hold any of it."""
        self.pool.forget_all()
        self.windows.pool.forget_all()
        self.states.forget_all()

    def take_ops(self) -> CacheOps:
        """Return what a runner must do to its cache before the next pass."""
        blocks, states = self.pool.take_ops(), self.states.take_copies()
        return CacheOps(*blocks, states, *self.windows.pool.take_ops())

    def check(self, running: Sequence[Request]) -> None:
        """Raise RuntimeError if a block or a state is held by none of the running requests."""
        self.pool.check([request.block_table for request in running])
        self.windows.pool.check([request.window_blocks for request in running])
        if self.states:
            slots = [request.state_slot for request in running]
            slots += [slot for request in running for slot in request.draft_slots]
            self.states.check([*slots, *(slot for r in running for _, slot in r.snapshots)])

    def _start(
        self, request: Named, count: int, tail: Sequence[int]
    ) -> tuple[int, int, Sequence[int]] | None:
        """Find what the request needs to start behind `count` blocks and the most of `tail`.

        Returns how many of `tail`, the state's slot, and window blocks; None if one is not there.
        """
        parent, start = parent_of(request, count), count * BLOCK_SIZE
        state, needed = -1, 0
        if self.states:
            state, needed = self.states.find(parent, tail)
            if state < 0:
                return None
            tail = tail[:needed]
        if not self.windows:
            common = self.pool.find_tail(parent, tail)[1]
            return None if common < needed else (common, state, ())
        tail = tail[: self.windows.pool.find_tail(parent, tail)[1]]
        if self.windows.find(request, start + len(tail)) is None:
            return None
        common = self.pool.find_tail(parent, tail)[1]
        seen = self.windows.find(request, start + common)  # farther back if that is less
        return None if seen is None or common < needed else (common, state, seen)

    def _cut(self, request: Request, tokens: int) -> None:
        """Give back the blocks behind the request's first `tokens` tokens."""
        kept = blocks_for(tokens)
        self.pool.release(request.block_table[kept:])
        del request.block_table[kept:]
        if self.windows:
            self.windows.cut(request, tokens)

    def _release_states(self, request: Request, *, forget: bool) -> None:
        """Turn the request's state into a snapshot unless it is to be forgotten."""
        for slot in [*request.draft_slots, *(slot for _, slot in request.snapshots)]:
            self.states.release(slot)
        if forget or request.num_computed_tokens == 0:
            self.states.release(request.state_slot)
        else:
            prefix = prefix_of(request, request.num_computed_tokens)
            self.states.publish(request.state_slot, *prefix)
        if forget:
            self.states.forget([request.root, *digests_of(request)])
        request.state_slot, request.snapshots, request.draft_slots = -1, [], []

    def _take_states(self, request: Request, prefix: Prefix) -> None:
        """Give the request a state slot, a copy of its prefix's if there is one, and snapshots.

        Snapshots are taken where it parts from another's tokens, and at its last full block.
        """
        request.state_slot = self.states.allocate(prefix.state)
        last = (len(request.tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE
        for position in sorted({prefix.shared, last}):
            # One slot is left to the next request: a snapshot is a wish, a state is a need.
            if position > request.num_computed_tokens and self.states.num_free > 1:
                request.snapshots.append((position, self.states.allocate()))

    def _publish(self, request: Request, first: int, *, tail: bool) -> None:
        """Make full blocks from number `first` on findable, or also a part-filled last one.

        If an equal block exists, it takes the place of the request's own.
        """
        full, rest = divmod(request.num_computed_tokens, BLOCK_SIZE)
        for index in range(first, full + (tail and rest > 0)):
            start = index * BLOCK_SIZE
            tokens = request.tokens[start : min(start + BLOCK_SIZE, request.num_computed_tokens)]
            parent = parent_of(request, index)
            block = request.block_table[index]
            request.block_table[index] = self.pool.publish(block, parent, tokens)
            if self.windows:
                self.windows.publish(request, index, parent, tokens)
