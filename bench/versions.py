"""Is one build of dure as fast as another, on the same machine in the same run?

Both builds are folders that hold the installed package (`pip install --no-deps --target FOLDER .`).
They run in turns, a fresh process for each figure. Prints one JSON object a figure: the medians of
both, and the median over the rounds of second over first, turned so that above 1 is better.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def run(build: Path, arguments: list[str]) -> tuple[str, float, float]:
    """Run Python with `build` as its package: the output, the seconds, and the peak in MB."""
    environment = {**os.environ, "PYTHONPATH": str(build)}
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    # wait4 gives this child's own peak; RUSAGE_CHILDREN would give the largest of all so far.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{build}: {' '.join(arguments)} ended with {process.returncode}")
    return output, time.perf_counter() - start, usage.ru_maxrss / 1024


def bench(model: str, prompt: int, decode: int, batch: int) -> list[str]:
    """Return the arguments that measure with `dure bench`, one round after the warm-up."""
    options = [f"--prompt={prompt}", f"--decode={decode}", f"--batch={batch}", "--repeat=1"]
    return ["-m", "dure", "bench", model, *options, "--json"]


def decode_rate(output: str) -> float:
    """Tokens a second of decoding."""
    return float(json.loads(output)["decode_tps"])


def prefill_rate(output: str) -> float:
    """Tokens a second of the prompt."""
    return float(json.loads(output)["prefill_tps"])


Figure = tuple[str, list[str], Callable[[str], float] | None]


def figures(model: str) -> list[Figure]:
    """Return each figure's name, its arguments, and how to read its output (None: wall time)."""
    return [
        ("import dure, s", ["-c", "import dure"], None),
        ("dure --help, s", ["-m", "dure", "--help"], None),
        ("load to first token, s", ["-m", "dure", "run", model, "Hi", "--max-tokens=1"], None),
        ("prefill 512, tok/s", bench(model, 512, 0, 1), prefill_rate),
        ("decode, 1 sequence, tok/s", bench(model, 0, 48, 1), decode_rate),
        ("decode, 8 sequences, tok/s", bench(model, 0, 24, 8), decode_rate),
        ("decode, 32 sequences, tok/s", bench(model, 0, 12, 32), decode_rate),
    ]


def main() -> None:
    """Measure both builds in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="measure the figures whose name holds this text")
    options = parser.parse_args()
    for name, arguments, read in figures(options.model):
        if options.only not in name:
            continue
        found: list[list[float]] = [[], []]
        memory: list[list[float]] = [[], []]
        for turn in range(options.rounds + 1):
            # Which goes first changes each turn: a machine that slows down would favour one.
            order = (0, 1) if turn % 2 else (1, 0)
            for which in order:
                output, seconds, peak = run((options.first, options.second)[which], arguments)
                if turn:  # the first turn fills the caches
                    found[which].append(read(output) if read else seconds)
                    memory[which].append(peak)
        pairs = zip(*found, strict=True)
        ratios = [new / old if read else old / new for old, new in pairs]
        line = {
            "figure": name,
            "first": round(statistics.median(found[0]), 3),
            "second": round(statistics.median(found[1]), 3),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            "peak MB": [round(statistics.median(peaks), 1) for peaks in memory],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
