"""Reads the lines of a chat: with history and completion on a terminal, plainly elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dure.cli import console
from dure.errors import DureError


class ReadLine(Protocol):
    """Shows a prompt and reads a line, which begins as `text`. Raises EOFError at the end."""

    def __call__(self, prompt: str, text: str = "") -> str:
        """Read a line."""
        ...


class TerminalReader:
    """Reads lines with history and completion."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: what is completed."""
        from prompt_toolkit import PromptSession  # noqa: PLC0415 - only a terminal needs it
        from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=keys,
            completer=WordCompleter(list(words), sentence=True),
            complete_while_typing=False,
        )

    def __call__(self, prompt: str, text: str = "") -> str:
        """Read a line."""
        return self._session.prompt(prompt, default=text)

    def remember(self, wanted: bool) -> None:
        """Keep the lines from now on for the next chats, or only for this one."""
        from prompt_toolkit.history import InMemoryHistory  # noqa: PLC0415

        kept = _history() if wanted else InMemoryHistory(self._session.history.get_strings())
        self._session.history = self._session.default_buffer.history = kept


def line_reader(words: Sequence[str]) -> ReadLine:
    """Return what reads a line: on a terminal with history, and `words` completed."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _read_plain
    return TerminalReader(words)


def read_message(read: Callable[[str], str], *, opens: Callable[[str], bool]) -> str:
    """Read a message: a line, or all lines between two triple quotes.

    What stands behind the second ones, as in pasted code, makes them a part of the text.

    opens: whether quotes after this beginning of a line open a text of several lines.
    """
    line = read(">>> ")
    head, quotes, rest = line.partition('"""')
    if not quotes or not (head.strip() == "" or opens(head)):
        return line
    parts = [rest]
    while '"""' not in parts[-1]:
        parts.append(read("... "))
    inside, quotes, behind = parts[-1].partition('"""')
    if behind.strip():
        return head + quotes + "\n".join(parts)
    parts[-1] = inside
    return head + "\n".join(parts).strip("\n")


def _read_plain(prompt: str, text: str = "") -> str:
    """Read a line of stdin. The prompt goes to stderr because stdout is a file or a pipe."""
    if text:
        console.note(text)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _history() -> Any:
    """Open the history file, which only its owner may read; keep it in memory where that fails."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    from dure.hub.store import models_folder  # noqa: PLC0415

    try:
        path = models_folder().parent / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except (OSError, DureError):
        return InMemoryHistory()
    return FileHistory(str(path))
