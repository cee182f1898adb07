"""How long do `import dure`, `dure --help` and opening a GGUF file take?

One JSON object a line: the median and the best of --repeat fresh processes, in seconds. The bare
interpreter is measured, too: it is a part of every other figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

OPEN = (
    "import sys, time; from dure.formats.checkpoint import open_checkpoint; "
    "start = time.perf_counter(); open_checkpoint(sys.argv[1]); print(time.perf_counter() - start)"
)


def report(what: str, seconds: list[float]) -> None:
    """Print one line of JSON."""
    figures = {"median_s": statistics.median(seconds), "best_s": min(seconds)}
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"what": what, **rounded}), flush=True)


def wall_times(command: list[str], repeat: int) -> list[float]:
    """Seconds from start to end of `command`, of `repeat` runs after one that fills the caches."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def open_times(path: str, repeat: int) -> list[float]:
    """Seconds that reading a model's header takes, imports left out, of `repeat` processes."""
    command = [sys.executable, "-c", OPEN, path]
    outputs = [subprocess.check_output(command, text=True) for _ in range(repeat + 1)]
    return [float(text) for text in outputs[1:]]


def main() -> None:
    """Measure the three, and the files if any are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("files", nargs="*", metavar="FILE", help="GGUF files or model folders")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    for what, arguments in {
        "python": ["-c", "pass"],
        "import dure": ["-c", "import dure"],
        "dure --help": ["-m", "dure", "--help"],
    }.items():
        report(what, wall_times([sys.executable, *arguments], options.repeat))
    for path in options.files:
        report(f"open {path}", open_times(path, options.repeat))


if __name__ == "__main__":
    main()
