"""Cores and memory as the kernel tells them, read from folders that a test lays out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dure import machine

GIB = 1 << 30


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs, and 16 GiB that can be had."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    monkeypatch.setattr(machine, "MEMORY", Path("/nonexistent"))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, core in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        write(tmp_path / f"cpu{cpu}" / "topology", core_cpus_list=core)
    assert machine.usable_threads(tmp_path / "none", tmp_path, tmp_path / "none") == 2


def test_without_a_topology_each_cpu_counts(tmp_path: Path) -> None:
    assert machine.usable_threads(tmp_path, tmp_path, tmp_path / "none") == 4


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 4), ("250000 100000", 2), ("800000 100000", 4), ("20000 100000", 1), ("?", 4)],
)
def test_a_cpu_quota_is_a_ceiling(tmp_path: Path, quota: str, threads: int) -> None:
    write(tmp_path, cpu__max=quota)
    assert machine.usable_threads(tmp_path, tmp_path / "none", tmp_path / "none") == threads


@pytest.mark.parametrize(
    "line", ["5:cpu,cpuacct:/jobs/7", "5:cpuacct,cpu:/jobs/7", "5:cpu:/jobs/7"]
)
@pytest.mark.parametrize("where", ["", "jobs", "jobs/7"])
def test_a_cpu_quota_of_the_first_version_of_cgroups_is_a_ceiling(
    tmp_path: Path, line: str, where: str
) -> None:
    write(tmp_path / "self", cgroup=f"4:memory:/other\n{line}\n0::/")
    for tree in (line.split(":")[1], "cpu"):  # both are there where the second is a link
        for group in ("", "jobs", "jobs/7"):
            write(tmp_path / tree / group, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
        write(tmp_path / tree / where, cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    membership = tmp_path / "self" / "cgroup"
    assert machine.usable_threads(tmp_path, tmp_path / "none", membership) == 2


def test_a_cpu_quota_is_found_where_the_tree_has_no_link(tmp_path: Path) -> None:
    write(tmp_path / "self", cgroup="5:cpu,cpuacct:/")
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    assert machine.usable_threads(tmp_path, tmp_path / "none", tmp_path / "self" / "cgroup") == 1


@pytest.mark.parametrize("limited", ["system.slice", "system.slice/dure.service"])
def test_a_services_own_cpu_quota_and_its_parents_are_ceilings(
    tmp_path: Path, limited: str
) -> None:
    write(tmp_path / "self", cgroup="0::/system.slice/dure.service")
    for group in ("system.slice", "system.slice/dure.service"):
        write(tmp_path / group, cpu__max="max 100000")
    write(tmp_path / limited, cpu__max="200000 100000")
    membership = tmp_path / "self" / "cgroup"
    assert machine.usable_threads(tmp_path, tmp_path / "none", membership) == 2


@pytest.mark.parametrize("quota", ["0 0", "-1 100000", "1", "", "a b c", "max max"])
def test_a_quota_that_makes_no_sense_is_none(tmp_path: Path, quota: str) -> None:
    write(tmp_path, cpu__max=quota)
    assert machine.usable_threads(tmp_path, tmp_path / "none", tmp_path / "none") == 4


def test_without_a_limit_the_machines_memory_is_available(tmp_path: Path) -> None:
    assert machine.memory_available(tmp_path, tmp_path / "none") == 16 * GIB


def test_memory_is_what_the_kernel_says_it_has_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, meminfo="MemTotal: 90 kB\nMemAvailable:    4096 kB\nBuffers: 7 kB")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    assert machine.memory_available(tmp_path, tmp_path / "none") == 4096 * 1024


def test_the_tightest_limit_of_any_parent_holds(tmp_path: Path) -> None:
    write(tmp_path / "self", cgroup="0::/system.slice/dure.service")
    usage = {"memory__current": str(GIB), "memory__stat": "anon 5\ninactive_file 0"}
    write(tmp_path / "system.slice", memory__max=str(5 * GIB), **usage)
    write(tmp_path / "system.slice/dure.service", memory__max="max", **usage)
    available = machine.memory_available(tmp_path, tmp_path / "self" / "cgroup")
    assert available == 4 * GIB


def test_file_pages_that_can_be_dropped_are_available(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {2 * GIB}\nactive_file 9"
    write(tmp_path, memory__max=str(4 * GIB), memory__current=str(3 * GIB), memory__stat=stat)
    assert machine.memory_available(tmp_path, tmp_path / "none") == 3 * GIB


def test_limits_of_the_first_version_of_cgroups_hold(tmp_path: Path) -> None:
    write(tmp_path / "self", cgroup="5:cpu,cpuacct:/\n4:memory:/jobs/7\n0::/")
    write(
        tmp_path / "memory/jobs/7",
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(GIB),
        memory__stat="total_inactive_file 4096",
    )
    available = machine.memory_available(tmp_path, tmp_path / "self" / "cgroup")
    assert available == GIB + 4096


def test_a_limit_that_is_overrun_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, memory__max="10", memory__current="20", memory__stat="inactive_file 0")
    assert machine.memory_available(tmp_path, tmp_path / "none") == 0
