"""The chat: what is sent of what was said, what is shown, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Interrupted
from outcome import Talk

from dure.chat.output import Chunk
from dure.cli import console
from dure.cli.chat import Chat
from dure.engine.params import SamplingParams


def test_what_was_said_before_is_sent_along(talk: Talk) -> None:
    llm = talk("one", "two", system="Be kind.")
    first = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one"}]
    assert llm.asked[0] == first
    assert llm.asked[1] == [
        *first,
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
    ]


def test_answers_go_to_stdout_and_remarks_to_stderr(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("hello there", "/set verbose", "again", "/set quiet", "more")
    captured = capsys.readouterr()
    assert captured.out == "hello there\nagain\nmore\n"
    assert captured.err.startswith("fake: context of 1,000 tokens.")
    assert captured.err.count("tok/s; answer") == 1


def test_bye_leaves(talk: Talk) -> None:
    assert talk("one", "/bye").asked == [[{"role": "user", "content": "one"}]]


def test_empty_lines_are_not_sent(talk: Talk) -> None:
    assert talk("", "   ").asked == []


def test_a_message_of_several_lines_stands_between_triple_quotes(talk: Talk) -> None:
    llm = talk('"""', "line one", "", 'line three"""', '"""short"""', '"""open', 'shut"""')
    said = [messages[-1]["content"] for messages in llm.asked]
    assert said == ["line one\n\nline three", "short", "open\nshut"]


def test_pasted_code_that_begins_with_quotes_is_sent_whole(talk: Talk) -> None:
    code = '"""A module."""\n\nimport os'
    assert talk(code, *code.split("\n")).asked[0][-1]["content"] == code
    assert talk('"""A module.', '"""', "next").asked[0][-1]["content"] == "A module."


def test_quotes_in_the_midst_of_a_message_are_text(talk: Talk) -> None:
    assert talk('what is """ in Python?').asked[0][0]["content"] == 'what is """ in Python?'
    for edited in ('say """ in it', '"""A.""" def f(): ...'):
        assert talk("one", f"/edit {edited}").asked[1][-1]["content"] == edited
    llm = talk('/set system Write """docstrings""".', "one")
    assert llm.asked[0][0]["content"] == 'Write """docstrings""".'


def test_ctrl_c_at_the_prompt_does_not_leave(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(talk(KeyboardInterrupt, "still here").asked) == 1
    assert "/bye leaves" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pause(_event: Interrupted, _seconds: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Interrupted, "wait", pause)
    llm = talk("one two three", "next")
    assert llm.asked[1][:2] == [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "one"},
    ]
    assert "(stopped)" in capsys.readouterr().err


def test_an_error_ends_the_message_and_not_the_chat(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = talk("too long for you", "short")
    assert llm.asked[1] == [{"role": "user", "content": "short"}]
    assert "error: The prompt has 2,000 tokens" in capsys.readouterr().err


def test_an_answer_that_is_cut_short_says_why(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("endless", "/set parameter max_tokens 2", "a b c d")
    said = capsys.readouterr().err
    assert "(cut short: the context of 1,000 tokens is full; /clear empties it)" in said
    assert "(cut short: max_tokens is 2)" in said


@pytest.mark.parametrize("how", [{"model": "base"}, {"raw": True}])
def test_without_a_template_each_message_is_completed_alone(
    talk: Talk, capsys: pytest.CaptureFixture[str], how: dict[str, Any]
) -> None:
    llm = talk("once upon", "/set system Be kind.", "a time", **how)
    assert llm.asked == ["once upon", "a time"]
    said = capsys.readouterr().err
    assert "completes text" in said
    assert "A system message needs a chat template" in said


def test_thoughts_are_kept_apart_from_the_answer(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    llm = talk("let me see </think> four", "more", f"/save {path}", model="thinker")
    assert llm.asked[1][1] == {
        "role": "assistant",
        "content": " four",
        "reasoning_content": "let me see",
    }
    saved = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert (saved[1]["content"], saved[1]["reasoning_content"]) == (" four", "let me see")
    again = talk(f"/load {path}", "and", model="thinker").asked[0]
    assert again[1]["reasoning_content"] == "let me see"


def test_off_a_terminal_the_answer_alone_is_written(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    talk("let me see </think> four", "/thoughts", model="thinker")
    captured = capsys.readouterr()
    assert captured.out == " four\nlet me see\n"


def test_nothing_that_is_shown_commands_a_terminal(
    talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    hostile = "a\x1b]0;title\x07b\x9b2J"
    talk(hostile, "/show messages", "/show system", f"/no{hostile}", "/undo", system=hostile)
    done = capsys.readouterr()
    assert "user: a]0;titleb2J" in done.out
    assert "There is no command /noa]0;titleb2J" in done.err
    assert not set("\x1b\x07\x9b") & set(done.out + done.err)
    console.print_json({"text": hostile})
    shown = capsys.readouterr().out
    assert json.loads(shown)["text"] == hostile
    assert not set("\x1b\x07\x9b") & set(shown)


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_each_word_for_leaving_leaves(talk: Talk, word: str) -> None:
    assert len(talk("one", word).asked) == 1


def test_ctrl_c_comes_back_at_once_while_a_pass_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_up = threading.Event()

    class SlowLLM(FakeLLM):
        def stream(self, prompt: Any, params: SamplingParams, **_: Any) -> Any:
            def chunks() -> Iterator[Chunk]:
                os.kill(os.getpid(), signal.SIGINT)
                assert self.driver.interrupted.wait(30)  # what makes an engine give up a pass
                given_up.set()
                yield Chunk("late", 0)

            return chunks()

    lines = iter(["a long prompt"])

    def read(_prompt: str, _text: str = "") -> str:
        line = next(lines, None)
        if line is None:
            assert given_up.wait(30)
            raise EOFError
        return line

    chat = Chat(SlowLLM("slow"), SamplingParams(), read=read)  # type: ignore[arg-type]
    chat.run()
    assert "(stopped)" in capsys.readouterr().err
    assert chat.talk.messages == []
    assert not chat.llm.driver.interrupted.is_set()  # for whoever asks the model next
