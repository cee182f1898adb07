"""One process that renders the chat templates of every model that tests make.

A request to it has the template's source, so that any model's will do; one of each model's own
takes a tenth of a second to start, which is as long as many a test.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from dure.chat import template

OWN = template._Worker


class Shared:
    """Stands for a process of a template's own."""

    _lock: ClassVar[Any] = threading.Lock()
    _process_of_all: ClassVar[Any] = None

    def usable(self) -> bool:
        """Whether it can be asked: one that has ended is replaced then."""
        return True

    def ask(self, request: bytes, limit: int) -> tuple[str, str]:
        """As the real one; ended after what ends a real one, too."""
        with Shared._lock:
            one = Shared._process_of_all
            if one is None or not one.usable():
                one = Shared._process_of_all = OWN()
            what = "died"
            try:
                what, text = one.ask(request, limit)
            finally:
                if what in ("time", "memory", "died"):
                    one.close()
                    Shared._process_of_all = None
            return what, text

    def close(self) -> None:
        """Others go on with it; it ends with the tests."""
