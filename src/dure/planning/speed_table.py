"""The speeds of a model at the depths and numbers of users that a plan shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dure.planning.speed import Speeds

STREAMS = (1, 8, 32)
DEPTHS = (0, 4096, 32768)
PROMPTS = (512, 4096, 32768)
QUICK_TPS = 8.0
"""Tokens a second of one stream that a person reads along with."""


@dataclass(frozen=True)
class SpeedTable:
    """Tokens a second, and seconds to the first token, as far as the model's context goes."""

    decode: Mapping[int, Mapping[int, float]]  # streams -> depth -> tokens a second of all
    prefill: Mapping[int, float]  # tokens of a prompt -> tokens a second
    first_token_s: Mapping[int, float]  # tokens of a prompt -> seconds
    assumed: tuple[str, ...]  # what was not measured, in sentences

    @property
    def one_stream(self) -> float:
        """Tokens a second of one conversation that has just begun."""
        return self.decode[1][0]

    @property
    def is_quick(self) -> bool:
        """Whether an answer comes as fast as a person reads."""
        return self.one_stream >= QUICK_TPS


def speed_table(speeds: Speeds, context: int) -> SpeedTable:
    """Return the speeds for contexts up to `context` tokens."""
    depths = [depth for depth in DEPTHS if depth < context]
    prompts = [tokens for tokens in PROMPTS if tokens <= context] or [context]
    first = {tokens: speeds.first_token_s(tokens) for tokens in prompts}
    return SpeedTable(
        decode={
            streams: {depth: speeds.decode_tps(streams, depth) for depth in depths}
            for streams in STREAMS
        },
        prefill={tokens: tokens / seconds for tokens, seconds in first.items()},
        first_token_s=first,
        assumed=speeds.assumed,
    )
