"""Report a download on stderr: one line that redraws itself, or plain lines off a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from dure.hub import Progress

REDRAW_S = 0.1
PLAIN_EVERY_S = 10.0  # off a terminal, where each line stays


class PullReport:
    """Report dure.hub's `progress`; as a context manager, erase the line at the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = False
        self._next = 0.0
        self._first: tuple[float, int] | None = None
        self._stage = ""

    def __enter__(self) -> PullReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._erase()

    def __call__(self, progress: Progress) -> None:
        """Redraw the report, if it is time to."""
        now = time.monotonic()
        if progress.stage == "downloading" and self._first is None:
            self._first = (now, progress.done_bytes)
        if progress.stage == self._stage and now < self._next:
            return
        self._stage = progress.stage
        self._next = now + (REDRAW_S if self._live else PLAIN_EVERY_S)
        text = self._text(progress, now)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._drawn = progress.stage != "done"
            self._stream.write("" if self._drawn else "\n")
            self._stream.flush()
        elif progress.stage not in ("asking", "checking"):
            self._stream.write(text + "\n")
            self._stream.flush()

    def _text(self, progress: Progress, now: float) -> str:
        from dure.hub import human_bytes  # noqa: PLC0415 - loaded by then; keeps --help light

        name = progress.name
        if progress.stage == "waiting":
            return f"{name}: waiting for another dure that is pulling it"
        if progress.stage == "asking":
            return f"{name}: asking {progress.source}"
        if progress.stage == "checking":
            return f"{name}: checking all {human_bytes(progress.total_bytes)}"
        if progress.stage == "done":
            return f"{name}: {human_bytes(progress.total_bytes)} from {progress.source}, checked"
        done, total = progress.done_bytes, progress.total_bytes
        percent = f"{100 * done // total:3d} %" if total else ""
        text = f"pulling {name} {percent} of {human_bytes(total)} from {progress.source}"
        return text + self._speed(done, total, now)

    def _speed(self, done: int, total: int, now: float) -> str:
        """Format the speed and the time left, once a second has passed."""
        from dure.hub import human_bytes  # noqa: PLC0415 - as above

        since, before = self._first or (now, done)
        if now - since < 1.0 or done <= before:
            return ""
        rate = (done - before) / (now - since)
        left = round((total - done) / rate)
        minutes = f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"
        return f", {human_bytes(round(rate))}/s, {minutes} left"

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False
