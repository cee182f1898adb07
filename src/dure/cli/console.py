"""Habits of every verb at the terminal: what goes where, and progress that erases itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli.progress import REDRAW_S, PullReport
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.chat.output import Completion

# A model's text may hold terminal commands (ESC […): only line ends and tabs reach a terminal.
_CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="q8|q6|q4",
        help="Bits for weights that the files have as floats, FP8 among them. q4 makes a sparse "
        "model's experts 4 bits and all else 6.",
    ),
]


class Cache(str, Enum):
    """How past tokens are kept, as --cache says it."""

    f16 = "f16"
    q8 = "q8"


def write(text: str) -> None:
    """Nothing; `text` from a model goes to stdout at once, harmless if that is a terminal."""
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Nothing; `text`, a remark for the person, goes to stderr as a line."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Nothing; `value` goes to stdout as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def read_text(path: Path) -> str:
    """The text in the file; InvalidRequestError if there is none, or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 text: byte {error.start} is not.",
            hint="convert it with iconv, or give another file",
        ) from None
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from None


def summary(completion: Completion) -> str:
    """A line of token counts and speeds, as --verbose shows it."""
    timings = completion.timings
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    return (
        f"prompt {completion.prompt_tokens} tokens{cached} in {timings.prefill_s:.2f} s, "
        f"{timings.prefill_tps:.1f} tok/s; answer {len(completion.token_ids)} tokens in "
        f"{timings.decode_s:.2f} s, {timings.decode_tps:.1f} tok/s"
    )


class ProgressLine:
    """A line on stderr that follows some work and is erased after it; nothing off a terminal.

    Used as a context manager; `update` is a progress callback of (done, total). With `delay_s` the
    line appears only if the work lasts that long.
    """

    def __init__(self, label: str, *, delay_s: float = 0.0) -> None:
        self.label = label
        self._shown = False
        self._next = time.monotonic() + delay_s
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.erase()

    def update(self, done: int, total: int) -> None:
        """Nothing; the line says how much of `total` is `done`."""
        now = time.monotonic()
        if not self._terminal or now < self._next:
            return
        self._next = now + REDRAW_S
        share = f"{100 * done // total:3d} %" if total else ""
        sys.stderr.write(f"\r\x1b[K{self.label} {share}")
        sys.stderr.flush()
        self._shown = True

    def erase(self) -> None:
        """Nothing; the line is gone, and the cursor where it began."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


@contextmanager
def loading() -> Iterator[dict[str, Any]]:
    """The keyword arguments that let a model's download and loading be followed on stderr."""
    with ProgressLine("loading") as line, PullReport() as report:
        yield {"load_progress": line.update, "download_progress": report}
