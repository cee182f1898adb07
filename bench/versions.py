"""Is one build of dure as fast as another, or one file as fast as another, in the same run?

    python bench/versions.py OLD NEW --models MODEL            two builds, one model
    python bench/versions.py BUILD BUILD --models FIRST SECOND  one build, two models

A build is a folder with the installed package (`pip install --no-deps --target FOLDER .`). Both
sides take turns in pieces of about a second, each in a process that stays loaded; what starts anew
(import, help, load to first token) is a process each time. Prints one JSON object a figure: the
medians, the median over the rounds of second over first (above 1: the second is better) with its
quartiles, and the peaks of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = """
import json, sys
try:
    from dure import benchmark
    from dure.loading.load import load
except ImportError:  # 0.1.0
    from dure import measure as benchmark
    from dure.loading import load
loaded = load(sys.argv[1], context=2048, cache_tokens=4096, with_tokenizer=False)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(benchmark.speed(loaded.model, **json.loads(line))), flush=True)
"""

STARTS = {
    "import dure": ["-c", "import dure"],
    "dure --help": ["-m", "dure", "--help"],
    "load to first token": ["-m", "dure", "run", "MODEL", "Hi", "--max-tokens=1"],
}
WORK = {
    "prefill 512": {"prompt": 512, "decode": 0, "batch": 1},
    "decode, 1 sequence": {"prompt": 0, "decode": 32, "batch": 1},
    "decode, 8 sequences": {"prompt": 0, "decode": 12, "batch": 8},
    "decode, 32 sequences": {"prompt": 0, "decode": 6, "batch": 32},
}


@dataclass(frozen=True)
class Side:
    """A build and a model."""

    build: Path
    model: str

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        return {**os.environ, "PYTHONPATH": str(self.build)}

    def start(self, arguments: list[str]) -> tuple[float, float]:
        """Run Python once: the seconds it takes, and its peak of memory in MB."""
        command = [sys.executable, *(self.model if word == "MODEL" else word for word in arguments)]
        begun = time.perf_counter()
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            # wait4 gives this child's own peak, RUSAGE_CHILDREN the largest of all so far.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{self}: {' '.join(command)} ended with {process.returncode}")
        return time.perf_counter() - begun, usage.ru_maxrss / 1024


class Worker:
    """A process of one side that has its model loaded."""

    def __init__(self, side: Side) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, side.model],
            env=side.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._read() != "ready":
            raise SystemExit(f"{side} could not be loaded")

    def rate(self, work: dict[str, int]) -> float:
        """Tokens a second."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps({**work, "depth": 0, "repeat": 1}) + "\n")
        stdin.flush()
        speeds = json.loads(self._read())
        return float(speeds["prefill_tps"] or speeds["decode_tps"])

    def end(self) -> float:
        """Let the process end; its peak of memory in MB."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        _, _, usage = os.wait4(self._process.pid, 0)
        return usage.ru_maxrss / 1024

    def _read(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        return stdout.readline().strip()


def report(figure: str, first: list[float], second: list[float], **more: Any) -> None:
    """Print one line; `higher`: whether more is better."""
    higher = more.pop("higher")
    pairs = zip(first, second, strict=True)
    ratios = sorted(b / a if higher else a / b for a, b in pairs)
    line = {
        "figure": figure,
        "first": round(statistics.median(first), 3),
        "second": round(statistics.median(second), 3),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) * at // 4], 3) for at in (1, 3)],
        **more,
    }
    print(json.dumps(line), flush=True)


def order(turn: int) -> tuple[int, int]:
    """Which side goes first: a machine that slows down would favour one that always did."""
    return (0, 1) if turn % 2 else (1, 0)


def main() -> None:
    """Measure both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="measure the figures whose name holds this text")
    options = parser.parse_args()
    builds = (options.first, options.second)
    models = (options.models[0], options.models[-1])
    sides = [Side(build, model) for build, model in zip(builds, models, strict=True)]
    for figure, arguments in STARTS.items():
        if options.only not in figure:
            continue
        runs: list[list[tuple[float, float]]] = [[], []]
        for turn in range(options.rounds + 1):
            for which in order(turn):
                runs[which].append(sides[which].start(arguments))
        # The first turn fills the caches.
        seconds = [[run[0] for run in of[1:]] for of in runs]
        peaks = [round(statistics.median(run[1] for run in of[1:]), 1) for of in runs]
        report(figure + ", s", *seconds, higher=False, peak_mb=peaks)
    wanted = {name: work for name, work in WORK.items() if options.only in name}
    if not wanted:
        return
    workers = [Worker(side) for side in sides]
    for figure, work in wanted.items():
        rates: list[list[float]] = [[], []]
        for turn in range(options.rounds):
            for which in order(turn):
                rates[which].append(workers[which].rate(work))
        best = round(max(rates[1]) / max(rates[0]), 3)
        report(figure + ", tok/s", *rates, higher=True, ratio_of_the_best=best)
    print(json.dumps({"peak_mb": [round(worker.end(), 1) for worker in workers]}))


if __name__ == "__main__":
    main()
