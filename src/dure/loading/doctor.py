"""What of this machine makes a model slow, and why: each finding with what can be done."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dure import hub, kernels, machine
from dure.processor import processor_name

LEAST_DISK_BYTES = 10**9
LEAST_MEMORY_BYTES = 2 * 10**9

_SLOW = {
    "portable": "kernels without vector instructions, tens of times slower; "
    "a processor with AVX2 or NEON has others",
    "avx2": "8-bit products take several instructions; AVX-VNNI or AVX-512 VNNI is faster",
    "neon": "8-bit products take several instructions; ARM's dot products (dotprod) are faster",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `advice` is empty where nothing is slow."""

    what: str
    found: str
    advice: str = ""


def examine(root: Path = Path("/")) -> list[Finding]:
    """Look at the machine, and at the limits of this process.

    root: of the file system whose /proc and /sys are read. What cannot be read is left out.
    """
    return [
        *_processor(root),
        *_isa(),
        *_cores(root),
        *_governor(root),
        *_huge_pages(root),
        *_numa(root),
        *_memory(root),
        *_disk(),
    ]


def _processor(root: Path) -> Iterator[Finding]:
    name = processor_name(root / "proc")
    if name:
        yield Finding("processor", name)


def _isa() -> Iterator[Finding]:
    used, best = kernels.isa(), kernels.available_isas()
    advice = _SLOW.get(used, "")
    if os.environ.get("DURE_ISA") and best and used != best[0]:
        advice = f"DURE_ISA asks for it; without, {best[0]} is used"
    yield Finding("kernels", f"{used} of {', '.join(best)}", advice)


def _cores(root: Path) -> Iterator[Finding]:
    threads, there = machine.usable_threads(), os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    advice = ""
    if allowed < there:
        advice = f"affinity allows {allowed} of {there} logical processors (taskset, cpuset)"
    quota = machine.cpu_quota()
    if quota is not None and quota < allowed:
        advice = f"a control group allows the time of {quota:g} processors: give the container more"
    yield Finding("threads", f"{threads}, of {there} logical processors", advice)
    load = _read(root, "proc/loadavg").split()
    if load and float(load[0]) > max(1, there // 2):
        yield Finding(
            "other work",
            f"{load[0]} runnable in the last minute",
            "other programs take processors: a step waits for its slowest thread",
        )


def _governor(root: Path) -> Iterator[Finding]:
    told = _read(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    if told:
        slow = told in ("powersave", "conservative") and not _read(
            root, "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference"
        )
        yield Finding("clock", told, "cpupower frequency-set -g performance" if slow else "")


def _huge_pages(root: Path) -> Iterator[Finding]:
    folder = "sys/kernel/mm/transparent_hugepage"
    match = re.search(r"\[(\w+)\]", _read(root, f"{folder}/enabled"))
    if match is not None:
        advice = ""
        if match[1] == "never":
            advice = f"weights in 4 kB pages miss the TLB: echo madvise > /{folder}/enabled"
        yield Finding("huge pages", match[1], advice)


def _numa(root: Path) -> Iterator[Finding]:
    nodes = list((root / "sys/devices/system/node").glob("node[0-9]*"))
    if nodes:
        advice = ""
        if len(nodes) > 1:
            advice = (
                "threads read weights of the other node: numactl --cpunodebind=0 --membind=0, or "
                "--interleave=all for a model larger than one"
            )
        yield Finding("NUMA", f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}", advice)


def _memory(root: Path) -> Iterator[Finding]:
    free = machine.memory_available()
    advice = "" if free >= LEAST_MEMORY_BYTES else "little for a model: end other programs"
    yield Finding("memory", f"{hub.human_bytes(free)} free", advice)
    numbers = dict(re.findall(r"^(Swap\w+):\s*(\d+) kB", _read(root, "proc/meminfo"), re.MULTILINE))
    total, left = int(numbers.get("SwapTotal", 0)), int(numbers.get("SwapFree", 0))
    if total and total - left > total // 4:
        used = hub.human_bytes((total - left) * 1024)
        yield Finding("swap", f"{used} in use", "memory was short: what swapped is slow at first")


def _disk() -> Iterator[Finding]:
    folder = hub.state_folder("models")
    there = next((each for each in [folder, *folder.parents] if each.is_dir()), None)
    if there is not None:
        free = shutil.disk_usage(there).free
        advice = "" if free >= LEAST_DISK_BYTES else "set DURE_HOME to a folder on a larger disk"
        yield Finding("disk", f"{hub.human_bytes(free)} free for models in {folder}", advice)


def _read(root: Path, name: str) -> str:
    try:
        return (root / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
