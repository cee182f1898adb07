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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_llm import FakeLLM
from outcome import ENVIRONMENT

from dure.cli.chat import Chat
from dure.cli.conversation import Conversation
from dure.engine.params import SamplingParams

FAKE = Path(__file__).with_name("fake_llm.py")

Talk = Callable[..., FakeLLM]


@pytest.fixture
def talk() -> Talk:
    """A function that chats the given lines with a fake model, which it returns."""

    def run(*lines: str | type[BaseException], model: str = "fake", **options: Any) -> FakeLLM:
        rest = iter([*lines, EOFError])

        def read(_prompt: str) -> str:
            line = next(rest)
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
    def pause(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", pause)
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
        ("/set colour on", "/set does not know 'colour'"),
        ("/set", "it sets parameter, system, think"),
        ("/set think maybe", "'maybe' is not on, off, auto"),
        ("/set think on", "no switch for thinking"),
        ("/show nothing", "/show shows info"),
        ("/sohw info", "did you mean /show?"),
        ("/xyz", "/? lists the commands"),
        ("/save", "/save needs the name of a file"),
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
    talk("/show info", "/show parameters", "/show system", "/show template", system="Be kind.")
    shown = capsys.readouterr().out
    for line in (
        "context    1,000 tokens of the model's 4,000",
        "family     fake",
        "temperature          0.5",  # the model's own default
        "top_k                0",
        "Be kind.",
        "{{ messages }}",
    ):
        assert line in shown.splitlines()


def test_help_names_every_command(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk("/?")
    said = capsys.readouterr().err
    for command in ("/set", "/show", "/save", "/load", "/clear", "/bye", '"""', "Ctrl-C"):
        assert command in said


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
    shown = screen("fake", "slow prompt", pause=1.0)
    assert shown.end() == 0
    assert "\r\x1b[Kreading the prompt  50 %\r\x1b[Kslow" in shown.raw


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
