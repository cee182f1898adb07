"""What several answers took, added up: a shared prompt counts once, prompts of their own all."""

from __future__ import annotations

from dataclasses import replace

from dure import ExpertUse, Usage

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


def test_what_several_answers_read_is_that_of_the_longest_as_they_share_their_steps() -> None:
    short, long = ExpertUse(8, 2, 100, 0.5, 2, 1), ExpertUse(12, 4, 200, 0.75, 2, 1)
    answers = [replace(FIRST, experts=short), replace(SECOND, experts=long), SECOND]
    assert Usage.of_choices(answers).experts == long
    assert Usage.of_prompts(answers).experts == long
    assert Usage.of_choices([FIRST, SECOND]).experts is None


def test_what_experts_took_adds_up() -> None:
    one, all_of_it = ExpertUse(8, 2, 100, 0.5, 2, 1), ExpertUse(12, 4, 200, 0.75, 3, 1)
    assert one + (all_of_it - one) == all_of_it
    assert all_of_it - one == ExpertUse(4, 2, 100, 0.25, 1, 0)
    assert (one.needed, one.hit_rate, ExpertUse().hit_rate) == (10, 0.8, 1.0)
