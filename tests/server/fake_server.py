"""`python fake_server.py ARGUMENTS` is the `dure` command over a model that repeats one letter.

FAKE_PAUSE is the seconds of a step, FAKE_WORDS the letters of an answer. FAKE_GATE is a path: an
answer has no more than ten letters until there is a file. FAKE_LOAD are the seconds of a loading.
At a prompt with "!" a step wants FAKE_HUNGER bytes. The path of a file is a real model's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from fake_model import ScriptModel, loaded, reply

import dure.llm
from dure.cli import main
from dure.errors import NotEnoughMemoryError

PAUSE = float(os.environ.get("FAKE_PAUSE", "0"))
GATE = os.environ.get("FAKE_GATE")
HUNGER = int(os.environ.get("FAKE_HUNGER", "0"))


class Paused(ScriptModel):
    """Takes its time for a step, and its memory."""

    def forward(self, batch: Any, cache: Any) -> Any:
        time.sleep(PAUSE)
        while GATE is not None and len(self.batches) > 10 and not Path(GATE).exists():
            time.sleep(0.01)
        if ord("!") in batch.tokens:
            np.ones(HUNGER, np.uint8)
        return super().forward(batch, cache)


real = dure.llm.load


def load(name: str, **options: Any) -> Any:
    time.sleep(float(os.environ.get("FAKE_LOAD", "0")))
    if Path(name).is_file():
        return real(name, **options)
    if name == "too-big":
        raise NotEnoughMemoryError("too-big needs 900 GB of memory, and 24 GB is available.")
    if options["quantize"] is not None:
        print(f"quantised to {options['quantize']}", file=sys.stderr)
    words = "x" * int(os.environ.get("FAKE_WORDS", "100"))
    return loaded(Paused(reply(words), context_length=4096), context=4096, num_blocks=256)


if __name__ == "__main__":
    dure.llm.load = load  # type: ignore[assignment]
    main(sys.argv[1:])
