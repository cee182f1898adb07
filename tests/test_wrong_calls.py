"""Wrong calls of the Python API: each is answered by one sentence and a hint that says what to do.

A table of what people type, by the call. `tests/test_arguments.py` has what else may be passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_model import ScriptModel, loaded, reply

import dure.llm
from dure import (
    LLM,
    AsyncLLM,
    ChatRequest,
    Chunk,
    DureError,
    Format,
    InvalidRequestError,
    Meter,
    Prices,
    SamplingParams,
    Thinking,
    ToolChoice,
    Watts,
)
from dure.errors import CallError

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "a", "parameters": {}}}
NO_JSON = {"type": "function", "function": {"name": "a", "parameters": {"x": object()}}}

Call = Callable[[Any], object]


@pytest.fixture(scope="module")
def llm() -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(reply("ok"))))
        return LLM("fake")


# A wrong call, what its sentence says, and what its hint says.
CALLS: list[tuple[Call, str, str]] = [
    (lambda _: LLM("fake", n_ctx=4096), "LLM has no argument n_ctx", "context"),
    (lambda _: LLM("fake", threds=2), "LLM has no argument threds", "threads"),
    (lambda _: LLM("fake", colour="red"), "no argument colour", "it takes model, threads"),
    (
        lambda _: LLM("fake", temperature=0),
        "temperature",
        "SamplingParams(temperature=…), given to",
    ),
    (lambda _: LLM("fake", 4), "takes 1 argument (model)", "threads=…"),
    (lambda _: LLM(5), "A model is a name or a path", "LLM("),
    (lambda _: LLM("fake", quantize="int4"), "must be one of q8, q6, q4", "q8"),
    (lambda _: LLM("fake", exact="no"), "True or False", "exact=True"),
    (lambda _: LLM("fake", fallback_sampling=[1]), "must be a dictionary", "temperature"),
    (lambda _: LLM("fake", fallback_sampling={"temp": 1}), "no argument temp", "temperature"),
    (lambda _: LLM("fake", fallback_sampling={"top_p": 3}), "top_p must be", "1 turns it off"),
    (lambda _: LLM("fake", meter=5), "meter must be a Meter", "Meter.of_this_machine()"),
    (lambda _: LLM("fake", load_progress="bar"), "must be a function", "lambda"),
    (lambda x: x.generate(), "needs prompts", "prompts=…"),
    (lambda x: x.generate(prompt="a"), "no argument prompt", "prompts"),
    (lambda x: x.generate("a", max_tokens=5), "max_tokens", "SamplingParams(max_tokens=…)"),
    (lambda x: x.generate("a", max_new_tokens=5), "max_new_tokens", "(max_tokens=…)"),
    (lambda x: x.generate("a", {"max_tokens": 5}), "must be a SamplingParams", "max_tokens=64"),
    (lambda x: x.generate("a", SamplingParams), "must be a SamplingParams", "temperature=0"),
    (lambda x: x.generate(""), "The prompt is empty", "send some text"),
    (lambda x: x.generate(["a", ""]), "Of prompt 2: the prompt is empty", "send some text"),
    (lambda x: x.generate([1, 2, 3]), "text or a list of token ids", "[[1, 2, 3]]"),
    (lambda x: x.generate(None), "text or a list of token ids", "list of prompts"),
    (lambda x: x.generate(b"a"), "not bytes", "decode"),
    (lambda x: x.generate(HI), "belongs to a chat", "chat("),
    (lambda x: x.generate([HI]), "belongs to a chat", "chat("),
    (lambda x: x.generate(ChatRequest(HI)), "belongs to a chat", "chat("),
    (lambda x: x.generate(np.int64(3)), "text or a list of token ids", "list of prompts"),
    (lambda x: x.generate(["a", "b"], [SamplingParams()]), "2 prompts and 1 sets", "one for each"),
    (lambda x: x.generate("a", progress="yes"), "progress must be a function", "lambda"),
    (lambda x: x.chat("hi"), "A chat takes messages", "generate()"),
    (lambda x: x.chat(), "needs messages", "messages=…"),
    (lambda x: x.chat([]), "There are no messages", "role"),
    (lambda x: x.chat([HI, []]), "Of chat 2: there are no messages", "role"),
    (lambda x: x.chat([HI, "hi"]), "Of chat 2: a chat takes messages", "role"),
    (lambda x: x.chat(HI[0]), "A chat takes a list of messages", "role"),
    (lambda x: x.chat([("user", "hi")]), "Message 1 must be a dictionary", "role"),
    (lambda x: x.chat([{"role": "me", "content": "hi"}]), "has the role 'me'", "user"),
    (lambda x: x.chat([{"role": "user"}]), "Message 1 has no content", "content"),
    (lambda x: x.chat([{"role": "user", "content": 5}]), "must be text", "content"),
    (lambda x: x.chat(HI, temperature=0), "no argument temperature", "SamplingParams("),
    (lambda x: x.chat(HI, [SamplingParams()]), "must be a SamplingParams", "max_tokens=64"),
    (lambda x: x.chat([HI, HI], [SamplingParams()]), "2 chats and 1 sets", "one for each"),
    (lambda x: x.chat(HI, response_format={}), "no argument response_format", "format"),
    (lambda x: x.chat(HI, format="json"), "format must be a Format", "json_object"),
    (lambda x: x.chat(HI, think="yes"), "think must be True, False", "think=512"),
    (lambda x: x.chat(HI, think=-1), "from 0 on", "think=512"),
    (lambda x: x.chat(HI, tools=TOOL), "tools must be a list", "function"),
    (lambda x: x.chat(HI, tools=[print]), "A tool needs a name", "function"),
    (lambda x: x.chat(HI, tools=[NO_JSON]), "something that is not JSON", "dictionaries"),
    (lambda x: x.chat(HI, prediction=5), "prediction must be a text", "file"),
    (lambda x: x.chat(ChatRequest(HI), think=5), "brings its own", "Thinking("),
    (lambda x: x.chat(ChatRequest(HI), tools=[TOOL]), "brings its own", "tools="),
    (lambda x: x.stream("hi", SamplingParams(n=2)), "n is 2", "generate()"),
    (lambda x: x.stream(["hi"]), "flat list of whole token ids", "generate()"),
    (lambda x: x.stream("hi", think=True), "belong to a chat", "role"),
    (lambda x: x.stream("hi", on_prefill=5), "must be a function", "lambda"),
    (lambda x: x.embed(), "needs texts", "texts=…"),
    (lambda x: x.embed(sentences=["a"]), "no argument sentences", "texts"),
    (lambda x: x.embed("a", 256), "takes 1 argument (texts)", "dimensions=…"),
    (lambda x: x.embed(""), "A text is empty", "leave it out"),
    (lambda x: x.embed(5), "text or a list of token ids", "list of prompts"),
    (lambda x: x.embed("a", dimensions=-1), "dimensions must be from 1", "leave it out"),
    (lambda x: x.embed("a", dimensions=1.5), "a whole number", "leave it out"),
    (lambda x: x.embed("a", normalize=1), "True or False", "normalize=True"),
    (lambda x: x.embed("a", truncate="yes"), "a whole number", "True cuts"),
    (lambda x: x.embed("a", prompt=5), "prompt must be a text", "prompt="),
    (lambda x: x.embed("a", prompt="a", prompt_name="b"), "not both", "prompt_name"),
    (lambda x: x.rank("a"), "needs documents", "documents=…"),
    (lambda x: x.rank("a", "b"), "Documents are a list of texts", "llm.rank("),
    (lambda x: x.rank(5, ["b"]), "A query is a text", "llm.rank("),
    (lambda x: x.rank("a", ["b"], top_n=0), "top_n must be from 1", "leave it out"),
    (lambda x: x.rank("a", ["b"]), "is no reranker", "Qwen3-Reranker"),
    (lambda x: x.logits("a"), "takes token ids", "tokenizer.encode"),
    (lambda x: x.logits([]), "The prompt is empty", "send some text"),
    (lambda x: x.logits([-1]), "outside the vocabulary", "tokenizer"),
    (lambda x: x.chat_prompt("hi"), "A chat takes messages", "role"),
    (lambda x: x.chat_prompt(HI, think=[]), "think must be", "think=512"),
    (lambda x: x.check_think(), "needs think", "think=…"),
    (lambda x: x.prepare(HI), "flat list of whole token ids", "generate()"),
    (lambda x: x.prepare("a", priority="high"), "a whole number", "priority=0"),
    (lambda x: x.prepare("a", cache_salt=5), "cache_salt must be a text", "cache_salt="),
    (lambda _: SamplingParams(max_token=5), "no argument max_token", "max_tokens"),
    (lambda _: SamplingParams(temp=0), "no argument temp", "temperature"),
    (lambda _: SamplingParams(temperature="hot"), "temperature must be a number", "0 always"),
    (lambda _: SamplingParams(temperature=np.array([1.0])), "must be a number", "0 always"),
    (lambda _: SamplingParams(max_tokens=-1), "max_tokens must be from 1", "leave it out"),
    (lambda _: SamplingParams(stop=None), "stop must be strings", "stop="),
    (lambda _: SamplingParams(stop_token_ids=5), "must be a list", "stop_token_ids="),
    (lambda _: SamplingParams(logit_bias=[1]), "must map token ids", "logit_bias="),
    (lambda _: SamplingParams(ignore_eos=1), "true or false", "ignore_eos=True"),
    (lambda _: SamplingParams().resolve(5), "defaults must be a dictionary", "temperature"),
    (lambda _: Format(), "needs kind", "kind=…"),
    (lambda _: Format("json"), "must be one of json_object", "json_object"),
    (lambda _: Thinking(True), "must be one of auto", "auto"),
    (lambda _: Thinking(budget=1.5), "a whole number of tokens", "budget=512"),
    (lambda _: ToolChoice("always"), "must be one of auto", "auto"),
    (lambda _: ChatRequest(), "needs messages", "messages=…"),
    (lambda _: ChatRequest("hi"), "must be a list of dictionaries", "role"),
    (lambda _: ChatRequest([]), "There are no messages", "role"),
    (lambda _: ChatRequest(HI, think=True), "no argument think", "thinking"),
    (lambda _: ChatRequest(HI, thinking=True), "must be a Thinking", "Thinking("),
    (lambda _: ChatRequest(HI, tools="x"), "must be a list of dictionaries", "function"),
    (lambda _: Prices(price=5), "no argument price", "input"),
    (lambda _: Prices("a"), "must be a number", "input="),
    (lambda _: Watts(35), "needs busy", "idle=…, busy=…"),
    (lambda _: Watts("35", "120"), "Watts are numbers", "Watts(idle=35"),
    (lambda _: Meter(5), "energy must be an Energy", "of_this_machine"),
    (lambda x: x.generate("a")[0].usage.money(5), "must be Prices", "Prices("),
    (lambda _: AsyncLLM("fake", n_ctx=5), "no argument n_ctx", "context"),
    (lambda _: AsyncLLM("fake", top_p=1), "no argument top_p", "SamplingParams(top_p=…), given"),
    (lambda _: AsyncLLM(5), "A model is a name or a path", "LLM("),
    (lambda x: AsyncLLM(x, threads=2), "is loaded already", "AsyncLLM(llm)"),
    (lambda x: AsyncLLM(x).chat(HI, temperature=0), "no argument temperature", "SamplingParams("),
    (lambda x: asyncio.run(AsyncLLM(x).chat("hi")), "A chat takes messages", "generate()"),
    (lambda x: asyncio.run(AsyncLLM(x).generate(5)), "text or a list of token ids", "prompts"),
]


@pytest.mark.parametrize(("call", "sentence", "hint"), CALLS)
def test_a_wrong_call_is_answered_by_one_sentence_and_a_hint(
    llm: LLM, call: Call, sentence: str, hint: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        call(llm)
    assert sentence in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


def test_a_call_that_does_not_fit_is_still_a_type_error(llm: LLM) -> None:
    with pytest.raises(TypeError):
        llm.chat(HI, temperature=0)  # type: ignore[call-overload]
    assert issubclass(CallError, DureError)


def test_what_a_callers_own_function_raises_is_passed_on(llm: LLM) -> None:
    def fail(*_: int) -> None:
        raise TypeError("the caller's own")

    with pytest.raises(TypeError, match="the caller's own"):
        llm.generate("a", progress=fail)


@pytest.mark.parametrize("number", [np.int64(2), np.int32(2), np.uint8(2), 2])
def test_numpys_whole_numbers_are_numbers(llm: LLM, number: Any) -> None:
    params = SamplingParams(max_tokens=number, top_k=number, seed=number)
    assert (params.max_tokens, type(params.max_tokens)) == (2, int)
    assert Thinking(budget=number) == Thinking(budget=2)
    assert len(llm.embed("a", truncate=number)) == 1


@pytest.mark.parametrize("name", ["ChatRequest", "Chunk", "Format", "Thinking", "AsyncLLM"])
def test_names_that_requests_need_are_public(name: str) -> None:
    assert name in dure.__all__
    assert getattr(dure, name).__name__ == name
    assert Chunk("a", 1).text == "a"


def test_a_closed_model_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dure.llm, "load", lambda *_, **__: loaded(ScriptModel(reply("ok"))))
    with LLM("fake") as llm:
        stream = llm.stream(HI)
        assert llm.chat(HI).content == "ok"
    calls: list[Call] = [
        lambda x: x.generate("a"),
        lambda x: x.chat(HI),
        lambda x: x.stream("a"),
        lambda x: x.embed("a"),
        lambda x: x.rank("a", ["b"]),
        lambda x: x.logits([1]),
        lambda x: x.prepare("a"),
        lambda _: next(stream),
        lambda x: asyncio.run(AsyncLLM(x).generate("a")),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError, match="closed") as caught:
            call(llm)
        assert "LLM(…)" in caught.value.hint
    with pytest.raises(AttributeError, match="is closed, and has no driver"):
        _ = llm.driver
    assert llm.meter.totals().steps.cpu_s >= 0
    llm.close()
