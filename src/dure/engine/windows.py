"""Blocks of the layers with a sliding window: held only while a later token sees into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE
from dure.engine.block_pool import BlockPool, blocks_for
from dure.engine.digests import digests_of, parent_of

if TYPE_CHECKING:
    from dure.engine.digests import Named
    from dure.engine.request import Request


def window_span(window: int) -> int:
    """Return the most blocks that the `window` tokens which one token sees lie in."""
    return blocks_for(window - 1) + 1


class WindowBlocks:
    """A pool of blocks for the layers with a window, and the part of it that each request holds.

    A request's `window_blocks` are those of its block table from number `window_first` on. A block
    that lies wholly behind the window of the next token is given back. It stays findable, but is
    the first to be reused, unless another request is likely to go on from there: at the end of a
    prompt, or where one parted from another.
    """

    def __init__(self, window: int, num_blocks: int) -> None:
        """window: tokens that the layer that looks back the farthest sees; 0: no layer has one."""
        self.window = window
        self.pool = BlockPool(num_blocks if window else 0)

    def __bool__(self) -> bool:
        """Return whether the model has layers with a window at all."""
        return self.window > 0

    def first_seen(self, position: int) -> int:
        """Return the number of the first block that a token at `position`, or later, looks into."""
        return max(0, position + 1 - self.window) // BLOCK_SIZE

    def find(self, request: Named, position: int) -> list[int] | None:
        """Find the full blocks that a request needs to go on from `position`; hold none of them.

        None if one of them is not there any more. They begin with number `first_seen(position)`.
        """
        first, count = self.first_seen(position), position // BLOCK_SIZE
        if first >= count:
            return []
        # From the last on: where windows were reused, one look tells.
        blocks = self.pool.find(reversed(digests_of(request)[first:count]))
        return blocks[::-1] if len(blocks) == count - first else None

    def has_room(self, request: Request, found: Sequence[int], position: int, spare: int) -> bool:
        """Check whether there are blocks to go on from `position`, and `spare` ones beside.

        found: the blocks that it will hold of its prefix.
        """
        most = blocks_for(len(request.tokens)) - self.first_seen(position)
        needed = min(most, window_span(self.window)) - len(found)
        return needed + spare <= self.pool.num_free - self.pool.count_free(found)

    def admit(
        self, request: Request, found: Sequence[int], parent: bytes, tail: Sequence[int]
    ) -> None:
        """Give the request the blocks found, and a copy of the one that has `tail` after them."""
        for block in found:
            self.pool.hold(block)
        request.window_first = self.first_seen(request.num_computed_tokens)
        request.window_blocks = list(found)
        if tail:
            source, _ = self.pool.find_tail(parent, tail)
            block = self.pool.allocate()
            if source != block:  # if the same, it has just been allocated as it is
                self.pool.copy(source, block)
            request.window_blocks.append(block)

    def mark(self, request: Request, positions: Sequence[int]) -> None:
        """Keep what is needed to go on from these positions longer than other blocks.

        Prompts part a few tokens before or after: so one block more.
        """
        request.window_marks = [
            range(self.first_seen(position) - 1, position // BLOCK_SIZE + 1)
            for position in positions
        ]

    def lacking(self, request: Request, tokens: int) -> int:
        """Return how many blocks the request lacks for its first `tokens` tokens."""
        held = request.window_first + len(request.window_blocks)
        return max(0, blocks_for(tokens) - held)

    def room(self, request: Request, spare: int = 0) -> int:
        """Return how many tokens there are blocks for, with all free ones but `spare`."""
        held = request.window_first + len(request.window_blocks)
        return (held + max(0, self.pool.num_free - spare)) * BLOCK_SIZE

    def extend(self, request: Request, tokens: int) -> None:
        """Give the request the blocks that it lacks for its first `tokens` tokens."""
        lacking = self.lacking(request, tokens)
        request.window_blocks += [self.pool.allocate() for _ in range(lacking)]

    def cut(self, request: Request, tokens: int) -> None:
        """Give back the blocks behind the request's first `tokens` tokens."""
        kept = max(0, blocks_for(tokens) - request.window_first)
        self.pool.release(request.window_blocks[kept:])
        del request.window_blocks[kept:]

    def publish(self, request: Request, index: int, parent: bytes, tokens: Sequence[int]) -> None:
        """Make the tokens in block number `index` of the request findable."""
        place = index - request.window_first
        block = request.window_blocks[place]
        request.window_blocks[place] = self.pool.publish(block, parent, tokens)

    def leave(self, request: Request) -> None:
        """Give back the blocks that no later token of the request sees."""
        first = self.first_seen(request.num_computed_tokens)
        count = first - request.window_first
        if count <= 0:
            return
        for index, block in enumerate(request.window_blocks[:count], request.window_first):
            marked = any(index in blocks for blocks in request.window_marks)
            self.pool.release([block], soon=not marked)
        del request.window_blocks[:count]
        request.window_first = first

    def release(self, request: Request, *, forget: bool) -> None:
        """Take all that the request holds. `forget`: nobody finds that, or what it left, again."""
        self.pool.release(request.window_blocks, forget=forget)
        if forget:
            for index in range(blocks_for(request.num_computed_tokens)):
                parent, start = parent_of(request, index), index * BLOCK_SIZE
                self.pool.forget(parent, request.tokens[start : start + BLOCK_SIZE])
        request.window_first, request.window_blocks, request.window_marks = 0, [], []
