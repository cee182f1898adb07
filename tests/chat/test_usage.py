"""What several answers took, added up: a shared prompt counts once, prompts of their own all."""

from __future__ import annotations

from dure import Usage

FIRST = Usage(
    prompt_tokens=10,
    cached_tokens=4,
    output_tokens=5,
    reasoning_tokens=2,
    drafted_tokens=6,
    accepted_tokens=3,
    prefill_s=0.5,
    decode_s=2.0,
)
SECOND = Usage(prompt_tokens=10, cached_tokens=4, output_tokens=3, prefill_s=0.75, decode_s=1.0)


def test_choices_share_their_prompt() -> None:
    expected = Usage(10, 4, 8, 2, 6, 3, prefill_s=0.75, decode_s=2.0)
    assert Usage.of_choices([FIRST, SECOND]) == expected
    assert Usage.of_choices([], prompt_tokens=7) == Usage(7)


def test_prompts_add_up() -> None:
    expected = Usage(20, 8, 8, 2, 6, 3, prefill_s=0.75, decode_s=2.0)
    assert Usage.of_prompts([FIRST, SECOND]) == expected


def test_speeds_follow_from_tokens_and_seconds() -> None:
    timings = FIRST.timings
    assert (timings.prefill_tps, timings.decode_tps) == (6 / 0.5, 4 / 2.0)
    assert (Usage(3).timings.prefill_tps, Usage(3).timings.decode_tps) == (0, 0)
    assert (FIRST.computed_tokens, FIRST.total_tokens) == (6, 15)
