"""What the doctor says of a machine, from its /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from dure import machine
from dure.loading.doctor import Finding, examine


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def found(root: Path) -> dict[str, Finding]:
    return {each.what: each for each in examine(root)}


def test_a_slow_machine_is_told_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda *_: 0.5)
    monkeypatch.setattr(machine, "memory_available", lambda: 10**9)
    put(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name\t: A Processor\n",
            "proc/loadavg": "999.00 1 1 1/1 1\n",
            "proc/meminfo": "SwapTotal: 8000 kB\nSwapFree: 1000 kB\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/node/node0/cpulist": "0",
            "sys/devices/system/node/node1/cpulist": "1",
        },
    )
    seen = found(tmp_path)
    assert seen["processor"].found == "A Processor"
    assert "0.5 processors" in seen["threads"].advice
    assert "echo madvise" in seen["huge pages"].advice
    assert "numactl" in seen["NUMA"].advice
    assert "performance" in seen["clock"].advice
    for what in ("other work", "memory", "swap"):
        assert seen[what].advice


def test_an_arm_processor_has_a_name(tmp_path: Path) -> None:
    cpuinfo = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    put(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert found(tmp_path)["processor"].found == "Neoverse V1"


def test_what_is_not_slow_gets_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_available", lambda: 10**11)
    put(
        tmp_path,
        {
            "proc/loadavg": "0.00 1 1 1/1 1\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/node/node0/cpulist": "0",
        },
    )
    seen = found(tmp_path)
    assert {"kernels", "threads", "memory", "huge pages", "NUMA", "clock"} <= seen.keys()
    assert not any(seen[what].advice for what in ("memory", "huge pages", "NUMA", "clock"))
    assert "other work" not in seen and "swap" not in seen


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert {"kernels", "threads", "memory"} <= found(tmp_path).keys()
