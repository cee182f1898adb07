"""Several engines over one model, used as one: the same answers, and who computes them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_model import ScriptModel, SharedModel, loaded

import dure.llm
from dure import LLM, AsyncLLM, InvalidRequestError, SamplingParams
from dure.batch import Batch
from dure.replicas import Replicas

PROMPTS = [text * count for text in ("b", "ef", "klm") for count in (1, 30, 50)]
SHORT = SamplingParams(max_tokens=8, ignore_eos=True)
TWO = SamplingParams(max_tokens=4, ignore_eos=True, n=2)
ENDLESS = SamplingParams(max_tokens=100, ignore_eos=True)
Made = Callable[..., LLM]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    def make(model: ScriptModel | None = None, **options: Any) -> LLM:
        shared = SharedModel() if model is None else model
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(shared))
        return LLM("fake", speculate="off", **options)

    return make


def engines_of(llm: LLM) -> list[Any]:
    return [driver.engine for driver in llm.driver.drivers]


def idle(llm: LLM) -> bool:
    for engine in engines_of(llm):
        engine.check_idle()
    return not any(engine.has_work for engine in engines_of(llm)) and not any(
        driver.expected for driver in llm.driver.drivers
    )


def test_answers_are_those_of_one_and_all_replicas_give_some(made: Made) -> None:
    one, three = made(), made(replicas=3)
    done: list[tuple[int, int]] = []
    expected = one.generate(PROMPTS, SHORT)
    answers = three.generate(PROMPTS, SHORT, progress=lambda *at: done.append(at))
    assert [each.token_ids for each in answers] == [each.token_ids for each in expected]
    assert done[0] == (0, 9) and done[-1] == (9, 9)
    assert all(engine.stats.finished for engine in engines_of(three))
    several = three.generate(PROMPTS[:2], TWO)
    assert [len(each.choices) for each in several] == [2, 2]
    assert idle(three)


def test_a_chat_that_goes_on_finds_what_is_cached(made: Made) -> None:
    llm = made(replicas=3)
    say = [{"role": "user", "content": "x" * 100}]
    first = llm.chat(say, SHORT)
    for _ in range(4):
        say += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "y"}]
        answer = llm.chat(say, SHORT)
        assert answer.cached_tokens > 100
    assert sorted(engine.stats.finished for engine in engines_of(llm)) == [0, 0, 5]


def test_a_stream_and_its_end_and_vectors(made: Made) -> None:
    llm = made(replicas=2)
    chunks = llm.stream("b", SHORT)
    begun = next(chunks)
    assert begun.text == "c"
    chunks.close()
    assert idle(llm)
    assert "".join(each.text for each in llm.stream("b", SHORT)) == "cdefghij"
    assert [each.prompt_tokens for each in llm.embed(["a", "bc"])] == [1, 2]
    assert idle(llm)


def test_threads_at_once_get_their_own_answers(made: Made) -> None:
    llm, got = made(replicas=2), dict[str, str]()

    def ask(letter: str) -> None:
        got[letter] = llm.generate([letter * 40], SHORT)[0].text

    threads = [threading.Thread(target=ask, args=(each,)) for each in "abcdefgh"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert got == {c: "".join(chr(ord(c) + i) for i in range(1, 9)) for c in "abcdefgh"}
    assert idle(llm)


def test_coroutines_share_the_replicas_and_one_that_is_cancelled_ends(made: Made) -> None:
    llm = made(SharedModel(lambda _: "y"), replicas=2)

    async def main() -> None:
        async with AsyncLLM(llm) as wrapped:
            some = await wrapped.generate(PROMPTS, SHORT)
            assert [each.text for each in some] == ["y" * 8] * len(PROMPTS)
            endless = asyncio.create_task(wrapped.generate(PROMPTS, ENDLESS))
            stream = wrapped.stream("a", ENDLESS)
            await anext(stream)
            endless.cancel()
            await stream.aclose()
            with pytest.raises(asyncio.CancelledError):
                await endless
            assert len(await wrapped.embed(["a"])) == 1
            for _ in range(500):
                if idle(llm):
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("requests are left")

    asyncio.run(asyncio.wait_for(main(), 60))
    assert all(engine.stats.finished for engine in engines_of(llm))


class Failing(SharedModel):
    """A model whose passes with a q raise."""

    def forward(self, batch: Batch, cache: Any) -> Any:
        if ord("q") in batch.tokens:
            raise ValueError("a q")
        return super().forward(batch, cache)


def test_one_that_fails_or_does_not_fit_leaves_nothing_behind(made: Made) -> None:
    llm = made(Failing(), replicas=2)
    with pytest.raises(ValueError, match="a q"):
        llm.generate(["b" * 50, "q", "c"], SHORT)
    with pytest.raises(InvalidRequestError):
        llm.generate([["b"] * 5], SHORT)  # type: ignore[list-item]
    assert idle(llm)


def test_a_closed_one_refuses_and_a_wrong_number_is_told(made: Made) -> None:
    llm = made(replicas=2)
    assert isinstance(llm.driver, Replicas)
    llm.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        llm.generate("a")
    for wrong in (0, 65, 1.5, True, "2"):
        with pytest.raises(InvalidRequestError, match="replicas"):
            made(replicas=wrong)
