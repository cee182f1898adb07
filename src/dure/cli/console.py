"""What all verbs share at the terminal: output, shared options, and a progress line."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
    from dure.cli.served_model import ServedModel
    from dure.llm import LLM
    from dure.loading.memory import MemoryUse
    from dure.metering.energy import Energy
    from dure.metering.estimates import Watts
    from dure.metering.prices import Prices
    from dure.weights.expert_stats import ExpertUse

REFRESH_S = 0.5
MIN_TOLD_S = 1.0  # of work, before the time that is left is told

# A model's text may hold terminal commands (ESC […): only line ends and tabs reach a terminal.
_CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
_BEYOND_ASCII = re.compile("[\x7f-\x9f]")


Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="q8|q6|q4",
        help="Quantize float and FP8 weights while loading. q4: the experts of a sparse model in "
        "4 bits, all else in 6.",
    ),
]


Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="Compute in float32 from the file's own weights, none rounded (slow)."
    ),
]


Speculate = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|text|heads|MODEL",
        show_default="auto",
        help="Guess tokens, so that a step may bring several; the answer stays the same. text: "
        "from what texts repeat. heads: by the model's own draft heads. auto: both. MODEL: by a "
        "smaller model of the same vocabulary, and from texts.",
    ),
]

Draft = Annotated[
    str | None,
    typer.Option(metavar="MODEL", show_default=False, help="The same as --speculate MODEL."),
]


def _set_models_dir(folders: list[str] | None) -> list[str] | None:
    """Set the variable that the option stands for: dure.hub reads it at each look-up."""
    if folders:
        os.environ["DURE_MODELS_DIR"] = os.pathsep.join(folders)
    return folders


ModelsDir = Annotated[
    list[str] | None,
    typer.Option(
        "--models-dir",
        metavar="FOLDER",
        show_default="$DURE_MODELS_DIR",
        callback=_set_models_dir,
        help="A folder of model files to look in, too: they are found by name and used in place. "
        "May be repeated.",
    ),
]


Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        show_default="what the machine has free",
        help="Memory to stay below, all told: 8GB, 512MB, 6GiB.",
    ),
]


Threads = Annotated[
    int | None, typer.Option(min=1, show_default="the physical cores", help="CPU threads.")
]


WattsOption = Annotated[
    str | None,
    typer.Option(
        "--watts",
        metavar="IDLE,BUSY",
        show_default="the processor's TDP, if its name tells",
        help="Watts of the machine idle and busy, for joules where nothing measures them.",
    ),
]
Price = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=N,…",
        help="What is charged: input, cached_input and output (a million tokens), kwh, hour (of "
        "computing), currency; as in kwh=0.30,currency=EUR.",
    ),
]


class Cache(str, Enum):
    """The KV cache types of --cache."""

    f16 = "f16"
    q8 = "q8"


CacheType = Annotated[
    Cache, typer.Option(help="KV cache type: f16, or q8 for about half the memory.")
]


def write(text: str) -> None:
    """Write a model's `text` to stdout at once; on a terminal, without control characters."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Return a model's `text` without the characters that command a terminal."""
    return text.translate(_CONTROLS)


def note(text: str) -> None:
    """Print `text` to stderr as a line: a remark for the person. Commands of a terminal are left
    out, as names and errors may come from a file or a server.
    """
    print(printable(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print `value` to stdout as one line of JSON."""
    text = json.dumps(value, ensure_ascii=False)
    # JSON escapes what is below 32 only; beyond 126 there are commands of a terminal, too.
    print(_BEYOND_ASCII.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def read_text(path: Path, *, most: int | None = None) -> str:
    """Read a UTF-8 text file, of `most` bytes if that is given.

    Raises InvalidRequestError if it cannot be read, is longer, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(-1 if most is None else most + 1)
        if most is not None and len(data) > most:
            raise InvalidRequestError(
                f"{path} is too long: at most {most:,} bytes are read.",
                hint="cut out what the question is about",
            )
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 text: byte {error.start} is not.",
            hint="convert it with iconv, or give another file",
        ) from None
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from None


def path_given(text: str) -> Path:
    """Return the path that a person typed, `~` as a home. Raises InvalidRequestError."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InvalidRequestError(f"{text!r:.100} is in the home of nobody here.") from None
    if "\0" in text:
        raise InvalidRequestError("A path holds no null character.")
    return path


def duration(seconds: float) -> str:
    """Format seconds for a person: "40 s", "3 min 5 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Format rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [zip(row, widths, strict=True) for row in table]
    return ["  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines]


def joules(value: float) -> str:
    """Format joules, beyond 100 kJ as kilowatt-hours."""
    return f"{value:,.1f} J" if value < 1e5 else f"{value / 3.6e6:,.3f} kWh"


def watts(text: str | None) -> Watts | None:
    """Return the watts of --watts; None if they were not given. Raises InvalidRequestError."""
    from dure.metering.estimates import Watts  # noqa: PLC0415 - the help needs none

    return None if text is None else Watts.parse(text)


def prices(text: str | None) -> Prices | None:
    """Return the prices of --price; None if they were not given. Raises InvalidRequestError."""
    from dure.metering.prices import Prices  # noqa: PLC0415 - as above

    return None if text is None else Prices.parse(text)


def speculation(speculate: str | None, draft: str | None) -> str:
    """Return what --speculate and --draft ask for, as `LLM` takes it.

    Raises InvalidRequestError if both are given, or one is empty.
    """
    if speculate is not None and draft is not None:
        raise InvalidRequestError(
            "--speculate and --draft were both given, and they are the same setting.",
            hint=f"leave one out; --draft {draft} guesses from texts, too",
        )
    chosen = "auto" if speculate is None and draft is None else speculate or draft
    if not chosen:
        raise InvalidRequestError(
            "--speculate and --draft need a value.", hint="--speculate auto, or a model's name"
        )
    return chosen


def memory_budget(memory: str | None) -> int | None:
    """Return the bytes of --memory; None if it was not given. Raises InvalidRequestError."""
    from dure.arguments import memory_budget as parse  # noqa: PLC0415 - the help needs no numpy

    return parse(memory)


def summary(completion: Completion, prices: Prices | None = None) -> str:
    """Format what an answer took for --verbose: tokens and speeds, joules and money, and others.

    prices: what is charged.
    """
    usage, timings = completion.usage, completion.usage.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    line = (
        f"prompt {usage.prompt_tokens} tokens{cached} in {timings.prefill_s:.2f} s, "
        f"{timings.prefill_tps:.1f} tok/s; answer {usage.output_tokens} tokens in "
        f"{timings.decode_s:.2f} s, {timings.decode_tps:.1f} tok/s"
    )
    lines = [line, cost_summary(completion, prices)]
    if usage.drafted_tokens:
        share = 100 * usage.accepted_tokens / usage.drafted_tokens
        lines.append(
            f"drafted {usage.drafted_tokens} tokens, "
            f"{usage.accepted_tokens} accepted ({share:.0f} %)"
        )
    if usage.experts is not None:
        lines.append(experts_summary(usage.experts))
    return "\n".join(lines)


def cost_summary(completion: Completion, prices: Prices | None) -> str:
    """Format what an answer cost: processor seconds, joules with their source, and money."""
    usage, cost = completion.usage, completion.usage.cost
    energy = "joules unknown"
    if cost.joules is not None:
        energy = f"{joules(cost.joules)} ({cost.energy_source})"
    money = ""
    if prices is not None:
        money = f", {usage.money(prices):.6f} {prices.currency}"
    return f"cost {cost.cpu_s:.2f} processor seconds, {energy}{money}"


def experts_summary(use: ExpertUse) -> str:
    """Format what steps took of experts that are read from disk, as a line."""
    return (
        f"experts {use.hits:,} hits, {use.misses:,} misses ({100 * use.hit_rate:.0f} % hits), "
        f"{use.read_bytes / 1e6:,.0f} MB read, waited {use.wait_s:.2f} s; "
        f"guessed {use.guessed_right:,} right, {use.guessed_wrong:,} wrong"
    )


def tell_notes(notes: Sequence[str]) -> None:
    """Say on stderr whose model it is, and what of its settings was left out."""
    for each in notes:
        note(f"({each})")


def tell_memory(name: str, memory: MemoryUse | None) -> None:
    """Say on stderr what of the model stays in memory, if it does not fit whole."""
    from dure.loading.memory import streaming_sentence  # noqa: PLC0415 - loaded by now

    said = "" if memory is None else streaming_sentence(name, memory)
    if said:
        note(said)


class ProgressLine:
    """Show progress on one line of stderr, erased at the end; show nothing off a terminal.

    Used as a context manager; `update` is a progress callback of (done, total). With `delay_s` the
    line appears only if the work lasts that long.
    """

    def __init__(
        self,
        label: str,
        *,
        delay_s: float = 0.0,
        beside: Callable[[], str] | None = None,
        time_left: bool = False,
    ) -> None:
        """beside: returns what stands after the share; a thread asks it twice a second.

        So the line shows that something happens where one step lasts minutes. time_left: whether
        it says for how long it will go on as it went since the first update.
        """
        self.label = label
        self._beside = beside
        self._time_left = time_left
        self._first: tuple[float, int] | None = None
        self._share = ""
        self._over = threading.Event()
        self._drawing = threading.Lock()
        self._shown = False
        self._next = time.monotonic() + delay_s
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> ProgressLine:
        if self._terminal and self._beside is not None:
            threading.Thread(target=self._keep_fresh, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.erase()

    def update(self, done: int, total: int) -> None:
        """Redraw the line: `done` of `total`."""
        self._share = f" {100 * done // total:3d} %" if total else ""
        if self._time_left:
            self._share += self._left(done, total)
        self._draw()

    def _left(self, done: int, total: int) -> str:
        """Format the time that is left; nothing before enough was done to tell."""
        now = time.monotonic()
        began, before = self._first = self._first or (now, done)
        if now - began < MIN_TOLD_S or done <= before:
            return ""
        return f", {duration((total - done) * (now - began) / (done - before))} left"

    def erase(self) -> None:
        """Erase the line for good."""
        self._over.set()
        with self._drawing:
            if self._shown:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._shown = False

    def _draw(self) -> None:
        with self._drawing:
            now = time.monotonic()
            if not self._terminal or self._over.is_set() or now < self._next:
                return
            self._next = now + REDRAW_S
            beside = "" if self._beside is None else f", {self._beside()}"
            sys.stderr.write(f"\r\x1b[K{self.label}{self._share}{beside}")
            sys.stderr.flush()
            self._shown = True

    def _keep_fresh(self) -> None:
        while not self._over.wait(REFRESH_S):
            self._draw()


def disk_reads(llm: LLM | ServedModel) -> Callable[[], str] | None:
    """Return what says how much has been read from disk from now on; None if all is in memory."""
    if llm.memory is None or not llm.memory.streamed or not hasattr(llm, "engine"):
        return None
    stats = llm.engine.runner.expert_stats
    if stats is None:
        return None
    before = stats.read_bytes
    return lambda: f"{(stats.read_bytes - before) / 1e6:,.0f} MB read from disk"


def tell_energy(energy: Energy) -> None:
    """Say on stderr how joules are found, and what would find them better."""
    note(f"energy: {energy.said}")
    for remark in energy.remarks:
        note(f"({remark})")


@contextmanager
def loading() -> Iterator[dict[str, Any]]:
    """Show a model's download and loading on stderr; yields the keyword arguments for `LLM`."""
    with ProgressLine("loading") as line, PullReport() as report:
        yield {"load_progress": line.update, "download_progress": report}
