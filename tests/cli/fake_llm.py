"""An LLM that costs nothing: it repeats the last message, word by word.

`python fake_llm.py ARGUMENTS` is the `dure` command with it. FAKE_PAUSE is the seconds between
words, or until it is interrupted; FAKE_BUSY those after the first in which no signal is seen, as in
a kernel; FAKE_TERMINAL makes the terminal on stdin its own.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dure.chat.dialects import Event
from dure.chat.output import Chunk, Completion
from dure.chat.usage import Usage
from dure.cli import main
from dure.engine.params import SamplingParams
from dure.errors import ContextLengthError, ModelNotFoundError, TemplateError
from dure.formats.checkpoint import Checkpoint
from dure.loading.memory import MemoryUse
from dure.metering.cost import NOTHING, Cost
from dure.weights.expert_stats import ExpertStats, ExpertUse

STREAMED = MemoryUse(
    budget=8 * 10**9,
    resident_bytes=2 * 10**9,
    cache_bytes=10**9,
    state_bytes=0,
    overhead_bytes=10**9,
    expert_bytes=16 * 10**9,
    expert_cache_bytes=4 * 10**9,
    streamed=True,
    prefill_rows=4096,
    expected_tps=3.14,
)


class Interrupted(threading.Event):
    """What a pause between words waits for; a test can interrupt it there."""


class FakeLLM:
    """What the command line uses of dure.llm.LLM."""

    made: list[FakeLLM] = []  # noqa: RUF012 - a test looks here for the one the command made

    def __init__(self, model: str | None = None, **options: Any) -> None:
        if model == "missing":
            raise ModelNotFoundError("No model is called 'missing'.", hint="did you mean this?")
        self.name = model or "the-default"
        self.path = Path("/models/fake.gguf")
        self.context = 1000
        self.threads = 2
        self.options = options
        self.meter = options.get("meter")
        self.notes: tuple[str, ...] = ()
        self.memory = STREAMED if model == "giant" else None
        self.stats = ExpertStats(read_bytes=1_000_000)
        self.engine = SimpleNamespace(runner=SimpleNamespace(expert_stats=self.stats))
        self.template_source = None if model == "base" else "{{ messages }}"
        self.sampling_defaults = {"temperature": 0.5}
        self.model = SimpleNamespace(context_length=4000)
        self.driver = SimpleNamespace(interrupted=Interrupted())
        self.checkpoint = Checkpoint(self.path, "gguf", {}, {"general.architecture": "fake"})
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.thinks: list[Any] = []
        self.formats: list[Any] = []
        FakeLLM.made.append(self)

    def check_think(self, think: bool | int) -> None:
        if self.name != "thinker":
            raise TemplateError("fake has no switch for thinking in its chat template.")

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        params: SamplingParams,
        *,
        think: bool | int | None = None,
        format: Any = None,  # noqa: A002 - as the LLM calls it
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generator[Chunk, None, None]:
        if think is not None:
            self.check_think(think)
        # Copied: the caller's list grows as the conversation does.
        self.asked.append(prompt if isinstance(prompt, str) else [dict(m) for m in prompt])
        self.params.append(params)
        self.thinks.append(think)
        self.formats.append(format)
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if "too long" in text:
            raise ContextLengthError("The prompt has 2,000 tokens, and the context holds 1,000.")
        return self._words(text, params, on_prefill)

    def _words(
        self, text: str, params: SamplingParams, on_prefill: Callable[[int, int], None] | None
    ) -> Generator[Chunk, None, None]:
        if on_prefill is not None and text.startswith("slow"):
            on_prefill(0, 10)
            self.stats.read_bytes += 2_000_000_000
            time.sleep(float(os.environ.get("FAKE_PAUSE", "0")))
            on_prefill(5, 10)
        words = text.split(" ")
        reason = "stop"
        if params.max_tokens is not None and len(words) > params.max_tokens:
            words, reason = words[: params.max_tokens], "length"
        if text.startswith("endless"):
            reason = "length"
        said: list[str] = []
        events: list[Event] = []
        for number, word in enumerate(words):
            if number == 1:
                _busy(float(os.environ.get("FAKE_BUSY", "0")))
            if number and not text.startswith("slow"):  # which is slow to be read only
                self.driver.interrupted.wait(float(os.environ.get("FAKE_PAUSE", "0")))
            said.append(word if number == 0 else " " + word)
            # "thinker" takes all before "</think>" for thoughts, as a prompt that opens them does.
            thinks = self.name == "thinker" and "</think>" in words[number:]
            event = Event("reasoning" if thinks else "content", said[-1])
            shown = () if word == "</think>" else (event,)
            events += shown
            completion = None
            if number == len(words) - 1:
                completion = _completion(said, reason, events)
            yield Chunk(said[-1], number, completion, events=shown)


def _busy(seconds: float) -> None:
    """Stay outside of Python for at least so long on any machine; a signal is not looked at."""
    if seconds:
        hashlib.pbkdf2_hmac("sha256", b"", b"", min(round(seconds * 20e6), 2**31 - 1))


def _completion(said: Sequence[str], reason: str, events: Sequence[Event]) -> Completion:
    return Completion(
        text="".join(said),
        content="".join(event.text for event in events if event.kind == "content"),
        reasoning="".join(event.text for event in events if event.kind == "reasoning"),
        token_ids=tuple(range(len(said))),
        logprobs=None,
        finish_reason=reason,
        usage=Usage(
            prompt_tokens=10,
            cached_tokens=4,
            output_tokens=len(said),
            drafted_tokens=120 if said[0] == "guessed" else 0,
            accepted_tokens=96 if said[0] == "guessed" else 0,
            prefill_s=0.5,
            decode_s=2.0,
            cost=Cost(0.8, 1.5, 45.0, ("rapl",)) if said[0] == "paid" else NOTHING,
            experts=ExpertUse(90, 10, 5_000_000, 0.25, 6, 2) if said[0] == "read" else None,
        ),
    )


if __name__ == "__main__":
    import dure.llm

    if "FAKE_TERMINAL" in os.environ:
        # A session's leader that opens a terminal gets it as its own, and with it Ctrl-C.
        os.close(os.open(os.ttyname(0), os.O_RDWR))
    dure.llm.LLM = FakeLLM  # type: ignore[assignment,misc]
    main(sys.argv[1:])
