"""How many bytes a KV cache of so many tokens takes, and how many tokens so many bytes hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.batch import BLOCK_SIZE
from dure.engine.windows import window_span

if TYPE_CHECKING:
    from dure.batch import CacheDtype, KVCacheSpec, StateSpec

ROWS = 512
"""Rows of a step that OVERHEAD_BYTES and the experts' buffers are planned for."""

MOST_TOKENS = 1 << 40
"""No cache is planned with more."""

MOST_WINDOWS = 64
"""Windows that the cache keeps at most beside those of running conversations: as many as sequences
may run at once. Each prefix that can be gone on from needs one."""

WINDOW_SHARE = 3
"""Windows take at most this part of the tokens that the other layers cache, if that is enough."""


@dataclass(frozen=True)
class CacheSize:
    """The sizes of a cache.

    Layers with a window keep only what it sees, so that their part does not grow with the context:
    two windows of each conversation, one that goes on and one that others may go on from, or more
    where the cache is large; and the rows of a step.
    """

    token_bytes: int  # of one token, in all layers that keep every token
    window_bytes: int = 0  # in all layers with a window
    window: int = 0  # tokens that the largest sees; 0: there is none
    conversations: int = 1
    rows: int = ROWS  # of a step

    @classmethod
    def of(
        cls,
        layers: Sequence[KVCacheSpec | StateSpec],
        dtype: CacheDtype,
        *,
        whole: Sequence[KVCacheSpec | StateSpec] = (),
        conversations: int = 1,
        rows: int = ROWS,
    ) -> CacheSize:
        """Return the sizes for these layers. whole: others, which keep every token in any case."""
        windows = [layer for layer in layers if layer.kind == "window"]
        others = [layer for layer in layers if layer.kind != "window"]
        return cls(
            sum(layer.bytes_per_token(dtype) for layer in (*others, *whole)),
            sum(layer.bytes_per_token(dtype) for layer in windows),
            max((layer.window or 0 for layer in windows), default=0),
            conversations,
            rows,
        )

    def window_tokens(self, tokens: int) -> int:
        """Return the tokens that layers with a window cache, beside `tokens` of the others."""
        if not self.window:
            return 0
        span = window_span(self.window) * BLOCK_SIZE
        many = tokens // WINDOW_SHARE
        if self.token_bytes:  # else nothing but windows limits what is remembered
            many = min(many, MOST_WINDOWS * span)
        kept = max(2 * (self.conversations + 1) * span, many) + self.rows
        return min(_whole_blocks(tokens), _whole_blocks(kept))

    def bytes_of(self, tokens: int) -> int:
        """Return the bytes of a cache of so many tokens, in whole blocks."""
        return tokens * self.token_bytes + self.window_tokens(tokens) * self.window_bytes

    def tokens_in(self, size_bytes: int) -> int:
        """Return the most tokens, in whole blocks, of a cache that takes at most so many bytes."""
        low, high = 0, MOST_TOKENS // BLOCK_SIZE
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes_of(middle * BLOCK_SIZE) <= size_bytes:
                low = middle
            else:
                high = middle - 1
        return low * BLOCK_SIZE


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE
