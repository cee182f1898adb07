"""A model that makes a step when a test lets it: no test depends on how fast a machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from fake_model import ScriptModel

ROOMY = {"context": 4096, "num_blocks": 256}
"""Options of fake_model.loaded for prompts and answers of some thousand tokens."""

EVER = 1 << 30


class Stepped(ScriptModel):
    """Waits before each step until it is allowed one. `begun` counts those that were asked for."""

    def __init__(self, script: Any, *, context_length: int = 4096) -> None:
        super().__init__(script, context_length=context_length)
        self.begun = 0
        self._allowed = 0
        self._changed = threading.Condition()

    def let(self, steps: int = EVER) -> None:
        """Nothing; so many steps more may be made."""
        with self._changed:
            self._allowed += steps
            self._changed.notify_all()

    def let_until(self, what: Callable[[], bool]) -> None:
        """Nothing; step after step was made until `what` was so."""
        for _ in range(3000):
            if what():
                return
            self.let(1)
            time.sleep(0.02)
        raise AssertionError("it did not become so in any step")

    def forward(self, batch: Any, cache: Any) -> Any:
        with self._changed:
            self.begun += 1
            assert self._changed.wait_for(lambda: self._allowed, 600), "no step was allowed"
            self._allowed -= 1
        return super().forward(batch, cache)


def endless(_: str) -> str:
    """A script that never ends."""
    return "y"
