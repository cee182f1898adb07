"""Feed damaged inputs to every reader of dure: `python tests/fuzz/run.py --seed 7 --count 10000`.

Each input must be read, or refused with an error of dure/errors.py (a server: a status below 500).
A signal, a traceback, a hang, over 5 s of CPU time or hundreds of MB of memory are faults. They are
printed, and can be read again: `run.py --seed 7 --only gguf --replay 4711`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import worker
from worker import HERE, PROGRESS

HANG_CPU_S = 30.0  # a worker says itself what is slow, if it comes back
HANG_WALL_S = 120.0


@dataclass
class Tally:
    """How the inputs of one reader ended."""

    read: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[dict[str, Any]] = field(default_factory=list)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(child: subprocess.Popen[bytes], progress: Path) -> str:
    """Wait for a child to end; return what is wrong: "", "hang", or how it died."""
    seen, since, cpu = -1, time.monotonic(), 0.0
    while True:
        try:
            code = child.wait(0.5)
            return "" if code == 0 else f"died: {code}"
        except subprocess.TimeoutExpired:
            pass
        number = PROGRESS.unpack(progress.read_bytes())[0]
        if number != seen:
            seen, since, cpu = number, time.monotonic(), cpu_seconds(child.pid)
        waited = time.monotonic() - since
        late = cpu_seconds(child.pid) - cpu > HANG_CPU_S or waited > HANG_WALL_S
        if seen >= 0 and late:
            child.send_signal(signal.SIGABRT)  # faulthandler says where it stood
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            return "hang"


def feed(name: str, seed: int, start: int, count: int) -> Tally:
    """Feed `count` inputs to one reader, in as many children as it takes."""
    tally, began, at, end = Tally(), time.monotonic(), start, start + count
    with tempfile.TemporaryDirectory() as held:
        progress, faults, said = (Path(held) / each for each in ("progress", "faults", "said"))
        while at < end:
            progress.write_bytes(PROGRESS.pack(-1, 0, 0))
            command = [
                sys.executable,
                "-W",
                "error",
                "-X",
                "faulthandler",
                str(HERE / "worker.py"),
                name,
            ]
            command += [str(seed), str(at), str(end - at), str(progress), str(faults)]
            with said.open("wb") as file:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=held
                )
                wrong = watch(child, progress)
            number, accepted, refused = PROGRESS.unpack(progress.read_bytes())
            tally.accepted += accepted
            tally.refused += refused
            if number < 0:
                sys.exit(f"{name} cannot begin:\n{said.read_text(errors='replace')[-4000:]}")
            at = number
            if wrong:
                story = said.read_text(errors="replace")[-4000:]
                told = {"reader": name, "seed": seed, "number": number, "kind": wrong}
                tally.faults.append({**told, "story": story})
                at += 1
        if faults.exists():
            tally.faults += map(json.loads, faults.read_text().splitlines())
    tally.read, tally.seconds = count, time.monotonic() - began
    return tally


def report(name: str, tally: Tally, out: Path | None) -> None:
    """Print a reader's tally, and each kind of fault once."""
    print(
        f"{name:<24} {tally.read:>9,} read {tally.accepted:>9,} accepted {tally.refused:>9,} "
        f"refused {len(tally.faults):>6,} faults {tally.seconds:>7.0f} s",
        flush=True,
    )
    counts = Counter(fault["kind"] for fault in tally.faults)
    for kind, count in counts.most_common(12):
        first = next(fault for fault in tally.faults if fault["kind"] == kind)
        print(f"    {count} x {kind} (number {first['number']})", flush=True)
    if out is not None and tally.faults:
        with out.open("a") as file:
            file.writelines(json.dumps(fault) + "\n" for fault in tally.faults)


def replay(name: str, seed: int, number: int) -> int:
    """Read one input here, and show it."""
    from readers import READERS  # noqa: PLC0415

    with worker.scratch() as folder:
        reader = READERS[name](folder)
        print(repr(reader.draw(worker.rng_of(seed, name, number)))[:20_000], flush=True)
        end, kind, story = worker.one(reader, name, seed, number)
        print(f"{end} {kind}\n{story}", flush=True)
        reader.close()
    return 1 if end == "fault" else 0


def main() -> int:
    """Run what the command line asks for; return 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all readers together")
    parser.add_argument("--only", action="append", default=[], help="a reader; may be repeated")
    parser.add_argument("--start", type=int, default=0, help="the first number")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--faults", type=Path, help="a file that faults are appended to, as JSON")
    parser.add_argument("--replay", type=int, metavar="NUMBER")
    given = parser.parse_args()
    worker.find_modules()
    from readers import READERS  # noqa: PLC0415

    names = given.only or list(READERS)
    if given.replay is not None:
        code = replay(names[0], given.seed, given.replay)
        sys.stdout.flush()
        os._exit(code)
    whole = sum(READERS[name].weight for name in names)
    shares = {name: max(1, round(given.count * READERS[name].weight / whole)) for name in names}
    tallies: dict[str, Tally] = {}

    def each(name: str) -> None:
        tallies[name] = feed(name, given.seed, given.start, shares[name])
        report(name, tallies[name], given.faults)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(each, names))
    read = sum(tally.read for tally in tallies.values())
    faults = sum(len(tally.faults) for tally in tallies.values())
    print(f"{read:,} inputs with seed {given.seed}, {faults:,} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
