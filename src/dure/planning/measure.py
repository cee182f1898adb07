"""Measures this machine once, and keeps what was found for the next plan."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from dure import kernels, machine
from dure.batch import CacheDtype
from dure.errors import DureError, InvalidRequestError
from dure.hub.store import state_folder
from dure.kernels import _core
from dure.metering.energy import CPUINFO
from dure.metering.estimates import Watts, published_watts
from dure.planning import probes
from dure.planning.machine import FORMAT, AttentionSpeed, Machine, read_machine, write_machine
from dure.processor import PROC, cpuinfo_fields, processor_name

SECONDS = 15.0
"""After which no further type is measured: with what comes beside, it is below 20."""

DISK_PIECE, DISK_PIECES, DISK_READERS = 2 << 20, 32, 4
"""Bytes of a read, how many, and how many at once: as experts are read."""

STEP_LAYERS = 6.0
"""What a step takes besides its layers, in layers: embedding, last norm, the batch itself. With
SmolLM2 135M these were 0.9 ms, and a layer 0.15."""

STAT = Path("/proc/stat")

BUSY_SHARE = 0.05
"""Of the processors: if other programs take more while a machine is measured, it is said."""


def this_machine(
    threads: int | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Machine:
    """Return this machine, as it was measured before, or measured now and kept.

    It is measured anew when the processor, the instruction set (DURE_ISA), the threads or dure's
    kernels are others than before, and when the file is damaged. threads: the cores, if None;
    progress: is told what is measured next; folder: of the files, else dure's own.
    """
    threads = machine.usable_threads() if threads is None else threads
    kept = kept_machine(threads, folder=folder)
    if kept is not None:
        return kept
    found = measure(threads, progress=progress)
    path = _path(threads, folder)
    if path is not None:
        with suppress(OSError):  # a folder that cannot be written to: it is measured each time
            write_machine(found, path)
    return found


def kept_machine(threads: int | None = None, *, folder: Path | None = None) -> Machine | None:
    """Return this machine as it was measured before; None if `this_machine` would measure it."""
    path = _path(machine.usable_threads() if threads is None else threads, folder)
    if path is None or not path.is_file():
        return None
    try:
        return read_machine(path)
    except InvalidRequestError:
        return None


def _path(threads: int, folder: Path | None) -> Path | None:
    """Return this machine's file; None if there is no home folder to keep it in."""
    try:
        return (folder or state_folder("machines")) / f"{machine_key(threads)}.json"
    except DureError:
        return None


def machine_key(threads: int) -> str:
    """Return what names this machine's file: processor, instruction set, threads and kernels."""
    facts = processor(), kernels.isa(), threads, kernels_version(), FORMAT
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()


@cache
def kernels_version() -> str:
    """Return what tells these kernels from others: a digest of the extension's file."""
    content = Path(_core.__file__).read_bytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def processor(proc: Path = PROC) -> str:
    """Return the processor's name, with family and model where a virtual machine hides the name.

    proc: see `processor_name`. ARM has neither family nor model.
    """
    name, found = processor_name(proc) or "unknown processor", cpuinfo_fields(proc / "cpuinfo")
    if "cpu family" in found:
        name = f"{name} (family {found['cpu family']}, model {found.get('model', '?')})"
    return name[:120]


def measure(
    threads: int | None = None,
    *,
    watts: Watts | None = None,
    seconds: float = SECONDS,
    progress: Callable[[str], None] | None = None,
) -> Machine:
    """Measure this machine, in under 20 seconds.

    A file of 64 MB is written in dure's folder, read and removed. watts: of the machine idle and
    busy, as the operator names them; without, the processor's published TDP. seconds: of measuring
    products, after which types that are left take the speed of others.
    """
    threads = machine.usable_threads() if threads is None else threads
    say = progress or (lambda _: None)
    begun, idle = time.perf_counter(), Others()
    say("memory")
    read_1, read_all = probes.memory_read(1), probes.memory_read(threads)
    attention: dict[str, AttentionSpeed] = {}
    cache_types: tuple[CacheDtype, ...] = ("f16", "q8")
    for kind in cache_types:
        say(f"attention, {kind}")
        found = probes.attention_speeds(kind, threads)
        attention |= {f"{kind} {rows}": speed for rows, speed in found.items()}
        found = probes.latent_speeds(kind, threads)
        attention |= {f"latent {kind} {rows}": speed for rows, speed in found.items()}
    say("layers")
    gops = {probes.Layer.DTYPE: probes.product_gops(probes.Layer.DTYPE, threads)}
    layers = probes.overheads(attention["f16 many"], threads)
    factors = probes.expert_factors(threads)
    delta = probes.delta_ns(threads)
    say("disk")
    disk_speed = disk_read()
    for count, dtype in enumerate(probes.TYPES):
        if count >= probes.LEAST and time.perf_counter() - begun > seconds:
            break
        if dtype in gops:
            continue
        say(f"products, {dtype}")
        gops[dtype] = probes.product_gops(dtype, threads)
    read_all = max(read_all, *(probes.packed_read(dtype, gops[dtype]) for dtype in gops))
    known = _watts(watts, threads)
    return Machine(
        processor=processor(),
        isa=kernels.isa(),
        threads=threads,
        kernels=kernels_version(),
        memory_bytes=machine.memory_available(),
        read_bytes_s_1=read_1,
        read_bytes_s=read_all,
        gops=gops,
        attention=attention,
        layer_s=layers.layer_s,
        element_s=layers.element_s,
        step_s=STEP_LAYERS * layers.layer_s,
        element_few_s=layers.element_few_s,
        expert_factors=factors,
        delta_ns=delta,
        disk_bytes_s=disk_speed,
        idle_watts=None if known is None else known[0].idle,
        busy_watts=None if known is None else known[0].busy,
        watts_from="unknown" if known is None else known[1],
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - begun, 2),
        assumed=_assumed(gops, disk_speed, idle.share()),
    )


def _watts(watts: Watts | None, threads: int) -> tuple[Watts, str] | None:
    if watts is not None:
        return watts, "watts"
    published = published_watts(CPUINFO, threads)
    return None if published is None else (published.watts, "tdp")


class Others:
    """What other programs take of the processors from now on."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._busy, self._all = self._read()
        self._own = time.process_time()

    def share(self) -> float:
        """Return their share, 0 to 1; 0 where nobody says."""
        busy, every = self._read()
        if every <= self._all:
            return 0.0
        own = (time.process_time() - self._own) * os.sysconf("SC_CLK_TCK")
        return min(1.0, max(0.0, (busy - self._busy - own) / (every - self._all)))

    def _read(self) -> tuple[int, int]:
        """Return the ticks that all processors were busy, and all ticks."""
        try:
            with self._stat.open(encoding="ascii") as file:
                ticks = [int(each) for each in file.readline().split()[1:9]]
        except (OSError, ValueError):
            return 0, 0
        idle = sum(ticks[3:5])
        return sum(ticks) - idle, sum(ticks)


def _assumed(
    gops: dict[str, tuple[float, ...]], disk_speed: float | None, others: float
) -> tuple[str, ...]:
    said = []
    if others > BUSY_SHARE:
        said.append(
            f"the machine was measured while other programs took {others:.0%} of its processors, "
            "so it is faster than this"
        )
    if len(gops) < len(probes.TYPES):
        left = ", ".join(dtype for dtype in probes.TYPES if dtype not in gops)
        said.append(f"there was no time to measure {left}")
    if disk_speed is None:
        said.append("the disk could not be measured, so waiting for it is left out")
    return tuple(said)


def disk_read() -> float | None:
    """Measure bytes a second of large reads past the page cache, some at once, all over a file.

    It is a scratch file in dure's folder; None if there can be none.
    """
    try:
        folder = state_folder("machines")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="disk-", suffix=".tmp") as file:
            piece = os.urandom(DISK_PIECE)
            for _ in range(DISK_PIECES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            return _read_all_over(Path(file.name))
    except (DureError, OSError, EOFError):
        return None


def _read_all_over(path: Path) -> float | None:
    size = path.stat().st_size
    pieces = min(DISK_PIECES, size // DISK_PIECE)
    if pieces < DISK_READERS:
        return None
    step = (size // DISK_PIECE) // pieces * DISK_PIECE
    offsets = [(index * 7 % pieces) * step for index in range(pieces)]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        files = [kernels.DirectFile(descriptor) for _ in range(DISK_READERS)]
        with ThreadPoolExecutor(DISK_READERS) as pool:
            begun = time.perf_counter()
            list(
                pool.map(
                    lambda at: files[at[0] % DISK_READERS].read(at[1], DISK_PIECE).nbytes,
                    enumerate(offsets),
                )
            )
            return pieces * DISK_PIECE / (time.perf_counter() - begun)
    finally:
        os.close(descriptor)
