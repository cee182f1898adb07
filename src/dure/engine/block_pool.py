"""BlockPool: which block holds what, who uses it, and how an equal prefix is found again."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE

if TYPE_CHECKING:
    pass

# Blocks that continue one prefix and are compared token by token when a request is admitted, the
# newest first: 32 comparisons of at most 31 tokens take about 50 us.
MAX_CANDIDATES = 32


def root_digest(cache_salt: str, model_id: str) -> bytes:
    """Return the 32 bytes that all blocks of one tenant and one model descend from."""
    salt, model = (text.encode("utf-8", "surrogatepass") for text in (cache_salt, model_id))
    # The length first: salt "a" of model "bc" must not be salt "ab" of model "c".
    return hashlib.blake2b(len(salt).to_bytes(8, "little") + salt + model, digest_size=32).digest()


def block_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return 32 bytes that name these tokens after everything that `parent` names."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=32).digest()


def blocks_for(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


class BlockPool:
    """Counted references to blocks, and an index of what the blocks hold.

    A block is *held* by one or more block tables, or *free*. A free block keeps its contents and
    stays findable until it is allocated again, the least recently freed first. A block's contents
    are tokens after a parent digest: full ones are found by their own digest, full and partly
    filled ones by a common beginning (`find_tail`), whose tokens are then copied. The pool only
    counts: what is to be cleared and copied is told by `take_ops`, and done by a runner.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._clears: list[int] = []
        self._copies: list[tuple[int, int]] = []
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_digest: dict[bytes, int] = {}
        self._children: dict[bytes, dict[int, tuple[int, ...]]] = {}
        self._contents: dict[int, tuple[bytes, bytes | None]] = {}  # block -> (parent, digest)

    @property
    def num_free(self) -> int:
        """Blocks that no block table holds."""
        return len(self._free)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Find the longest known run of full blocks from the first digest on; hold none of them."""
        blocks = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def find_tail(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """Find the block after `parent` that begins with most of `tokens`.

        Returns (block, count of tokens in common), or (-1, 0). The first `count` positions may be
        copied: whoever holds the block only ever adds behind them.
        """
        best, longest = -1, 0
        children = self._children.get(parent, {})
        for block in islice(reversed(children), MAX_CANDIDATES):
            common = _common_prefix(children[block], tokens)
            if common > longest:
                best, longest = block, common
        return best, longest

    def count_free(self, blocks: Iterable[int]) -> int:
        """Count the free ones among the blocks: holding them would use up that many."""
        return sum(self._references[block] == 0 for block in blocks)

    def hold(self, block: int) -> None:
        """Count one more block table that holds the block."""
        self._references[block] += 1
        self._free.pop(block, None)

    def allocate(self) -> int:
        """Take a block for new contents, held once: the least recently freed."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def copy(self, source: int, target: int) -> None:
        """Have the next pass begin with a copy of source's keys and values in `target`."""
        self._copies.append((source, target))
        if source in self._free:
            self._free.move_to_end(source)

    def publish(self, block: int, parent: bytes, tokens: Sequence[int]) -> int:
        """Make the tokens that were computed into `block`, a held one, findable.

        Returns the block to hold for them: `block`, or an equal full one that exists, which is then
        held instead while `block` is given back.
        """
        self._forget(block)
        digest = None
        if len(tokens) == BLOCK_SIZE:
            digest = block_digest(parent, tokens)
            existing = self._by_digest.get(digest)
            if existing is not None:
                self.hold(existing)
                self.release([block])
                return existing
            self._by_digest[digest] = block
        self._children.setdefault(parent, {})[block] = tuple(tokens)
        self._contents[block] = (parent, digest)
        return block

    def release(self, blocks: Sequence[int], *, forget: bool = False, soon: bool = False) -> None:
        """Let go of one block table's blocks, given in its order.

        soon: they are hardly wanted again, and the first to be reused.
        `forget`: their contents may be wrong; nobody finds them again, and the next pass clears
        them of a not-a-number, because zero times it is not zero for the block's next user.
        """
        for block in reversed(blocks):  # the end of a prefix is worth less than its beginning
            self._references[block] -= 1
            if forget:
                self._forget(block)
            if self._references[block] > 0:
                continue
            if forget:
                self._clears.append(block)
            self._free[block] = None
            if soon or block not in self._contents:  # or there is nothing to find in it
                self._free.move_to_end(block, last=False)

    def forget(self, parent: bytes, tokens: Sequence[int]) -> None:
        """Make what a wrong sequence left of `tokens` after `parent` unfindable, and clear it."""
        for block, held in list(self._children.get(parent, {}).items()):
            if held != tuple(tokens[: len(held)]):
                continue
            self._forget(block)
            if block in self._free:
                self._clears.append(block)
                self._free.move_to_end(block, last=False)

    def forget_all(self) -> None:
        """Make everything unfindable, and copy nothing: the contents are lost. None may be held."""
        for block in list(self._contents):
            self._forget(block)
        self._copies = []

    def take_ops(self) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Return the blocks to clear and the (source, target) to copy since the last call."""
        ops = tuple(self._clears), tuple(self._copies)
        self._clears, self._copies = [], []
        return ops

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless exactly these block tables hold exactly the held blocks."""
        held = self.num_blocks - self.num_free
        tables = list(block_tables)
        if tables:
            expected = [0] * self.num_blocks
            for table in tables:
                for block in table:
                    expected[block] += 1
            if expected != self._references:
                raise RuntimeError("cache blocks leaked: references and block tables differ")
            held -= sum(count > 0 for count in expected)
        if held:
            raise RuntimeError(f"{held} cache blocks leaked: held, but in no block table")

    def _forget(self, block: int) -> None:
        """Make the block's contents unfindable."""
        contents = self._contents.pop(block, None)
        if contents is None:
            return
        parent, digest = contents
        if digest is not None:
            del self._by_digest[digest]
        siblings = self._children[parent]
        del siblings[block]
        if not siblings:
            del self._children[parent]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
