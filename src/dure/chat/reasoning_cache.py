"""Keeps the reasoning that led to tool calls, for clients that do not send it back.

DeepSeek V4 and MiniMax M2 do worse without, and most clients drop it from the history.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from dure.chat.output import Completion

MAX_CALLS = 4096
MAX_CHARACTERS = 16 << 20


class ReasoningCache:
    """Maps a call's id to the reasoning before it, newest entries first. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def remember(self, salt: str, completion: Completion) -> None:
        """Keep the reasoning of an answer with calls; drop the oldest beyond the limits."""
        if not completion.reasoning or not completion.tool_calls:
            return
        with self._lock:
            # The first call's id finds them: a client that keeps any call keeps that one.
            self._kept[salt, completion.tool_calls[0]["id"]] = completion.reasoning
            self._size += len(completion.reasoning)
            while len(self._kept) > MAX_CALLS or self._size > MAX_CHARACTERS:
                self._size -= len(self._kept.popitem(last=False)[1])

    def recall(self, salt: str, call_id: str) -> str | None:
        """Return the reasoning before a call, or None. Each salt sees only its own entries."""
        with self._lock:
            return self._kept.get((salt, call_id))
