"""The work that peers.py compares engines by, and what dure is meant to reach in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Ask = Callable[..., dict[str, Any]]
"""Sends one request to an engine's process and gives its answer."""

TRIAL_DEPTH = 2048  # tokens of context in the short run that picks settings for deeper work
LONG = 16384 + 512  # the three deep pieces of work share one cache of this length


@dataclass(frozen=True)
class Work:
    """One row of the table. Speeds are in tokens a second, of "start" in starts a second."""

    name: str
    model: str
    kind: Literal["prefill", "decode", "start"]
    must: float
    aim: float
    tokens: int = 512  # of the prompt, or steps of decoding
    trial: int = 256  # the same in the short run that picks each engine's setting
    sequences: int = 1
    depth: int = 0  # tokens in each sequence before decoding
    length: int = 1024  # that the cache has room for in each sequence

    @property
    def long(self) -> bool:
        """Whether one repeat takes minutes."""
        return self.length >= LONG

    def cache(self, flash: bool) -> dict[str, Any]:
        """What `hold` is told of the cache."""
        return {"sequences": self.sequences, "length": self.length, "flash": flash}

    def speed(self, ask: Ask, flash: bool, *, trial: bool = False) -> float:
        """Tokens a second of one repeat, or of the shorter trial of it.

        A context that the process holds from the repeat before is used again: at a depth of
        16384, filling it takes an engine minutes and decoding seconds.
        """
        count = self.trial if trial else self.tokens
        if self.kind == "prefill":
            ask("hold", depth=0, **self.cache(flash))
            done = ask("fill", count=count)
        else:
            depth = min(self.depth, TRIAL_DEPTH) if trial else self.depth
            ask("hold", depth=depth, **self.cache(flash))
            done = ask("decode", steps=count)
        return float(done["tokens"] / done["seconds"])

    def show(self, speed: float) -> str:
        """The figure as the table has it."""
        return f"{1 / speed:.2f} s" if self.kind == "start" else f"{speed:.1f}"


QWEN, SMALL, SMOL = "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2-135m"
MOE, MOE_64 = "moe-12", "moe-64"
OF_2026 = ("qwen3.6-35b-a3b", "gpt-oss-20b", "gemma-4-26b-a4b")


def _prefill(model: str, tokens: int, must: float, aim: float, **more: Any) -> Work:
    return Work(f"prefill-{tokens}", model, "prefill", must, aim, tokens, **more)


def _decode(name: str, model: str, must: float, aim: float, steps: int, **more: Any) -> Work:
    return Work(name, model, "decode", must, aim, steps, **more)


def _mixture(model: str, deep: bool = False) -> tuple[Work, ...]:
    rows = (
        _prefill(model, 512, 1.7, 2.0),
        _decode("decode", model, 1.05, 1.15, 64, trial=16),
        _decode("decode-8", model, 1.3, 1.6, 32, trial=6, sequences=8, length=256),
    )
    at = _decode("decode-at-16384", model, 1.6, 2.0, 24, trial=12, depth=16384, length=LONG)
    return (*rows, at) if deep else rows


# In this order: the deep work last of its model, each piece going on from the context of the one
# before it.
WORK = (
    Work("start", QWEN, "start", 1.1, 1.5),
    _prefill(QWEN, 512, 1.7, 2.0),
    _decode("decode", QWEN, 1.05, 1.15, 64, trial=16),
    _decode("decode-8", QWEN, 1.4, 1.8, 32, trial=6, sequences=8, length=256),
    _decode("decode-32", QWEN, 1.2, 1.8, 16, trial=3, sequences=32, length=256),
    _prefill(QWEN, 4096, 1.6, 2.0, trial=TRIAL_DEPTH, length=LONG),
    _decode("decode-at-4096", QWEN, 1.3, 1.5, 32, trial=12, depth=4096, length=LONG),
    _decode("decode-at-16384", QWEN, 1.6, 2.0, 24, trial=12, depth=16384, length=LONG),
    _prefill(SMALL, 512, 1.8, 2.2),
    _decode("decode", SMALL, 1.05, 1.15, 64, trial=24),
    _prefill(SMOL, 512, 1.8, 2.2),
    _decode("decode", SMOL, 1.05, 1.15, 128, trial=48),
    *_mixture(MOE),
    *_mixture(MOE_64),
    *(row for model in OF_2026 for row in _mixture(model, deep=True)),
)
MODELS = {
    QWEN: "Qwen2.5-Coder-1.5B Q4_K_M",
    SMALL: "Qwen2.5-Coder-0.5B Q4_K_M",
    SMOL: "SmolLM2-135M Q4_1",
    MOE: "Qwen3-30B-A3B shapes, 12 of 48 layers, Q4_K_M",
    MOE_64: "64 experts, 12 active, 12 layers, Q4_K_M",
    OF_2026[0]: "Qwen3.6-35B-A3B shapes, 12 of 40 layers, Q4_K_M",
    OF_2026[1]: "gpt-oss-20b shapes, 12 of 24 layers, MXFP4",
    OF_2026[2]: "Gemma-4-26B-A4B shapes, 12 of 30 layers, Q4_K_M",
}
TITLES = {
    "start": "load to first token",
    "prefill-512": "prefill 512",
    "prefill-4096": "prefill 4096",
    "decode": "decode, one sequence",
    "decode-8": "decode, 8 sequences",
    "decode-32": "decode, 32 sequences",
    "decode-at-4096": "decode at depth 4096",
    "decode-at-16384": "decode at depth 16384",
}
