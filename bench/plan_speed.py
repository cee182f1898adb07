"""How near do planned speeds come to measured ones? Prints a Markdown table.

    python bench/plan_speed.py MODEL… [--rounds 3] [--machine FILE] [--parts]

The machine is measured first (or read from FILE), then the models, in turns: prompts of 512 tokens
and steps of 1, 8 and 32 streams, at depths 0 and 4096. Keys and values of the depth are noise that
was written there, not computed: attention takes as long, and nobody waits for 131,072 tokens of
prompt. A figure is the median over all rounds. --parts says where the plan sees the time go.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from dure.benchmark import DirectRunner
from dure.formats.checkpoint import open_checkpoint
from dure.loading.load import load
from dure.planning.machine import Machine, read_machine, write_machine
from dure.planning.measure import Others, measure
from dure.planning.speed import Speeds, StepTime, expected
from dure.planning.work import work_of

PROMPT = 512
STREAMS = (1, 8, 32)
DEPTHS = (0, 4096)
STEPS = {1: 6, 8: 4, 32: 3}

Row = tuple[str, int, int]  # "prompt" or "streams", how many, depth
ROWS: tuple[Row, ...] = tuple(
    (kind, count, depth)
    for depth in DEPTHS
    for kind, count in (("prompt", PROMPT), *(("streams", streams) for streams in STREAMS))
)


class Measured:
    """A model in memory, and the seconds of its steps."""

    def __init__(self, name: str, threads: int) -> None:
        loaded = load(name, threads=threads, context=max(DEPTHS) + 2 * PROMPT, with_tokenizer=False)
        self.name, self.model = loaded.name, loaded.model
        self.seconds: dict[Row, list[float]] = {row: [] for row in ROWS}
        draw = random.Random(1)
        most = min(30000, self.model.vocab_size)
        self.ids = [draw.randrange(min(100, most - 1), most) for _ in range(max(DEPTHS) + PROMPT)]

    def round(self, progress: Any) -> None:
        """Measure each row once."""
        for kind, count, depth in ROWS:
            progress(f"{self.name}: {kind} {count} at depth {depth}")
            if kind == "prompt":
                self.seconds[kind, count, depth] += self._prompt(count, depth)
            else:
                self.seconds[kind, count, depth] += self._streams(count, depth)

    def _prompt(self, count: int, depth: int) -> list[float]:
        run = self._run(1, depth + count)
        ids = self.ids[depth : depth + count]
        places, sequences = range(depth, depth + count), [0] * count
        return [self._step(run, ids, places, sequences, [count - 1])]

    def _streams(self, count: int, depth: int) -> list[float]:
        run = self._run(count, depth + STEPS[count] + 1)
        found = []
        for step in range(STEPS[count] + 1):
            ids = [self.ids[(step + 97 * stream) % len(self.ids)] for stream in range(count)]
            found.append(self._step(run, ids, [depth + step] * count, range(count), range(count)))
        return found[1:]

    def _run(self, sequences: int, tokens: int) -> DirectRunner:
        """Make a runner whose cache is full of noise."""
        run = DirectRunner(self.model, tokens=tokens, sequences=sequences)
        noise = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float16)
        for array in run.runner.storage.arrays:
            flat = array.reshape(-1)
            if flat.dtype == np.float16:
                for start in range(0, len(flat), len(noise)):
                    flat[start : start + len(noise)] = noise[: len(flat) - start]
        return run

    def _step(self, run: DirectRunner, *batch: Any) -> float:
        begun = time.perf_counter()
        run.forward(*batch)
        return time.perf_counter() - begun


def planned(speeds: Speeds, row: Row) -> StepTime:
    """Return the plan's step for a row."""
    kind, count, depth = row
    if kind == "streams":
        return speeds.decode_step(count, depth)
    [step] = speeds.prefill_steps(count, depth)
    return step


def lines_of(measured: Measured, speeds: Speeds, parts: bool) -> tuple[list[str], list[float]]:
    """Return a model's lines of the table, and its errors."""
    lines, errors = [], []
    for row in ROWS:
        kind, count, depth = row
        step = planned(speeds, row)
        seconds = statistics.median(measured.seconds[row])
        error = seconds / step.total - 1  # of the speed: planned over measured, less 1
        errors.append(error)
        what = f"prompt of {count}" if kind == "prompt" else f"{count} streams"
        cells = [measured.name, what, f"{depth}", f"{count / step.total:.1f}"]
        cells += [f"{count / seconds:.1f}", f"{error:+.0%}"]
        if parts:
            each = [(part.name, getattr(step, part.name)) for part in fields(step)]
            cells.append(", ".join(f"{name} {1e3 * took:.1f}" for name, took in each if took))
            cells.append(f"{1e3 * step.total:.1f}, {1e3 * seconds:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines, errors


def speed_table(names: list[str], machine: Machine, rounds: int, parts: bool = False) -> str:
    """Measure the models in turns; return the table, and the errors below it."""
    others = Others()
    models = [Measured(name, machine.threads) for name in names]
    for turn in range(rounds):
        for model in models:
            model.round(lambda what, turn=turn: print(f"round {turn + 1}: {what}", flush=True))
    heads = ["model", "work", "depth", "planned, tok/s", "measured", "error"]
    heads += ["planned parts, ms", "planned, measured, ms"] if parts else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    errors: list[float] = []
    for name, model in zip(names, models, strict=True):
        work = work_of(open_checkpoint(name), model.name)
        own, wrong = lines_of(model, expected(work, machine), parts)
        lines += own
        errors += wrong
    sizes = [abs(error) for error in errors]
    within = sum(size <= 0.2 for size in sizes)
    lines += [
        "",
        f"{machine.processor}, {machine.isa}, {machine.threads} threads, measured in "
        f"{machine.seconds:.0f} s at {machine.measured}. "
        f"Median error {statistics.median(sizes):.1%}, "
        f"largest {max(sizes):.1%}; {within} of {len(sizes)} within 20 %. "
        f"Other programs took {others.share():.0%} of the processors.",
        *machine.assumed,
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="+", help="files or folders")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--machine", type=Path, help="read the machine, or write it if it is new")
    parser.add_argument("--parts", action="store_true", help="where the plan sees the time go")
    options = parser.parse_args()
    if options.machine is not None and options.machine.exists():
        machine = read_machine(options.machine)
    else:
        machine = measure(options.threads)
        if options.machine is not None:
            write_machine(machine, options.machine)
    print(speed_table(options.models, machine, options.rounds, options.parts), flush=True)


if __name__ == "__main__":
    main()
