"""The Python API, over the real engine and a model that says what the test wants."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fake_model import ByteTokenizer, ScriptModel, alphabet, loaded, reply

import dure.llm
from dure import LLM, SamplingParams
from dure.batch import PassInterruptedError
from dure.chat.template import CHATML
from dure.errors import (
    ContextLengthError,
    InvalidRequestError,
    NotEnoughMemoryError,
    TemplateError,
)

THINKING_TEMPLATE = CHATML + (
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]

MakeLLM = Callable[..., LLM]


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLLM]:
    """A function from a script, with options of fake_model.loaded, to an LLM; idle at the end."""
    made: list[LLM] = []

    def make(script: Any = alphabet, **options: Any) -> LLM:
        model = script if isinstance(script, ScriptModel) else ScriptModel(script)
        monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(model, **options))
        made.append(LLM("fake"))
        return made[-1]

    yield make
    for llm in made:
        assert not llm.engine.has_work
        llm.engine.check_idle()


def test_generate_answers_every_prompt_in_order(make_llm: MakeLLM) -> None:
    first, second, third = make_llm().generate(["uvw", "m", [ord("y")]])
    assert (first.text, first.finish_reason) == ("xyz", "stop")
    assert second.text == "nopqrstuvwxyz"
    assert third.text == "z"
    assert [each.prompt_tokens for each in (first, second, third)] == [3, 1, 1]


def test_generate_takes_one_set_of_parameters_a_prompt(make_llm: MakeLLM) -> None:
    llm = make_llm()
    short, long = llm.generate(
        ["a", "a"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)]
    )
    assert (short.text, short.finish_reason) == ("bc", "length")
    assert (long.text, long.finish_reason) == ("bcd", "length")
    with pytest.raises(InvalidRequestError, match="2 prompts and 1 sets"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_the_text_ends_before_a_stop_string_and_the_request_ends_with_it(make_llm: MakeLLM) -> None:
    llm = make_llm()
    [completion] = llm.generate("a", SamplingParams(stop=["fgh", "xx"]))
    assert (completion.text, completion.finish_reason) == ("bcde", "stop")
    assert ByteTokenizer().decode(completion.token_ids) == "bcdefgh"


def test_a_stop_token_of_ordinary_text_is_not_in_the_text(make_llm: MakeLLM) -> None:
    [completion] = make_llm().generate("a", SamplingParams(stop_token_ids=[ord("e")]))
    assert (completion.text, completion.finish_reason) == ("bcd", "stop")


def test_a_stream_brings_the_text_in_pieces_and_the_completion_last(make_llm: MakeLLM) -> None:
    chunks = list(make_llm().stream("v", SamplingParams()))
    assert [chunk.text for chunk in chunks] == ["w", "x", "y", "z", ""]
    assert [chunk.completion for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.text == "wxyz"


def test_closing_a_stream_ends_its_request(make_llm: MakeLLM) -> None:
    llm = make_llm()
    stream = llm.stream("a")
    next(stream)
    assert llm.engine.has_work
    stream.close()
    assert not llm.engine.has_work


def test_streams_may_be_read_in_turns(make_llm: MakeLLM) -> None:
    llm = make_llm()
    pairs = zip(llm.stream("abc"), llm.stream("m"), strict=False)
    left, right = zip(*[(one.text, other.text) for one, other in pairs], strict=True)
    assert "defghijklmnopqrstuvwxyz".startswith("".join(left))
    assert "".join(right) == "nopqrstuvwxyz"


def test_threads_share_a_model(make_llm: MakeLLM) -> None:
    llm = make_llm()
    texts: dict[str, str] = {}

    def ask(prompt: str) -> None:
        texts[prompt] = llm.generate(prompt)[0].text

    threads = [threading.Thread(target=ask, args=[prompt]) for prompt in "ahqv"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert {prompt: letters[letters.index(prompt) + 1 :] for prompt in "ahqv"} == texts


def test_prefill_progress_counts_the_prompt(make_llm: MakeLLM) -> None:
    llm = make_llm(ScriptModel(context_length=2048), context=2048)
    seen: list[tuple[int, int]] = []
    stream = llm.stream(
        "a" * 1300, SamplingParams(max_tokens=1), on_prefill=lambda *at: seen.append(at)
    )
    list(stream)
    assert seen == [(0, 1300), (512, 1300), (1024, 1300)]


def test_several_choices_come_with_the_first(make_llm: MakeLLM) -> None:
    def even(text: str) -> str | None:
        return None if len(text) > 20 else "a"

    llm = make_llm(even)
    params = SamplingParams(n=3, temperature=50.0, seed=5, max_tokens=8)
    several = llm.generate("q", params)[0]
    alone = llm.generate("q", SamplingParams(temperature=50.0, seed=5, max_tokens=8))[0]
    assert len(several.choices) == 3
    assert alone.token_ids == several.token_ids == several.choices[0].token_ids
    assert len({choice.token_ids for choice in several.choices}) == 3


def test_the_models_own_sampling_defaults_hold_where_nothing_is_said(make_llm: MakeLLM) -> None:
    def level(_text: str) -> str:
        return "k"

    model = ScriptModel(level)
    llm = make_llm(model, sampling={"temperature": 100.0, "top_k": 1})
    assert llm.generate("a", SamplingParams(max_tokens=8))[0].text == "kkkkkkkk"
    wild = llm.generate("a", SamplingParams(max_tokens=8, top_k=0, seed=1))[0]
    assert wild.text != "kkkkkkkk"


def test_there_is_a_logprob_a_token(make_llm: MakeLLM) -> None:
    [completion] = make_llm().generate("w", SamplingParams(logprobs=2))
    assert completion.logprobs is not None
    assert list(completion.token_ids) == [each.token_id for each in completion.logprobs if each]
    assert len(completion.logprobs[0].top) == 2  # type: ignore[union-attr]
    assert make_llm().generate("w")[0].logprobs is None


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(make_llm: MakeLLM) -> None:
    llm = make_llm(context=64)
    with pytest.raises(ContextLengthError, match=r"has 100 tokens.*holds 64"):
        llm.generate(["a", "b" * 100])
    with pytest.raises(ContextLengthError, match=r"has 10 tokens and 60 are asked for.*holds 64"):
        llm.stream("b" * 10, SamplingParams(max_tokens=60))  # at once, before the first chunk
    assert llm.engine.stats.steps == 0


def test_an_answer_ends_where_the_context_does(make_llm: MakeLLM) -> None:
    [completion] = make_llm(lambda _: "x", context=64).generate("abcd")
    assert (completion.text, completion.finish_reason) == ("x" * 60, "length")
    # as of a preset's num_predict, which nobody asked for in this request
    llm = make_llm(lambda _: "x", context=64, sampling={"max_tokens": 62})
    assert [len(made.text) for made in llm.generate(["a", "abcd"])] == [62, 60]


@pytest.mark.parametrize("prompt", ["", [], [300], [-1]])
def test_a_prompt_of_no_or_unknown_tokens_is_refused(make_llm: MakeLLM, prompt: Any) -> None:
    with pytest.raises(InvalidRequestError):
        make_llm().generate([prompt])


def test_a_bare_list_of_numbers_is_not_taken_for_prompts(make_llm: MakeLLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"not 1 \(int\)"):
        make_llm().generate([1, 2, 3])  # type: ignore[list-item]


def test_chat_writes_the_messages_by_the_template(make_llm: MakeLLM) -> None:
    heard: list[str] = []

    def listen(text: str) -> str | None:
        heard.append(text)
        return None

    completion = make_llm(listen).chat([{"role": "system", "content": "be kind"}, *HELLO])
    assert completion.text == ""
    assert heard == [
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    ]


def test_a_second_turn_computes_only_what_is_new(make_llm: MakeLLM) -> None:
    llm = make_llm(reply("good day to you, and to all of your house"))
    first = llm.chat(HELLO)
    assert first.cached_tokens == 0
    messages = [*HELLO, {"role": "assistant", "content": first.text}]
    second = llm.chat([*messages, {"role": "user", "content": "and?"}])
    # All of the first prompt and its answer: the last token put out is not itself in the cache.
    assert first.prompt_tokens + len(first.token_ids) - 1 == second.cached_tokens
    assert second.prompt_tokens - second.cached_tokens < first.prompt_tokens + 20


def test_a_model_without_a_template_does_not_chat(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.assembly.default_template", lambda _: None)
    with pytest.raises(TemplateError, match="no chat template"):
        make_llm(template=None).chat(HELLO)


def test_thinking_is_switched_in_the_template(make_llm: MakeLLM) -> None:
    llm = make_llm(reply("hm"), template=THINKING_TEMPLATE)
    assert llm.chat_prompt(HELLO, think=False).endswith("<think>\n\n</think>\n\n")
    assert llm.chat_prompt(HELLO, think=True).endswith("assistant\n")


@pytest.mark.parametrize("think", [True, False, 100])
def test_a_wish_about_thinking_is_never_silently_dropped(make_llm: MakeLLM, think: Any) -> None:
    with pytest.raises(TemplateError, match="no switch for thinking"):
        make_llm().chat(HELLO, think=think)
    with pytest.raises(InvalidRequestError, match="plain text"):
        make_llm().stream("hello", think=think)


def ponder(text: str) -> str | None:
    """Thinks for ever; once made to stop, answers 42."""
    said = text.rpartition("<|im_start|>assistant\n")[2]
    if "</think>" in said:
        answer = said.rpartition("</think>\n\n")[2]
        return {"": "4", "4": "2"}.get(answer)
    opening = "<think>"
    return opening[len(said)] if len(said) < len(opening) else "h"


@pytest.mark.parametrize("limit", [0, 1, 9, 40])
def test_a_model_whose_thinking_is_capped_still_answers(make_llm: MakeLLM, limit: int) -> None:
    llm = make_llm(ponder, template=THINKING_TEMPLATE)
    chunks = list(llm.stream(HELLO, SamplingParams(logprobs=0), think=limit))
    completion = chunks[-1].completion
    assert completion is not None
    thoughts = "h" * limit
    assert f"<think>{thoughts}\n</think>\n\n42" == completion.text
    assert (completion.reasoning, completion.content) == (thoughts, "42")
    assert completion.text == "".join(chunk.text for chunk in chunks)
    assert completion.finish_reason == "stop"
    assert completion.logprobs is not None
    assert len(completion.token_ids) == len(completion.logprobs)
    assert len("\n</think>\n\n") == completion.logprobs.count(None)


def test_thinking_that_ends_by_itself_is_left_alone(make_llm: MakeLLM) -> None:
    words = "<think>so</think>Seoul is the capital of Korea."
    completion = make_llm(reply(words), template=THINKING_TEMPLATE).chat(HELLO, think=14)
    assert words == completion.text


def test_a_model_that_does_not_think_is_not_cut(make_llm: MakeLLM) -> None:
    words = "Seoul is the capital of Korea."
    completion = make_llm(reply(words), template=THINKING_TEMPLATE).chat(HELLO, think=3)
    assert words == completion.text


def test_logits_are_those_of_every_token(make_llm: MakeLLM) -> None:
    logits = make_llm().logits(list(b"abcz" * 75))
    assert logits.shape == (300, 259)
    assert np.float32 == logits.dtype
    assert [ord("b"), ord("c"), ord("d"), 257] == logits[-4:].argmax(axis=1).tolist()


def test_logits_that_do_not_fit_in_memory_are_refused(
    make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.machine.memory_available", lambda: 259 * 4 * 10)
    with pytest.raises(NotEnoughMemoryError) as caught:
        make_llm().logits([1] * 11)
    assert "10 tokens or fewer" in caught.value.hint


def test_ctrl_c_waits_for_the_end_of_a_step_and_leaves_the_model_usable(make_llm: MakeLLM) -> None:
    after: list[str] = []

    def interrupt(text: str) -> str | None:
        if text.endswith("c"):
            os.kill(os.getpid(), signal.SIGINT)
            after.append("the step went on")
        return alphabet(text)

    llm = make_llm(interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("a")
    assert after == ["the step went on"]
    assert not llm.engine.has_work
    assert llm.generate("t")[0].text == "uvwxyz"


def test_a_ctrl_c_that_is_ignored_changes_no_answer(make_llm: MakeLLM) -> None:
    def interrupt(text: str) -> str | None:
        signal.raise_signal(signal.SIGINT)
        return alphabet(text)

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert make_llm(interrupt).generate("t")[0].text == "uvwxyz"
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_an_error_of_the_model_reaches_the_caller_and_not_the_next_one(make_llm: MakeLLM) -> None:
    def fail(text: str) -> str | None:
        if text.endswith("c"):
            raise ZeroDivisionError("a kernel went wrong")
        return alphabet(text)

    llm = make_llm(fail)
    with pytest.raises(ZeroDivisionError):
        llm.generate("a")
    with pytest.raises(ZeroDivisionError):
        list(llm.stream("a"))
    assert llm.generate("t")[0].text == "uvwxyz"


def test_timings_add_up(make_llm: MakeLLM) -> None:
    timings = make_llm().generate("a")[0].timings
    assert timings.prefill_s > 0
    assert timings.decode_s > 0
    assert pytest.approx(1 / timings.prefill_s) == timings.prefill_tps
    assert pytest.approx(25 / timings.decode_s) == timings.decode_tps


def test_ctrl_c_gives_a_long_prompt_up_between_two_layers(make_llm: MakeLLM) -> None:
    """A pass of 512 rows takes seconds on a large model, and nobody waits that long."""
    llm = make_llm()
    pressed: list[int] = []
    original = llm.engine.runner.execute

    def press(batch: Any) -> Any:
        if not pressed:
            pressed.append(len(batch.tokens))
            signal.raise_signal(signal.SIGINT)
            assert batch.interrupted is not None
            assert batch.interrupted()  # a real model asks this before each layer
            raise PassInterruptedError
        return original(batch)

    llm.engine.runner.execute = press
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Once upon a time"], SamplingParams(max_tokens=3))
    assert not llm.engine.has_work
    assert llm.generate(["Once upon a time"], SamplingParams(max_tokens=3))[0].text


@pytest.mark.parametrize("name", ["question", "questions", "begin", "step", "abandon", "lock"])
def test_names_of_before_are_told_and_still_there(make_llm: MakeLLM, name: str) -> None:
    llm = make_llm()
    with pytest.warns(DeprecationWarning, match=f"LLM.{name} is LLM"):
        assert getattr(llm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llm.nonsense


def test_the_chat_of_before_is_told_and_still_there() -> None:
    import dure.chat  # noqa: PLC0415

    with pytest.warns(DeprecationWarning, match="Import Format from dure"):
        assert dure.chat.Format("json_object").kind == "json_object"
