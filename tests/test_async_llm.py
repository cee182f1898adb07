"""AsyncLLM: coroutines share batches, cancelling ends a request, and an end frees the model."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from fake_model import ScriptModel, alphabet, loaded, reply

import dure.llm
from dure import LLM, AsyncLLM, Chunk, InvalidRequestError, ModelNotFoundError, SamplingParams
from dure.batch import Batch
from dure.engine.engine import Engine
from dure.pooling.config import PoolingConfig, RankConfig

T = TypeVar("T")
HI = [{"role": "user", "content": "hi"}]
ENDLESS = SamplingParams(max_tokens=200, ignore_eos=True)


class Model(ScriptModel):
    """A model that can be told to wait, or to fail, at its next step."""

    def __init__(self, script: Any = alphabet) -> None:
        super().__init__(script)
        self.before_step: Callable[[], None] = lambda: None

    def forward(self, batch: Batch, cache: Any) -> np.ndarray:
        self.before_step()
        return super().forward(batch, cache)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, model: Model) -> LLM:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, num_blocks=256))
    return LLM("fake")


def run(
    llm: LLM, use: Callable[[AsyncLLM], Awaitable[T]], *, ends: Callable[[LLM], bool] | None = None
) -> T:
    """Use an AsyncLLM of the LLM in a loop of its own; the engine is idle at the end."""

    async def main() -> T:
        async with AsyncLLM(llm) as wrapped:
            result = await use(wrapped)
            for _ in range(500):
                if not llm.engine.has_work:
                    break
                await asyncio.sleep(0.01)
            assert not llm.engine.has_work
            return result

    result = asyncio.run(asyncio.wait_for(main(), 30))
    llm.engine.check_idle()
    return result


def test_answers_are_those_of_an_llm(llm: LLM) -> None:
    async def use(wrapped: AsyncLLM) -> None:
        several = await wrapped.generate(["uvw", "m"], [SamplingParams(), SamplingParams(n=2)])
        assert [each.text for each in several] == ["xyz", "nopqrstuvwxyz"]
        assert len(several[1].choices) == 2
        [single] = await wrapped.generate("x")
        assert single.text == "yz"
        assert [each.text async for each in wrapped.stream("v")] == ["w", "x", "y", "z", ""]
        [there] = await wrapped.embed("ab")
        assert there.vector.tolist() == llm.embed("ab")[0].vector.tolist()

    run(llm, use)


def test_a_chat_gives_one_answer_and_a_list_of_chats_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(Model(reply("ok"))))
    llm = LLM("fake")

    async def use(wrapped: AsyncLLM) -> None:
        assert (await wrapped.chat(HI)).content == "ok"
        both = await wrapped.chat([HI, HI])
        assert [each.content for each in both] == ["ok", "ok"]
        chunks = [each async for each in wrapped.stream(HI)]
        assert chunks[-1].completion is not None
        assert chunks[-1].completion.content == "ok"

    run(llm, use)


def test_many_at_once_share_a_batch(llm: LLM, model: Model) -> None:
    async def use(wrapped: AsyncLLM) -> list[str]:
        asked = [wrapped.generate(letter, ENDLESS) for letter in "abcdefghijklmnop"]
        return [answer.text[0] for [answer] in await asyncio.gather(*asked)]

    model.batches.clear()
    assert run(llm, use) == list("bcdefghijklmnopq")
    assert max(len({*batch.sequences.tolist()}) for batch in model.batches) == 16
    assert len(model.batches) < 16 * 200 / 4


def test_cancelling_ends_the_request_and_no_other(llm: LLM) -> None:
    async def use(wrapped: AsyncLLM) -> str:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in wrapped.stream("a", ENDLESS):
                begun.set()

        reading = asyncio.create_task(read())
        waiting = asyncio.create_task(wrapped.generate("c", ENDLESS))
        other = asyncio.create_task(wrapped.generate("x"))
        await begun.wait()
        for task in (reading, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return (await other)[0].text

    assert run(llm, use) == "yz"


def test_leaving_a_stream_ends_its_request(llm: LLM) -> None:
    async def use(wrapped: AsyncLLM) -> Chunk:
        async for chunk in wrapped.stream("a", ENDLESS):
            return chunk
        raise AssertionError

    assert run(llm, use).text == "b"


def test_a_timeout_ends_the_request(llm: LLM, model: Model) -> None:
    going = threading.Event()
    model.before_step = lambda: going.wait(0.05) and None

    async def use(wrapped: AsyncLLM) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrapped.generate("a", ENDLESS), 0.2)
        going.set()

    run(llm, use)


def test_what_a_request_fails_with_is_raised_where_it_is_awaited(llm: LLM, model: Model) -> None:
    def fail() -> None:
        raise RuntimeError("a broken step")

    async def use(wrapped: AsyncLLM) -> str:
        with pytest.raises(InvalidRequestError, match="The prompt is empty"):
            await wrapped.generate("")
        with pytest.raises(InvalidRequestError, match="n is 2"):
            await anext(wrapped.stream("a", SamplingParams(n=2)))
        model.before_step = fail
        with pytest.raises(RuntimeError, match="a broken step"):
            await wrapped.generate("a")
        model.before_step = lambda: None
        return (await wrapped.generate("x"))[0].text

    assert run(llm, use) == "yz"


class Panic(BaseException):
    """As Rust's come to Python: no Exception."""


def test_a_panic_as_a_request_begins_fails_it_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.add

    def add(engine: Engine, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
        if ord("!") in prompt_ids:
            raise Panic
        return real(engine, prompt_ids, *rest, **options)

    monkeypatch.setattr(Engine, "add", add)

    async def use(wrapped: AsyncLLM) -> list[str]:
        running = wrapped.stream("a", ENDLESS)
        first = await anext(running)
        with llm.driver.lock:  # so that all of them are in one turn
            tasks = [asyncio.create_task(wrapped.generate(each)) for each in ("!", "x", "w")]
            await inbox_of(wrapped, 3)
        with pytest.raises(RuntimeError, match="a panic"):
            await tasks[0]
        said = [first.text, (await anext(running)).text]
        await running.aclose()
        return [*said, *[(await task)[0].text for task in tasks[1:]]]

    assert run(llm, use) == ["b", "c", "yz", "xyz"]


def test_an_answer_that_cannot_be_given_up_keeps_no_other_from_its_turn(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = Engine.finish, threading.Event()

    def broken(engine: Engine, request_id: str, *, reason: Any = "stop") -> None:
        real(engine, request_id, reason=reason)
        if reason == "abort" and not failed.is_set():
            failed.set()
            raise RuntimeError("it cannot be given up")

    monkeypatch.setattr(Engine, "finish", broken)

    async def use(wrapped: AsyncLLM) -> str:
        running = wrapped.stream("a", ENDLESS)
        await anext(running)
        with llm.driver.lock:
            await running.aclose()
            task = asyncio.create_task(wrapped.generate("x"))
            await inbox_of(wrapped, 2)
        return (await task)[0].text

    assert run(llm, use) == "yz"
    assert failed.is_set()


async def inbox_of(wrapped: AsyncLLM, count: int) -> None:
    """Wait until so much was asked of its thread, or the thread has taken some of it."""
    [driver] = wrapped._computing._each.values()
    for _ in range(20):
        if len(driver._inbox) >= count:
            return
        await asyncio.sleep(0.01)


def test_threads_and_coroutines_use_one_llm_at_once(llm: LLM) -> None:
    async def use(wrapped: AsyncLLM) -> list[str]:
        by_thread = asyncio.to_thread(lambda: llm.generate("a", ENDLESS)[0].text[:2])
        answers = await asyncio.gather(by_thread, wrapped.generate("c", ENDLESS))
        return [answers[0], answers[1][0].text[:2]]

    assert run(llm, use) == ["bc", "de"]


def test_loops_of_several_threads_use_one_at_once(llm: LLM) -> None:
    wrapped = AsyncLLM(llm)
    said: dict[str, str] = {}

    def ask(letter: str) -> None:
        said[letter] = asyncio.run(wrapped.generate(letter))[0].text[:1]

    threads = [threading.Thread(target=ask, args=[letter]) for letter in "amx"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said == {"a": "b", "m": "n", "x": "y"}
    asyncio.run(wrapped.close())


def test_closing_ends_what_runs_and_closes_a_model_of_its_own(
    monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    made: list[weakref.ref[LLM]] = []

    def load(*_: Any, **__: Any) -> Any:
        return loaded(model)

    monkeypatch.setattr(dure.llm, "load", load)

    async def main() -> None:
        async with AsyncLLM("fake", threads=1) as wrapped:
            made.append(weakref.ref(await wrapped.load()))
            begun = asyncio.Event()
            model.before_step = lambda: None

            async def read() -> None:
                async for _ in wrapped.stream("a", ENDLESS):
                    begun.set()

            reading = asyncio.create_task(read())
            await begun.wait()
            await wrapped.close()
            with pytest.raises(InvalidRequestError, match="closed"):
                await reading
        with pytest.raises(InvalidRequestError, match="closed"):
            await wrapped.chat(HI)

    asyncio.run(asyncio.wait_for(main(), 30))
    gc.collect()
    assert made[0]() is None


def test_an_llm_that_was_given_is_not_closed(llm: LLM) -> None:
    async def use(wrapped: AsyncLLM) -> None:
        await wrapped.generate("a")

    run(llm, use)
    assert llm.generate("x")[0].text == "yz"


def test_the_thread_ends_with_what_was_made(llm: LLM) -> None:
    def engines() -> int:
        return sum(thread.name == "dure engine" for thread in threading.enumerate())

    before = engines()
    wrapped = AsyncLLM(llm)
    asyncio.run(wrapped.generate("a"))
    assert engines() == before + 1
    del wrapped
    gc.collect()
    assert engines() == before


def test_a_model_that_cannot_be_loaded_says_so_at_the_first_call_and_again() -> None:
    async def main() -> None:
        wrapped = AsyncLLM("no-such-model-anywhere.gguf")
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                await wrapped.generate("a")

    asyncio.run(main())


def test_documents_are_ranked(llm: LLM) -> None:
    llm.pooling = PoolingConfig("x", rank=RankConfig("{query}{document}", "", 1, 2))

    async def use(wrapped: AsyncLLM) -> list[int]:
        return [each.index for each in await wrapped.rank("q", ["a", "b"], top_n=1)]

    assert run(llm, use) == [0]
