"""A replica that is lost for good: others go on with its answers, and no token changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_model import loaded
from lost_runner import Loss, Wild

import dure.llm
from dure import LLM, AsyncLLM, ClusterError, Completion, Format, SamplingParams
from dure.driver import MOST_MOVES
from dure.metering.cost import NOTHING

PROMPTS = [text * count for text in ("b", "ef", "klm") for count in (1, 40)]
SEEDED = SamplingParams(max_tokens=16, ignore_eos=True, temperature=1.0, seed=7, logprobs=3)
ASKED = {
    "greedy": SamplingParams(max_tokens=16, ignore_eos=True, temperature=0),
    "seeded": SEEDED,
    "penalties": replace(SEEDED, frequency_penalty=1.5, presence_penalty=1, min_p=0.01),
    "several": replace(SEEDED, n=3),
    "scored": replace(SEEDED, prompt_logprobs=2),
    "stopped": replace(SEEDED, stop=("e", "t"), max_tokens=40),
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
Made = Callable[..., LLM]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(**options: Any) -> LLM:
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(Wild(), num_blocks=128))
        return LLM("fake", **{"speculate": "off", "replicas": 2, **options})

    return make


def drivers_of(llm: LLM) -> list[Any]:
    return list(llm.driver.drivers)


def runners_of(llm: LLM) -> list[Any]:
    return [driver.engine.runner for driver in drivers_of(llm)]


def idle(llm: LLM) -> bool:
    for driver in drivers_of(llm):
        driver.engine.check_idle()
    return not any(d.engine.has_work or d.expected or d._answers for d in drivers_of(llm))


def taken_over(llm: LLM) -> list[int]:
    return [driver.engine.stats.taken_over for driver in drivers_of(llm)]


def told(answer: Completion | None) -> Completion:
    """What does not depend on who computed it, or when."""
    assert answer is not None
    usage = replace(
        answer.usage,
        prefill_s=0,
        decode_s=0,
        cost=NOTHING,
        cached_tokens=0,
        drafted_tokens=0,
        accepted_tokens=0,
    )
    return replace(answer, usage=usage, choices=tuple(map(told, answer.choices)))


@pytest.mark.parametrize("params", ASKED.values(), ids=ASKED.keys())
def test_answers_of_a_lost_replica_are_those_of_an_undisturbed_one(
    made: Made, params: SamplingParams
) -> None:
    expected = [told(each) for each in made(replicas=1).generate(PROMPTS, params)]
    for speculate in ("off", "text"):
        llm = made(speculate=speculate)
        loss = Loss(runners_of(llm)[0], after=9)
        assert [told(each) for each in llm.generate(PROMPTS, params)] == expected
        assert taken_over(llm)[0] == 0 < taken_over(llm)[1]
        assert loss.attempts == 1  # and no other of its answers waited for it again
        assert idle(llm)


def test_a_format_holds_across_the_loss(made: Made) -> None:
    say = [{"role": "user", "content": "x" * 40}]
    form = Format("json_schema", SCHEMA)
    params = replace(SEEDED, max_tokens=60, ignore_eos=False)
    expected = told(made(replicas=1).chat(say, params, format=form))
    assert expected.text.startswith('{"a":')
    for after in (3, 12):
        llm = made(speculate="text")
        Loss(runners_of(llm)[0], after=after)
        assert told(llm.chat(say, params, format=form)) == expected
        assert taken_over(llm) == [0, 1]


def test_a_stream_goes_on_without_a_token_twice(made: Made) -> None:
    expected = list(made(replicas=1).stream("ef" * 40, SEEDED))
    for after in range(5):
        llm = made()
        Loss(runners_of(llm)[0], after=after)
        chunks = list(llm.stream("ef" * 40, SEEDED))
        assert [(each.text, each.token_id, each.logprobs) for each in chunks] == [
            (each.text, each.token_id, each.logprobs) for each in expected
        ]
        assert chunks[-1].completion is not None
        assert taken_over(llm) == [0, 1] and idle(llm)


def test_a_stream_that_is_closed_after_the_loss_leaves_nothing(made: Made) -> None:
    llm = made()
    Loss(runners_of(llm)[0], after=4)
    chunks = llm.stream("b", SEEDED)
    for _ in range(8):
        next(chunks)
    assert drivers_of(llm)[1].engine.has_work
    chunks.close()
    assert idle(llm)


def test_vectors_come_from_another_replica(made: Made) -> None:
    texts = [letter * 90 for letter in "abcdefghijklmnopqrstuvwxyz"]
    expected = [each.vector.tolist() for each in made(replicas=1).embed(texts)]
    llm = made()
    Loss(runners_of(llm)[0], after=1)
    assert [each.vector.tolist() for each in llm.embed(texts)] == expected
    assert taken_over(llm)[1] > 0 and idle(llm)


def test_coroutines_get_the_rest_from_another_replica_and_who_leaves_leaves_nothing(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    expected = [told(each) for each in made(replicas=1).generate(PROMPTS, SEEDED)]
    llm, left = made(), made()
    Loss(runners_of(llm)[0], after=6)
    Loss(runners_of(left)[0], after=6)

    async def main() -> None:
        async with AsyncLLM(llm) as wrapped:
            answers = await wrapped.generate(PROMPTS, SEEDED)
        assert [told(each) for each in answers] == expected
        assert taken_over(llm)[1] > 1 and idle(llm)
        async with AsyncLLM(left) as wrapped:
            stream = wrapped.stream("b", replace(SEEDED, max_tokens=150))
            for _ in range(20):
                await anext(stream)
            await stream.aclose()
            for _ in range(500):
                if idle(left):
                    break
                await asyncio.sleep(0.01)
            assert taken_over(left) == [0, 1] and idle(left)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert drivers_of(left)[1].engine.stats.output_tokens < 140


def test_without_another_the_error_is_that_of_the_loss_and_a_mended_one_serves_again(
    made: Made,
) -> None:
    llm = made()
    losses = [Loss(runner, after=6) for runner in runners_of(llm)]
    with pytest.raises(ClusterError, match="No node has room"):
        llm.generate(PROMPTS, SEEDED)
    assert idle(llm)
    with pytest.raises(ClusterError):
        llm.generate("b", SEEDED)
    losses[1].found()
    drivers_of(llm)[1].mend()
    assert llm.generate("b", SEEDED)[0].text
    assert idle(llm)


def test_one_that_was_lost_and_mended_takes_over_from_the_other(made: Made) -> None:
    expected = told(made(replicas=1).generate("b", SEEDED)[0])
    llm = made()
    first, second = (Loss(runner, after=5) for runner in runners_of(llm))
    chunks = llm.stream("b", SEEDED)
    for _ in range(7):
        next(chunks)
    assert taken_over(llm) == [0, 1]
    first.found()
    drivers_of(llm)[0].mend()
    assert told(list(chunks)[-1].completion) == expected
    assert second.attempts == 1
    assert taken_over(llm) == [1, 1] and idle(llm)


class Poisoned:
    """Runners whose passes with a q fail, and not as a model's pass does."""

    def __init__(self, llm: LLM) -> None:
        self.strikes = 0
        for runner in runners_of(llm):
            self._poison(runner)

    def _poison(self, runner: Any) -> None:
        begin = runner.begin

        def check(batch: Any) -> None:
            if ord("q") in batch.tokens:
                self.strikes += 1
                raise ValueError("a q")
            begin(batch)

        runner.begin = check


def test_what_fails_replica_after_replica_is_stopped_and_takes_few_with_it(made: Made) -> None:
    params = replace(SEEDED, logit_bias={ord("q"): -100})
    alone = made(replicas=1)
    expected = [told(each) for each in alone.generate(PROMPTS, params)]
    llm = made(replicas=4)
    poison = Poisoned(llm)
    streams = [llm.stream(prompt, params) for prompt in PROMPTS]
    for stream in streams:
        next(stream)
    with pytest.raises(ValueError, match="a q"):
        llm.generate("q", params)
    assert poison.strikes == 1 + MOST_MOVES
    assert [told(list(stream)[-1].completion) for stream in streams] == expected
    assert idle(llm)
