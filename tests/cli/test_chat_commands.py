"""The chat's commands: what they set, show and change, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM
from outcome import Talk

from dure.chat.output import Chunk
from dure.cli.chat import LEAVE
from dure.cli.chat_commands import COMMANDS
from dure.engine.params import SamplingParams
from dure.errors import NotEnoughMemoryError


def test_clear_forgets_the_messages_but_not_the_system_message(talk: Talk) -> None:
    llm = talk("one", "/clear", "two", system="Be kind.")
    assert [message["content"] for message in llm.asked[1]] == ["Be kind.", "two"]


def test_parameters_are_set_and_reset(talk: Talk) -> None:
    llm = talk(
        "/set parameter temperature 0.3",
        "/set parameter stop 'a b' END",
        "/set parameter seed 5",
        "one",
        "/set parameter temperature default",
        "two",
    )
    assert llm.params[0] == SamplingParams(temperature=0.3, stop=("a b", "END"), seed=5)
    assert llm.params[1].temperature is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set parameter temprature 1", "There is no parameter 'temprature'"),
        ("/set parameter temperature warm", "'warm' is not a value for temperature"),
        ("/set parameter temperature -1", "temperature must be from 0 to 100"),
        ("/set parameter stop 'open", "is not a value for stop"),
        ("/set colour on", "/set does not know 'colour on'"),
        ("/set", "it sets parameter, system, think"),
        ("/set think maybe", "'maybe' is not on, off, auto"),
        ("/set think on", "no switch for thinking"),
        ("/show nothing", "/show shows info"),
        ("/sohw info", "did you mean /show?"),
        ("/xyz", "/? lists the commands"),
        ("/save .hidden", "'.hidden' is no name for a chat"),
        ("/load nothing", "No chat is saved as 'nothing'"),
        ("/load smollm2:135m", "/model smollm2:135m goes on with that model"),
        ("/set parameter num_ctx 8192", "num_ctx is set when a model is loaded"),
        ("/regen", "There is no message to answer again"),
        ("/undo", "There is no message to take back"),
        ("/edit", "There is no message to edit"),
        ("/thoughts", "There are no thoughts"),
        ("/read", "/read needs the name of a file"),
        ("/read /nowhere/at/all.txt", "cannot be read: No such file"),
        ("/model other", "This chat cannot load another model"),
        ("/load /nowhere/at/all.json", "cannot be read: No such file"),
        ("/save /nowhere/at/all.json", "cannot be written: No such file"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_is_not_sent(
    talk: Talk, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert talk(line).asked == []
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_thinking_is_set_for_a_model_that_has_it(talk: Talk) -> None:
    lines = ["/set think on", "a", "/set think 50", "b", "/set think auto", "c"]
    assert talk(*lines, model="thinker", think=False).thinks == [True, 50, None]


def test_a_system_message_may_have_several_lines(talk: Talk) -> None:
    llm = talk('/set system """Be', 'brief."""', "hi", "/set system", "ho")
    assert llm.asked[0][0] == {"role": "system", "content": "Be\nbrief."}
    assert llm.asked[1][0]["role"] == "user"


def test_show_prints_to_stdout(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"/show {each}" for each in ("info", "parameters", "system", "template", "modelfile")]
    talk(*lines, system="Be kind.")
    shown = capsys.readouterr().out
    for line in (
        "context    1,000 tokens of the model's 4,000",
        "family     fake",
        "temperature          0.5",  # the model's own default
        "top_k                0",
        "Be kind.",
        "{{ messages }}",
        "FROM fake",
    ):
        assert line in shown.splitlines()


def test_help_names_every_command(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk("/?")
    said = capsys.readouterr().err
    for command in (*COMMANDS, *LEAVE, '"""', "Ctrl-C"):
        assert command in said or command in ("/help", "/?", "/chats")


def test_an_answer_is_made_again_changed_and_taken_back(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("one", "two", "/regen", "/edit", "… and more", "/undo", "three")
    asked = [[m["content"] for m in messages] for messages in talk(*lines).asked]
    assert asked == [
        ["one"],
        ["one", "one", "two"],
        ["one", "one", "two"],
        ["one", "one", "two and more"],
        ["one", "one", "three"],
    ]
    assert "Taken back: two and more" in capsys.readouterr().err


def test_a_refused_change_leaves_the_turn_as_it_was(talk: Talk) -> None:
    asked = talk("one", "/edit too long for you", "two").asked
    assert [m["content"] for m in asked[-1]] == ["one", "one", "two"]


def test_a_change_that_is_stopped_before_a_word_leaves_the_turn_as_it_was(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: FakeLLM, text: str, *_: Any) -> Iterator[Chunk]:
        if "again" in text:
            raise KeyboardInterrupt
        yield from words(self, text, *_)

    words = FakeLLM._words
    monkeypatch.setattr(FakeLLM, "_words", stop)
    asked = talk("first", "/edit again", "second").asked
    assert [message["content"] for message in asked[-1]] == ["first", "first", "second"]


@pytest.mark.parametrize(
    "line",
    [
        "/read ~nobody-here/x",
        "/load ~nobody-here/x",
        "/save ~nobody-here/x",
        "/read a\0b",
        "/load ./a\0b",
        "/read /dev/zero",
    ],
)
def test_a_path_that_is_none_ends_no_chat(
    talk: Talk, capsys: pytest.CaptureFixture[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.cli.chat_session.MAX_FILE_BYTES", 1000)
    assert len(talk("before", line, "still here").asked) == 2
    assert "error: " in capsys.readouterr().err


def test_the_same_seed_is_said_to_give_the_same_answer(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("one", "/set parameter seed 5", "/regen")
    assert "(the answer is the same: there is a seed)" in capsys.readouterr().err


def test_a_file_goes_with_the_next_message_alone(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "notes of mine.txt"
    path.write_text("line one\nline two\n", encoding="utf-8")
    first, second = talk(f"/read {path}", "What is it?", "more").asked
    assert first[0]["content"] == (
        "notes of mine.txt:\n\n```\nline one\nline two\n```\n\nWhat is it?"
    )
    assert second[-1]["content"] == "more"


def test_another_model_goes_on_with_the_chat(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("one", "/model other", "two", "/model missing", "three", "/model", load=FakeLLM)
    made = [llm.name for llm in FakeLLM.made]
    assert made == ["fake", "other", "other"]  # what is missing was never made
    assert [m["content"] for m in FakeLLM.made[1].asked[0]] == ["one", "one", "two"]
    assert [m["content"] for m in FakeLLM.made[2].asked[0]][-2:] == ["two", "three"]
    said = capsys.readouterr().err
    assert "No model is called 'missing'" in said
    assert "(other is loaded again)" in said


def test_a_chat_without_any_model_left_ends(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str) -> FakeLLM:
        raise NotEnoughMemoryError(f"{name} does not fit.")

    assert len(talk("one", "/model other", load=load).asked) == 1
    said = capsys.readouterr().err
    assert "fake does not fit." in said and "no model is left" in said


def test_what_is_set_is_said(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    sets = {
        "/set parameter temperature 0.3": "temperature is 0.3.",
        "/set parameter num_predict 5": "max_tokens is 5.",
        "/set parameter num_predict -1": "max_tokens is the default again.",
        "/set parameter stop END": "stop is ('END',).",
        "/set system Be brief.": "The system message has 9 characters.",
        "/set system": "There is no system message.",
        "/set think 50": "Thinking is on, for at most 50 tokens.",
        "/set nothink": "Thinking is off.",
        "/set think": "Thinking is on.",
        "/set think auto": "Thinking is as the model likes.",
        "/set thoughts fold": "Thoughts are one line",
        "/set verbose": "Counts and speeds are shown.",
        "/set quiet": "Counts and speeds are hidden.",
        "/set nowordwrap": "Lines are broken by the terminal.",
        "/set format json": "Answers are JSON.",
        "/set noformat": "Answers are text.",
        "/set nohistory": "What you type is not kept.",
    }
    talk(*sets, model="thinker")
    said = capsys.readouterr().err.splitlines()[1:]
    assert [line[: len(wanted)] for line, wanted in zip(said, sets.values(), strict=True)] == [
        *sets.values()
    ]


def test_json_is_asked_for_by_a_word(talk: Talk) -> None:
    first, second = talk("/set format json", "a", "/set noformat", "b").formats
    assert (first.kind, second) == ("json_object", None)
