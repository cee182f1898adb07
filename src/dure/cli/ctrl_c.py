"""Ctrl-C ends a command soon, even while the main thread is in the kernels; other signals tidily.

Python's own handler waits until the main thread is back in Python, which a pass over a long prompt
may keep out for seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

GRACE_S = 0.15
EXIT_CODE = 130


@contextmanager
def ends_soon(tidy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End the process if a Ctrl-C has not ended the block within 0.15 s.

    tidy: called before, on another thread, to leave the screen as it should be. Off the main
    thread, and where Ctrl-C is ignored (nohup), nothing is changed.
    """
    usual = signal.getsignal(signal.SIGINT)
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or usual in (signal.SIG_IGN, None):
        yield
        return
    reading, writing = os.pipe()
    if sys.platform != "win32":  # where it may block
        os.set_blocking(writing, False)
    over = threading.Event()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(reading, over, tidy), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the watching
        watching.join()
        os.close(reading)


@contextmanager
def ends_tidily() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP of a closed terminal, leave the block as an error does.

    So what is half written is deleted. A signal that is ignored (nohup) stays ignored.
    """
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has the first alone
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                former[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _watch(signals: int, over: threading.Event, tidy: Callable[[], None]) -> None:
    while numbers := os.read(signals, 64):
        if signal.SIGINT not in numbers:
            continue
        if over.wait(GRACE_S):
            return
        with suppress(Exception):
            tidy()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(EXIT_CODE)
