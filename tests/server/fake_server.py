"""`python fake_server.py ARGUMENTS` is the `dure` command over a model that repeats one letter.

FAKE_PAUSE is the seconds of a step, FAKE_WORDS the letters of an answer.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fake_model import ScriptModel, loaded, reply

import dure.llm
from dure.cli import main
from dure.errors import NotEnoughMemoryError


class Paused(ScriptModel):
    """Takes FAKE_PAUSE seconds a step."""

    def forward(self, batch: Any) -> Any:
        time.sleep(float(os.environ.get("FAKE_PAUSE", "0")))
        return super().forward(batch)


def load(name: str, **options: Any) -> Any:
    if name == "too-big":
        raise NotEnoughMemoryError("too-big needs 900 GB of memory, and 24 GB is available.")
    if options["quantize"] is not None:
        print(f"quantised to {options['quantize']}", file=sys.stderr)
    words = "x" * int(os.environ.get("FAKE_WORDS", "100"))
    return loaded(Paused(reply(words), context_length=4096), context=4096, num_blocks=256)


if __name__ == "__main__":
    dure.llm.load = load  # type: ignore[assignment]
    main(sys.argv[1:])
