"""How many of many answers are there: a line on stderr, for programs that use dure."""

from __future__ import annotations

import sys
import time

REDRAW_S = 0.1
PLAIN_EVERY_S = 10.0  # off a terminal, where each line stays


class ProgressReport:
    """Says on stderr how far a call is: one line that redraws itself, or lines off a terminal."""

    def __init__(self, what: str) -> None:
        """what: of what there are many, such as "answers"."""
        self._what = what
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began if self._live else self._began + PLAIN_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are there, if it is time to; the last is always said."""
        now = time.monotonic()
        if sys.stderr is None or (now < self._next and done < total):
            return
        self._next = now + (REDRAW_S if self._live else PLAIN_EVERY_S)
        seconds = now - self._began
        speed = f", {done / seconds:.1f} a second" if done and seconds > 0 else ""
        line = f"{done:,} of {total:,} {self._what}{speed}"
        start, end = ("\r\x1b[K", "\n" if done == total else "") if self._live else ("", "\n")
        sys.stderr.write(start + line + end)
        sys.stderr.flush()
