"""One child of run.py: reads inputs of one reader by their numbers, and says how each ended."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reader import Reader

HERE = Path(__file__).parent
TESTS = HERE.parent
CPU_SECONDS = 5.0  # of one input; more is a fault
ADDRESS_SPACE = 3 << 30  # what all of a worker may reserve beyond its start

# What the parent sees of a child: inputs begun, accepted and refused.
PROGRESS = struct.Struct("<3q")


def find_modules() -> None:
    """Make the tests' helpers and `src/dure`, where it was built in place, importable."""
    if list((TESTS.parent / "src/dure/kernels").glob("_core*.so")):
        sys.path.insert(0, str(TESTS.parent / "src"))
    for folder in ("", "formats", "text", "chat/dialects", "chat", "server", "hub", "fuzz"):
        path = str(TESTS / folder)
        if path not in sys.path:
            sys.path.append(path)


def rng_of(seed: int, name: str, number: int) -> random.Random:
    """The random numbers that make one input."""
    return random.Random(f"{seed} {name} {number}")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where the system has such."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="dure-fuzz-", dir=memory if memory.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def peak_mb() -> int:
    """The most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def signature(error: BaseException) -> str:
    """What tells faults apart: the kind, and where in dure it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "/dure/" in each.filename] or list(frames)
    where = " < ".join(f"{Path(each.filename).name}:{each.lineno}" for each in own[:-4:-1])
    return f"{type(error).__name__} {where}"


def one(
    reader: Reader, name: str, seed: int, number: int, *, watched: bool = True
) -> tuple[str, str, str]:
    """Read one input; return how it ended, and of a fault its signature and its story.

    watched: more time or memory than any input should take is a fault, too.
    """
    from dure.errors import DureError  # noqa: PLC0415

    rng = rng_of(seed, name, number)
    drawn = reader.draw(rng)
    before = peak_mb()
    began = time.process_time()
    try:
        accepted = reader.read(drawn)
        end = ("accepted" if accepted else "refused", "", "")
    except DureError:
        end = ("refused", "", "")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        end = ("fault", signature(error), "".join(traceback.format_exception(error)))
    if not watched:
        return end
    took, grown = time.process_time() - began, peak_mb() - before
    if took > CPU_SECONDS:
        return "fault", f"slow {end[0]} {end[1]}", f"{took:.1f} s of CPU time\n{end[2]}"
    if grown > reader.spare_mb:
        return "fault", f"memory {end[0]} {end[1]}", f"{grown} MB\n{end[2]}"
    return end


def main(name: str, seed: int, start: int, count: int, progress: Path, faults: Path) -> None:
    """Read the inputs from `start` on, and write faults to a file as lines of JSON."""
    from readers import READERS  # noqa: PLC0415

    with scratch() as folder:
        reader = READERS[name](folder)
        gc.collect()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ends = {"accepted": 0, "refused": 0, "fault": 0}
        with progress.open("r+b", buffering=0) as shown:
            for number in range(start, start + count):
                shown.seek(0)
                shown.write(PROGRESS.pack(number, ends["accepted"], ends["refused"]))
                end, kind, story = one(reader, name, seed, number)
                ends[end] += 1
                if end == "fault":
                    told = {"reader": name, "seed": seed, "number": number}
                    with faults.open("a") as file:
                        file.write(json.dumps({**told, "kind": kind, "story": story}) + "\n")
            shown.seek(0)
            shown.write(PROGRESS.pack(start + count, ends["accepted"], ends["refused"]))
        reader.close()


if __name__ == "__main__":
    find_modules()
    given = sys.argv[1:]
    main(given[0], int(given[1]), int(given[2]), int(given[3]), Path(given[4]), Path(given[5]))
    os._exit(0)  # whatever threads an input has left behind
