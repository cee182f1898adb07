"""The chat: its commands, its memory of what was said, and what it does at a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM, Interrupted
from outcome import ENVIRONMENT

from dure.chat.output import Chunk
from dure.cli import console
from dure.cli.chat import LEAVE, Chat
from dure.cli.chat_commands import COMMANDS
from dure.cli.conversation import Conversation
from dure.engine.params import SamplingParams
from dure.errors import NotEnoughMemoryError

FAKE = Path(__file__).with_name("fake_llm.py")

Talk = Callable[..., FakeLLM]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A function that chats the given lines with a fake model, which it returns."""

    def run(*lines: str | type[BaseException], model: str = "fake", **options: Any) -> FakeLLM:
        monkeypatch.setattr(FakeLLM, "made", [])
        rest = iter([*lines, EOFError])

        def read(_prompt: str, text: str = "") -> str:
            line = next(rest)
            if isinstance(line, str) and text:
                line = line.replace("…", text)  # what one edits stands in the line
            if isinstance(line, str):
                return line
            raise line

        llm = FakeLLM(model)
        params = options.pop("params", SamplingParams())
        Chat(llm, params, read=read, **options).run()  # type: ignore[arg-type]
        assert list(rest) in ([], [EOFError])  # every line was read
        return llm

    return run


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


def test_clear_forgets_the_messages_but_not_the_system_message(talk: Talk) -> None:
    llm = talk("one", "/clear", "two", system="Be kind.")
    assert [message["content"] for message in llm.asked[1]] == ["Be kind.", "two"]


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


def test_half_a_surrogate_pair_in_a_conversation_can_be_saved(tmp_path: Path) -> None:
    conversation = Conversation(messages=[{"role": "user", "content": "\ud800 안녕"}])
    conversation.save(tmp_path / "chat.json", model="fake")
    assert conversation == Conversation.load(tmp_path / "chat.json")


def test_a_conversation_is_saved_and_taken_up_again(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk("안녕", f"/save {path}", system="Be kind.")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "model": "fake",
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "안녕"},
            {"role": "assistant", "content": "안녕"},
        ],
    }
    assert list(tmp_path.iterdir()) == [path]
    llm = talk(f"/load {path}", "more")
    assert [m["content"] for m in llm.asked[0]] == ["Be kind.", "안녕", "안녕", "more"]


def test_saving_that_fails_leaves_the_old_file_and_nothing_else(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.json"
    path.write_text("old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    talk("one", f"/save {path}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[" * 100_000,
        "[]",
        '{"messages": {}}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "system", "content": "x"}]}',
        '{"messages": [], "system": 3}',
    ],
)
def test_a_file_that_holds_no_conversation_changes_nothing(
    talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text)
    llm = talk("one", f"/load {path}", "two")
    assert f"{path} holds no conversation" in capsys.readouterr().err
    assert len(llm.asked[1]) == 3


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


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit"])
def test_each_word_for_leaving_leaves(talk: Talk, word: str) -> None:
    assert len(talk("one", word).asked) == 1


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


def test_a_chat_is_saved_by_a_name_listed_and_found(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DURE_HOME", str(tmp_path))
    talk("/load", "about pandas", "/save my pandas", "more", "/save")
    assert (tmp_path / "chats" / "my pandas.json").stat().st_mode & 0o077 == 0
    talk("/load")
    said = capsys.readouterr().err
    assert "No chat is saved." in said
    assert said.count("Saved 2 messages") == said.count("Saved 4 messages") == 1
    name, begins = said.splitlines()[-1][:9], said.splitlines()[-1][-12:]
    assert (name, begins) == ("my pandas", "about pandas")
    assert len(talk("/load my pandas", "next").asked[0]) == 5


def test_json_is_asked_for_by_a_word(talk: Talk) -> None:
    first, second = talk("/set format json", "a", "/set noformat", "b").formats
    assert (first.kind, second) == ("json_object", None)


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


def ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Screen:
    """A `dure` with a fake model at a pseudo-terminal, and what it has shown."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        pause: float = 0.0,
        stdout: int | None = None,
        ignoring: bool = False,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.raw = ""
        self._read = 0  # how much of it `expect` has passed
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), "run", *arguments],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            start_new_session=True,
            preexec_fn=ignore_ctrl_c if ignoring else None,  # noqa: PLW1509
            env={
                **ENVIRONMENT,
                "DURE_HOME": str(home),
                "FAKE_PAUSE": str(pause),
                "FAKE_TERMINAL": "1",
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
            },
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Returns when `text` has been shown, after what an earlier call waited for."""
        deadline = time.monotonic() + 30
        while (found := self.raw.find(text, self._read)) < 0:
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            if not ready or not self._more():
                pytest.fail(f"{text!r} did not come, only {self.raw[self._read :]!r}")
        self._read = found + len(text)

    def end(self) -> int:
        """The exit code; all that was shown is in `raw`."""
        while self._more():
            pass
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        os.close(self._master)

    def _more(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)


MakeScreen = Callable[..., Screen]


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[MakeScreen]:
    """A function of arguments that starts `dure run` at a terminal; its home is tmp_path."""
    made: list[Screen] = []

    def make(*arguments: str, **options: Any) -> Screen:
        made.append(Screen(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


# prompt_toolkit draws a line as it is typed; only an answer is shown as a whole.


def test_at_a_terminal_one_chats_and_ctrl_d_leaves(screen: MakeScreen, tmp_path: Path) -> None:
    shown = screen("fake")
    shown.expect("fake: context of 1,000 tokens")
    shown.expect(">>>")
    shown.type("hello there\r")
    shown.expect("hello there\r\n")
    shown.expect(">>>")
    shown.type("\x04")
    assert shown.end() == 0
    history = tmp_path / "history"
    assert "+hello there" in history.read_text()
    assert oct(history.stat().st_mode & 0o777) == "0o600"


def test_alt_enter_starts_a_line_and_an_arrow_brings_back_the_last_message(
    screen: MakeScreen,
) -> None:
    shown = screen("fake")
    shown.expect(">>>")
    shown.type("up\x1b\rdown\r")
    shown.expect("up\r\ndown\r\n")
    shown.expect(">>>")
    shown.type("\x1b[A\r")
    shown.expect("up\r\ndown\r\n")
    shown.expect(">>>")
    shown.type("/bye\r")
    assert shown.end() == 0


@pytest.mark.parametrize("ignoring", [False, True], ids=["", "ignored by the parent"])
def test_ctrl_c_typed_during_an_answer_stops_it_and_the_chat_goes_on(
    screen: MakeScreen, ignoring: bool
) -> None:
    shown = screen("fake", pause=20.0, ignoring=ignoring)
    shown.expect(">>>")
    shown.type("first second\r")
    shown.expect("2004lfirst")  # prompt_toolkit has let go of the terminal; the answer begins
    shown.type("\x03")
    shown.expect("(stopped)")
    shown.expect(">>>")
    shown.type("alone\r")
    shown.expect("alone\r\n")
    shown.expect(">>>")
    shown.type("\x03")
    shown.expect("(Ctrl-D or /bye leaves the chat)")
    shown.expect(">>>")
    shown.type("\x04")
    assert shown.end() == 0


def test_answers_can_go_to_a_file_while_one_chats(screen: MakeScreen, tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    with path.open("wb") as file:
        shown = screen("fake", stdout=file.fileno())
        shown.expect(">>> ")
        shown.type("hello there\n")
        shown.expect(">>> ")
        shown.type("/bye\n")
        assert shown.end() == 0
    assert path.read_text() == "hello there\n"


def test_a_model_cannot_send_commands_to_the_terminal(screen: MakeScreen) -> None:
    shown = screen("fake", "red \x1b[31m \x9b31m\x07 and\ttab\nline")
    assert shown.end() == 0
    assert "red [31m 31m and\ttab\r\nline\r\n" in shown.raw


def test_a_long_prompt_has_a_progress_line_that_is_erased(screen: MakeScreen) -> None:
    shown = screen("fake", "slow prompt", pause=1.2)
    assert shown.end() == 0
    assert "\r\x1b[Kreading the prompt  50 %, 1 s left\r\x1b[Kslow" in shown.raw


def test_a_long_step_that_reads_from_disk_tells_how_much_it_has_read(screen: MakeScreen) -> None:
    shown = screen("giant", "slow prompt", pause=2.0)
    assert shown.end() == 0
    assert "\r\x1b[Kreading the prompt   0 %, 2,000 MB read from disk\r" in shown.raw
    assert "\r\x1b[Kslow" in shown.raw


def test_off_a_terminal_nothing_is_drawn() -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE), "run", "fake", "slow prompt", "--verbose"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        env={**ENVIRONMENT, "FAKE_PAUSE": "0.6"},
    )
    assert done.stdout == b"slow prompt\n"
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr
