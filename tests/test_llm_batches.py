"""Several chats in one batch, how far they are, and the end of an LLM."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from fake_model import ScriptModel, alphabet, loaded, reply

import dure.llm
import dure.progress
from dure import LLM, ChatRequest, InvalidRequestError, SamplingParams
from dure.driver import Driver

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def model() -> ScriptModel:
    return ScriptModel(reply("fine"))


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, model: ScriptModel) -> LLM:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model))
    return LLM("fake")


def test_a_list_of_chats_is_answered_in_one_batch(llm: LLM, model: ScriptModel) -> None:
    several = llm.chat([HI, ChatRequest(HI), HI], SamplingParams(max_tokens=3))
    assert [each.content for each in several] == ["fin"] * 3
    assert max(len({*batch.sequences.tolist()}) for batch in model.batches) == 3
    assert llm.chat([HI])[0].content == llm.chat(HI).content == "fine"


def test_each_chat_may_have_parameters_of_its_own(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
    assert [each.content for each in llm.chat([HI, HI], params)] == ["f", "fi"]


def test_progress_counts_whole_answers(llm: LLM) -> None:
    seen: list[tuple[int, int]] = []
    params = [SamplingParams(max_tokens=3), SamplingParams(max_tokens=1, n=2)]
    llm.generate(["a", "b"], params, progress=lambda *each: seen.append(each))
    assert seen[0] == (0, 2)
    assert seen[-1] == (2, 2)
    assert sorted(set(seen)) == seen


def test_progress_off_a_terminal_is_one_line_at_the_end(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.chat([HI, HI], progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("2 of 2 answers, ")
    assert said.err.count("\n") == 1


def test_progress_on_a_terminal_redraws_one_line(
    llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(dure.progress, "REDRAW_S", 0)
    llm.generate(["a", "b"], SamplingParams(max_tokens=1), progress=True)
    err = capsys.readouterr().err
    assert err.count("\r\x1b[K") >= 2
    assert err.count("\n") == 1 and err.endswith("\n")


def test_a_model_that_is_closed_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(alphabet)))
    with LLM("fake") as llm:
        freed = weakref.ref(llm.model)
        open_stream = llm.stream("a")
        next(open_stream)
        assert freed() is not None
    del open_stream
    gc.collect()
    assert freed() is None
    assert llm.name == "fake"


def test_closing_ends_answers_of_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(alphabet)))
    llm = LLM("fake")
    begun, closed, said = threading.Event(), threading.Event(), []

    def talk() -> None:
        try:
            for _ in llm.stream("a", SamplingParams(max_tokens=200, ignore_eos=True)):
                begun.set()
                closed.wait(30)
        except InvalidRequestError as error:
            said.append(error.message)

    thread = threading.Thread(target=talk)
    thread.start()
    assert begun.wait(30)
    llm.close()
    closed.set()
    thread.join(30)
    assert said == ["The model was closed."]


def test_the_last_chunk_is_there_before_an_answer_is_over(llm: LLM) -> None:
    """Else a stream that another thread reads could end without it."""
    there: list[int] = []
    driver = Driver(
        llm.engine, llm.tokenizer, on_complete=lambda *_: there.append(len(answer.chunks))
    )
    with driver.lock:
        [answer] = driver.begin(llm.prepare("a", SamplingParams(max_tokens=3)))
        while not answer.is_over:
            driver.step()
    assert there == [len(answer.chunks)]
