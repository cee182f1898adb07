"""Does a ledger make steps slower? Prints one JSON line a run, and a Markdown table.

    python bench/ledger_steps.py MODEL [--turns 5] [--streams 32] [--minutes 1] [--tokens 64]

A server with and one without `--ledger` answer the same load (serve_load.py) in turns, each in a
process of its own, in which the seconds of every step are taken. The 99th percentile of one run
differs from that of the next, so the table has each side's spread beside its median: a difference
below that is not seen.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from serve_load import quantile

HERE = Path(__file__)
READY_SECONDS = 180.0


def side(arguments: list[str]) -> None:
    """Be a server whose steps are timed; what was found is written at its end."""
    from dure.cli import main  # noqa: PLC0415 - the measuring process has no need of it
    from dure.engine.engine import Engine  # noqa: PLC0415

    found, step = [], Engine.step

    def timed(self: Engine, *rest: object) -> object:
        begun = time.perf_counter()
        outputs = step(self, *rest)  # type: ignore[arg-type]
        found.append(time.perf_counter() - begun)
        return outputs

    Engine.step = timed  # type: ignore[assignment, method-assign]
    out = Path(os.environ["STEPS_FILE"])
    try:
        main(["serve", *arguments])
    finally:
        out.write_text(json.dumps(found), "utf-8")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers; fail if it ends, or takes too long."""
    end = time.perf_counter() + READY_SECONDS
    while time.perf_counter() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server did not begin")


def run(options: argparse.Namespace, *, ledger: bool, seed: int) -> dict[str, object]:
    """One server under load; the figures of its steps."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder) / "steps.json"
        command = [sys.executable, str(HERE), "--side", options.model, "--port", str(port)]
        command += ["--parallel", str(options.streams), "--speculate", "off"]
        command += ["--ledger", str(Path(folder) / "ledger.db")] if ledger else []
        server = subprocess.Popen(command, env={**os.environ, "STEPS_FILE": str(steps)})
        try:
            wait_until_ready(url, server)
            load = [sys.executable, str(HERE.with_name("serve_load.py")), url]
            load += ["--streams", str(options.streams), "--minutes", str(options.minutes)]
            load += ["--tokens", str(options.tokens)]
            answer = json.loads(subprocess.run(load, check=True, capture_output=True).stdout)
        finally:
            server.terminate()
            server.wait(60)
        seconds = json.loads(steps.read_text("utf-8"))
    return {
        "ledger": ledger,
        "turn": seed,
        "steps": len(seconds),
        "p50_s": quantile(seconds, 0.5),
        "p99_s": quantile(seconds, 0.99),
        "mean_s": round(statistics.fmean(seconds), 6),
        "answers": answer["answers"],
        "errors": answer["errors"],
        "tokens_per_second": answer["tokens_per_second"],
    }


def main() -> None:
    """Measure in turns, and print."""
    if sys.argv[1:2] == ["--side"]:
        return side(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    found: dict[bool, list[dict[str, object]]] = {False: [], True: []}
    for turn in range(options.turns):
        for ledger in (False, True) if turn % 2 == 0 else (True, False):
            found[ledger].append(run(options, ledger=ledger, seed=turn))
            print(json.dumps(found[ledger][-1]), flush=True)
    print("\n| | without a ledger | with | ratio |\n|---|---|---|---|")
    for name in ("p50_s", "p99_s", "mean_s"):
        cells = []
        for ledger in (False, True):
            values = sorted(float(str(each[name])) for each in found[ledger])
            cells.append((statistics.median(values), values[0], values[-1]))
        texts = [f"{1e3 * each:.2f} ms ({1e3 * a:.2f} to {1e3 * b:.2f})" for each, a, b in cells]
        print(f"| {name[:-2]} | {texts[0]} | {texts[1]} | {cells[1][0] / cells[0][0]:.4f} |")
    return None


if __name__ == "__main__":
    main()
