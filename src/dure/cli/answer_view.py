"""How an answer is shown while it comes: thoughts set apart, words wrapped, light Markdown."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dure.cli import console
from dure.cli.markdown import MarkdownStream
from dure.cli.wrapping import DIM, RESET

if TYPE_CHECKING:
    from dure.chat.dialects import Event


class AnswerView:
    """Writes the events of one answer to stdout.

    On a terminal the thoughts come first, dim, or folded to a line; elsewhere stdout has the
    answer alone, as the model wrote it.
    """

    def __init__(self, *, fold: bool = False, wrap: bool = True, plain: bool = False) -> None:
        """fold: show that the model thinks, not what. plain: of text that is no chat's answer."""
        self._terminal = sys.stdout.isatty()
        self._fold = fold
        self._wrap = wrap
        self._plain = plain or not self._terminal
        self._styled = has_styles()
        self._began: float | None = None  # when the thoughts did
        self._stream: MarkdownStream | None = None
        self._thinking = False
        self._line: console.ProgressLine | None = None
        self._text: list[str] = []
        self._written = ""  # the last that was

    @property
    def content(self) -> str:
        """What was shown of the answer, without the thoughts."""
        return "".join(self._text)

    def show(self, events: Sequence[Event]) -> None:
        """Show what came."""
        for event in events:
            if event.kind == "reasoning":
                self._think(event.text)
            elif event.kind == "content":
                self._end_thoughts()
                is_first = not self._text
                self._text.append(event.text)
                # Behind thoughts models begin with empty lines, of which one stands there.
                after_thoughts = is_first and self._terminal and self._began is not None
                self.say(event.text.lstrip("\n") if after_thoughts else event.text)

    def end(self) -> None:
        """Write what is left, and end the last line."""
        self._end_thoughts()
        if self._stream is not None:
            self._write(self._stream.finish())
        if not self._written.endswith("\n"):
            self._write("\n")

    def break_off(self) -> None:
        """Leave the answer where an error ended it: the error's line is its own."""
        self._end_thoughts()
        if self._stream is not None:
            self._write(self._stream.finish())
            self._stream = None
        if not self._written.endswith("\n") and self._written:
            self._write("\n")

    def say(self, text: str) -> None:
        """Show a piece of the answer."""
        if self._plain:
            self._write(text)
            return
        if self._stream is None:
            self._stream = MarkdownStream(self._width(), styled=self._styled)
        self._write(self._stream.push(console.printable(text)))

    def _think(self, text: str) -> None:
        if not self._terminal:
            return
        if self._began is None:
            if not text.strip():
                return
            self._began = time.monotonic()
        if not self._thinking:
            self._thinking = True
            if self._fold:
                began = self._began
                self._line = console.ProgressLine(
                    "thinking", beside=lambda: f"{time.monotonic() - began:.0f} s"
                ).__enter__()
            else:
                self._write(self._dim("Thinking …") + "\n")
                base = DIM if self._styled else ""
                self._stream = MarkdownStream(self._width(), styled=self._styled, base=base)
            text = text.lstrip()
        if self._stream is not None:
            self._write(self._stream.push(console.printable(text)))

    def _end_thoughts(self) -> None:
        if not self._thinking:
            return
        self._thinking = False
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        if self._line is not None:
            self._line.__exit__(None, None, None)
            self._line = None
            self._write(self._dim(f"(thought for {seconds:.0f} s)") + "\n\n")
            return
        if self._stream is not None:
            self._write(self._stream.finish())
            self._stream = None
        end = "" if self._written.endswith("\n") else "\n"
        self._write(end + self._dim(f"… thought for {seconds:.0f} s") + "\n\n")

    def _dim(self, text: str) -> str:
        return f"{DIM}{text}{RESET}" if self._styled else text

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1 if self._wrap else 0

    def _write(self, text: str) -> None:
        if not text:
            return
        self._written = text
        if self._plain:
            console.write(text)
        else:  # the escape sequences are ours: the model's were taken out before
            sys.stdout.write(text)
            sys.stdout.flush()


def has_styles() -> bool:
    """Whether stdout shows bold, dim and colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("TERM", "dumb") != "dumb"
