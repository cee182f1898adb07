"""The processor's name, from what Linux says of each core, of the machine, or from macOS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dure.processor import PARTS, name_in, processor_name

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 1\nmodel name\t: AMD  EPYC 7713\n\n"


def arm(*cores: tuple[int, int]) -> str:
    """/proc/cpuinfo of 64-bit ARM: what every core says of its maker and its kind."""
    return "".join(
        f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
        f"CPU implementer\t: {maker:#x}\nCPU architecture: 8\nCPU variant\t: 0x4\n"
        f"CPU part\t: {part:#05x}\nCPU revision\t: 1\n\n"
        for index, (maker, part) in enumerate(cores)
    )


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        (arm((0x41, 0xD0C), (0x41, 0xD0C)), "", "Neoverse N1"),  # Graviton 2, Ampere Altra
        (arm((0x41, 0xD40)), "", "Neoverse V1"),  # Graviton 3
        (arm((0x41, 0xD4F)), "", "Neoverse V2"),  # Graviton 4, Grace
        (arm((0x41, 0xD49)), "", "Neoverse N2"),
        (arm((0xC0, 0xAC3)), "", "AmpereOne"),
        (arm((0x48, 0xD01)), "", "Kunpeng 920"),
        (arm((0x41, 0xD03)), "", "Cortex-A53"),
        (
            arm(*[(0x41, 0xD0B)] * 4),
            "Raspberry Pi 5 Model B Rev 1.0\0",
            "Raspberry Pi 5 Model B Rev 1.0 (Cortex-A76)",
        ),
        (arm((0x41, 0xD05), (0x41, 0xD05), (0x41, 0xD0B)), "", "Cortex-A55 and Cortex-A76"),
        (
            arm((0x61, 0x022), (0x61, 0x023)),
            "Apple MacBook Air (M1, 2020)\0",
            "Apple MacBook Air (M1, 2020) (Apple M1)",
        ),
        (arm((0x41, 0xABC)), "", "ARM processor (implementer 0x41, part 0xabc)"),
        (arm((0x99, 0x1)), "", "ARM processor (implementer 0x99, part 0x001)"),
        ("CPU implementer\t: 0x41\n", "", "ARM processor"),
        ("CPU implementer\t: 0x41\nCPU part\t: new\n", "A board", "A board (ARM processor)"),
        (
            "processor\t: 0\nmodel name\t: ARMv8 Processor rev 3 (v8l)\n" + arm((0x41, 0xD08)),
            "",
            "Cortex-A72",
        ),
        (X86, "", "AMD EPYC 7713"),
        (X86, "A board", "AMD EPYC 7713"),
        ("", "", ""),
        ("processor\t: 0\nhart\t: 1\n", "", ""),
    ],
)
def test_a_processor_has_the_name_that_its_cores_stand_for(
    cpuinfo: str, board: str, name: str
) -> None:
    assert name_in(cpuinfo, board) == name


def test_no_kind_of_core_stands_for_two_makers_names() -> None:
    names = [name for parts in PARTS.values() for name in set(parts.values())]
    assert len(names) == len(set(names))


def test_the_files_of_linux_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(arm((0x41, 0xD08)))
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert processor_name(tmp_path) == "Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)"


def test_macos_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "Apple M2\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert processor_name(tmp_path) == ""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processor_name(tmp_path) == "Apple M2"
    assert [each[-1] for each in asked] == ["machdep.cpu.brand_string"]

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert processor_name(tmp_path) == ""
