"""The cores and the memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CORES = Path("/sys/devices/system/cpu")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")
MAPPED = Path("/proc/self/statm")


def usable_threads(
    cgroups: Path = CGROUPS, cores: Path = CORES, membership: Path = MEMBERSHIP
) -> int:
    """Return the number of threads to start: the usable physical cores, within CPU quotas."""
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
    else:
        allowed = set(range(os.cpu_count() or 1))
    physical = {_core_of(cpu, cores) for cpu in allowed}
    quota = cpu_quota(cgroups, membership)
    return max(1, len(physical) if quota is None else min(len(physical), round(quota)))


def memory_available(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that can be filled without swapping or being killed.

    The least of what the machine, the control groups and `ulimit -v` leave.
    """
    available = _in_the_machine()
    for room in (*map(_room_in, _control_groups("memory", cgroups, membership)), _in_the_process()):
        if room is not None:
            available = min(available, room)
    return max(0, available)


def process_bytes() -> int | None:
    """Return the memory that this process has filled, in bytes; None where nobody says."""
    try:
        return int(MAPPED.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _in_the_process() -> int | None:
    """Return the bytes left below `ulimit -v`; None without a limit.

    Mapped memory counts, used or not.
    """
    try:
        import resource  # noqa: PLC0415 - Windows has none

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        return limit - int(MAPPED.read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def _in_the_machine() -> int:
    """Return the bytes that the kernel has free or would free."""
    try:
        fields = MEMORY.read_text().split()
        return int(fields[fields.index("MemAvailable:") + 1]) * 1024
    except (OSError, ValueError, IndexError):
        # Not Linux, or a very old one; 30 ms to import, which every start would feel.
        import psutil  # type: ignore[import-untyped]  # noqa: PLC0415

        return int(psutil.virtual_memory().available)


def _core_of(cpu: int, cores: Path) -> str:
    """Name the physical core of `cpu`; hyperthreads of one core have the same name."""
    try:
        return (cores / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Return the CPUs that the tightest quota of our control groups allows; None without one."""
    quotas = map(_quota_in, _control_groups("cpu", cgroups, membership))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_in(folder: Path) -> float | None:
    """Return this control group's CPU time per time (v2 or v1); None if it is not limited."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        quota = int(limit) / int(period)  # v2 writes "max" for no limit, v1 writes -1
    except (ValueError, ZeroDivisionError):
        return None
    return quota if quota > 0 else None


def _control_groups(controller: str, cgroups: Path, membership: Path) -> list[Path]:
    """List the control groups, ours and all parents, whose limits of `controller` apply.

    In v2 one tree has all controllers; in v1 each controller has a tree of its own.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    folders = [cgroups]
    for line in lines:
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0":
            base = cgroups
        elif controller in controllers.split(","):
            base = _tree_of(controllers, controller, cgroups)
            folders.append(base)
        else:
            continue
        # Seen from inside a container the path may lead nowhere; its parents then do not exist.
        parts = Path(path.strip("/")).parts
        folders += [base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders


def _tree_of(controllers: str, controller: str, cgroups: Path) -> Path:
    """Return the v1 tree of `controller`, which shares "cpu,cpuacct" or has a folder of its own."""
    own = cgroups / controller
    return own if own.is_dir() else cgroups / controllers


def _room_in(folder: Path) -> int | None:
    """Return the bytes left below this control group's limit (v2 or v1); None without one."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit_name, usage_name, reclaimable_name in names:
        try:
            limit = int((folder / limit_name).read_text())
            usage = int((folder / usage_name).read_text())
            fields = (folder / "memory.stat").read_text().split()
        except (OSError, ValueError):  # ValueError: the limit is the word "max"
            continue
        # A file just read counts as used, though the kernel drops its pages when room is needed.
        stat = dict(zip(fields[::2], fields[1::2], strict=False))
        return limit - usage + int(stat.get(reclaimable_name, 0))
    return None
