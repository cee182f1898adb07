"""Record docs/guides/first-session.md: what a newcomer types, and what the terminal shows.

    python docs/record_session.py WHEEL [--models FOLDER]

Needs pyte, a terminal emulator, beside the standard library. Every command runs in a terminal of 88
columns with a fresh virtual environment and an empty folder of models; what it shows is what the
page has, with the seconds that it took. --models: a folder of model files, where the download of
the recording's model is to be spared.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyte

PAGE = Path(__file__).parent / "guides" / "first-session.md"
COLUMNS, LINES = 88, 4000
MODEL = "qwen2.5-coder:0.5b"
SERVER = "http://127.0.0.1:8000"
_PROMPT = ">>>"
_QUIET_S = 0.5  # without output, after which a chat that shows its prompt waits for the person

INTRODUCTION = f"""# The first session

<!-- recorded by docs/record_session.py; run it again instead of editing the page -->

From nothing to a chat, a server and embeddings, as a terminal showed it: {{machine}},
Python {{python}}, a fresh virtual environment, the wheel of this version. The model is `{MODEL}`,
of 491 MB: the smallest of the catalogue whose answers are mostly right.

"""


@dataclass
class Terminal:
    """A terminal that programs run in, one after another."""

    environment: Mapping[str, str]
    folder: Path
    parts: list[str] = field(default_factory=list)

    def run(self, command: str, *, typed: Sequence[str] = (), limit: float = 300) -> None:
        """Run a command of bash; `typed` are lines for it, each when it waits for one."""
        start = time.perf_counter()
        shown = self._shown(command, [*typed], limit)
        seconds = time.perf_counter() - start
        self.parts.append(f"```console\n$ {command}\n{shown}```\n\n({seconds:.1f} s)\n\n")

    def say(self, text: str) -> None:
        """Add a sentence to the page."""
        self.parts.append(textwrap.fill(text, 120, break_on_hyphens=False) + "\n\n")

    def start(self, command: str, until: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on, and show what it says until it has said `until`."""
        first, second = pty.openpty()
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            **{"stdin": subprocess.DEVNULL, "stdout": second, "stderr": second},
            cwd=self.folder,
            env=dict(self.environment),
        )
        os.close(second)
        screen, begun = _Screen(), time.perf_counter()
        while until not in screen.text():
            if time.perf_counter() - begun > 120 or process.poll() is not None:
                sys.exit(f"{command} did not say {until!r}:\n{screen.text()}")
            screen.read(first, 0.2)
        seconds = time.perf_counter() - begun
        self.parts.append(f"```console\n$ {command} &\n{screen.text()}```\n\n({seconds:.1f} s)\n\n")
        return process

    def _shown(self, command: str, typed: list[str], limit: float) -> str:
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            os.execvpe("bash", ["bash", "-c", command], dict(self.environment))
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        screen, begun, heard = _Screen(), time.perf_counter(), time.perf_counter()
        while screen.read(terminal, 0.2):
            now = time.perf_counter()
            heard = now if screen.changed else heard
            waits = now - heard > _QUIET_S and screen.text().rstrip().endswith(_PROMPT)
            if typed and waits:
                os.write(terminal, typed.pop(0).encode() + b"\r")
                heard = now
            if now - begun > limit:
                os.kill(pid, signal.SIGKILL)
                sys.exit(f"{command} took longer than {limit} s:\n{screen.text()}")
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"{command} failed:\n{screen.text()}")
        return screen.text()


class _Screen:
    """What a terminal shows, from its first line on."""

    def __init__(self) -> None:
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self.changed = False

    def read(self, terminal: int, seconds: float) -> bool:
        """Take what a program writes; False when it is gone."""
        self.changed = False
        ready, _, _ = select.select([terminal], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            return False
        # A program may ask where the cursor is, and a terminal answers.
        if b"\x1b[6n" in data:
            line, column = self._screen.cursor.y + 1, self._screen.cursor.x + 1
            os.write(terminal, f"\x1b[{line};{column}R".encode())
        self.changed = bool(data)
        self._stream.feed(data)
        return bool(data)

    def text(self) -> str:
        """Return the lines without what is empty at their ends."""
        lines = [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return "".join(f"{line}\n" for line in lines)


def session(terminal: Terminal, wheel: Path) -> None:
    """Do what a newcomer does."""
    terminal.say(
        "Installed from the wheel, with all that it needs, by [uv](https://docs.astral.sh/uv/), "
        "which is fetched first. `pip install` alone does it, too; it takes its time to compile "
        "the Python of what dure needs, which `pip install --no-compile` leaves for later:"
    )
    terminal.run(f"pip install --quiet uv && uv pip install --quiet {wheel.name} && dure --version")
    terminal.say("The first answer; the model comes first, if it is not there:")
    terminal.run(f'dure run {MODEL} "What is the capital of France?" --temperature 0')
    terminal.say("The second; the model is there:")
    terminal.run(f'dure run {MODEL} "What does HTTP stand for? One line." --temperature 0')
    terminal.say("A chat, with `/exit` or Ctrl-D to leave it:")
    terminal.run(
        f"dure run {MODEL} --temperature 0",
        typed=[
            "Name three colours, with commas between.",
            "Now three animals.",
            "/bye",
        ],
    )
    terminal.say("A server, for every program that speaks to OpenAI, Anthropic or Ollama:")
    server = terminal.start(f"dure serve {MODEL}", until=SERVER)
    try:
        time.sleep(2)
        terminal.say(f"Its page is at {SERVER}, for a browser; programs ask it so:")
        terminal.run(f"curl --silent {SERVER}/ --header 'Accept: text/html' | grep '<title>'")
        body = f'{{"model": "{MODEL}", "input": "rice paddies"}}'
        terminal.run(f"curl --silent {SERVER}/v1/embeddings --json '{body}' | cut -c -150")
        terminal.say("What it has in memory, and how to take that out:")
        terminal.run("dure ps")
        terminal.run(f"dure stop {MODEL}")
        terminal.run("dure ps")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    terminal.say("Embeddings without a server, a line a text:")
    terminal.run(f'dure embed {MODEL} "rice paddies" "a village" | cut -c -100')


def machine() -> str:
    """Name the processor, as Linux does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {name}"


def main() -> None:
    """Record the session and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--models", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(options.wheel, folder)
        subprocess.run([sys.executable, "-m", "venv", str(folder / ".venv")], check=True)
        kept = ("LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE")
        environment = {key: os.environ[key] for key in kept if key in os.environ}
        environment |= {
            "PATH": f"{folder / '.venv' / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "TERM": "xterm",
            "COLUMNS": str(COLUMNS),
            "LANG": "C.UTF-8",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        if options.models is not None:
            environment["DURE_MODELS_DIR"] = str(options.models.absolute())
        terminal = Terminal(environment, folder)
        session(terminal, options.wheel)
        head = INTRODUCTION.format(machine=machine(), python=platform.python_version())
        PAGE.write_text(head + "".join(terminal.parts).rstrip() + "\n", encoding="utf-8")
        print(f"written: {PAGE}")


main()
