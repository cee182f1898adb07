"""The chat at a real terminal: keys, Ctrl-C, progress, and what a model may not do there."""

from __future__ import annotations

import fcntl
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
from outcome import ENVIRONMENT

FAKE = Path(__file__).with_name("fake_llm.py")


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
