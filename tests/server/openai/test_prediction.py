"""`prediction` of OpenAI's chat API: guesses of the answer, which change nothing but its speed."""

from __future__ import annotations

from typing import Any

import pytest
from fake_drafter import TryAll
from fake_model import reply

import dure.assembly
from dure import LLM
from dure.engine.spec_decode.text import TextDrafter

ANSWER = "def add(a, b):\n    return a + b\n"


@pytest.fixture
def guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models try every draft."""
    monkeypatch.setattr(dure.assembly, "make_drafter", lambda *_, **__: TryAll(TextDrafter()))


def details(body: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = body["usage"]["completion_tokens_details"]
    return found


@pytest.mark.usefixtures("guessing")
@pytest.mark.parametrize(
    "content",
    [ANSWER, [{"type": "text", "text": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}]],
    ids=["text", "parts"],
)
def test_a_right_prediction_is_accepted_and_counted_and_the_answer_is_the_same(
    serve: Any, content: Any
) -> None:
    server = serve(reply(ANSWER))
    plain = server.chat("write add").json
    prediction = {"type": "content", "content": content}
    guessed = server.chat("write add", prediction=prediction).json
    assert guessed["choices"] == plain["choices"]
    assert guessed["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
    accepted = details(guessed)["accepted_prediction_tokens"]
    assert len(ANSWER) * 0.8 <= accepted <= len(ANSWER)
    assert details(guessed)["rejected_prediction_tokens"] == 0


@pytest.mark.usefixtures("guessing")
def test_a_wrong_prediction_is_rejected_and_no_part_of_the_completion(serve: Any) -> None:
    server = serve(reply(ANSWER))
    prediction = {"type": "content", "content": "ZZZZ QQQQ"}
    guessed = server.chat("write add", prediction=prediction).json
    assert guessed["choices"][0]["message"]["content"] == ANSWER
    assert guessed["usage"]["completion_tokens"] == len(ANSWER.encode()) + 1
    assert details(guessed)["rejected_prediction_tokens"] >= 8


@pytest.mark.usefixtures("guessing")
def test_a_stream_has_the_same_pieces_and_counts(serve: Any) -> None:
    server = serve(reply(ANSWER))
    asked: dict[str, Any] = {
        "prediction": {"type": "content", "content": ANSWER.replace("add", "sum")},
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    *told, total, done = server.chat("write add", **asked).events
    assert done == "[DONE]"
    text = "".join(c["delta"].get("content", "") for e in told for c in e["choices"])
    assert text == ANSWER
    counts = [details(event) for event in told if "usage" in event]
    assert counts[-1] == details(total)
    assert details(total)["accepted_prediction_tokens"] > 10
    assert details(total)["rejected_prediction_tokens"] > 0


def test_without_guesses_both_counts_are_0(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dure.assembly, "make_drafter", lambda *_, **__: None)
    server = serve(reply(ANSWER))
    prediction = {"type": "content", "content": ANSWER}
    found = details(server.chat("write add", prediction=prediction).json)
    assert found["accepted_prediction_tokens"] == found["rejected_prediction_tokens"] == 0


@pytest.mark.usefixtures("guessing")
def test_it_goes_with_several_choices_tools_and_formats(serve: Any) -> None:
    server = serve(reply(ANSWER))
    prediction = {"type": "content", "content": ANSWER}
    choices = server.chat("write add", prediction=prediction, n=2).json["choices"]
    assert [each["message"]["content"] for each in choices] == [ANSWER] * 2
    choice = {"type": "content", "content": "yes"}
    said = server.chat("?", prediction=choice, guided_choice=["yes", "no"]).json
    assert said["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize(
    ("prediction", "named"),
    [
        ("a text", "prediction"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "file", "content": "x"}, "prediction.type"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image", "text": "x"}]}, "prediction.content"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content"),
    ],
)
def test_another_shape_is_refused_by_name(serve: Any, prediction: Any, named: str) -> None:
    server = serve(reply("ok"))
    answer = server.chat("hi", prediction=prediction)
    assert answer.status == 400
    assert named in answer.json["error"]["message"]


def test_none_and_empty_ones_are_none(serve: Any) -> None:
    server = serve(reply("ok"))
    for empty in (None, {"type": "content", "content": ""}, {"type": "content", "content": []}):
        assert server.chat("hi", prediction=empty).status == 200


def test_one_longer_than_the_context_is_refused(serve: Any) -> None:
    server = serve(reply("ok"))
    context = server.chat("hi").json and server.llm.context
    for size in (context + 1, 3_000_000):
        answer = server.chat("hi", prediction={"type": "content", "content": "x" * size})
        assert answer.status == 400
        assert "The prediction has" in answer.json["error"]["message"]
    fits = {"type": "content", "content": "x" * context}
    assert server.chat("hi", prediction=fits).status == 200


def test_python_takes_it_too(serve: Any) -> None:
    server = serve(reply(ANSWER))
    server.chat("hi")
    llm: LLM = server.llm
    asked = [{"role": "user", "content": "write add"}]
    assert llm.chat(asked, prediction=ANSWER).text == llm.chat(asked).text
    chunks = list(llm.stream(asked, prediction=ANSWER))
    assert chunks[-1].completion is not None
    prepared = llm.prepare("text", prediction="<|im_end|>ab")
    assert prepared.prediction_ids == tuple(b"<|im_end|>ab")  # no mark counts in it
    with pytest.raises(dure.errors.InvalidRequestError, match="prediction"):
        llm.chat(asked, prediction=5)  # type: ignore[arg-type]
    with pytest.raises(dure.errors.InvalidRequestError, match="prediction"):
        dure.ChatRequest(asked, prediction=5)  # type: ignore[arg-type]
