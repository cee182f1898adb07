"""What this machine's processor is called."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")

MAX_BYTES = 1 << 16
"""Of /proc/cpuinfo, which repeats itself for every core; the first cores are enough."""

SYSCTL = ("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
"""What macOS has in place of /proc."""

PARTS: Mapping[int, Mapping[int, str]] = {
    0x41: {
        0xD02: "Cortex-A34",
        0xD03: "Cortex-A53",
        0xD04: "Cortex-A35",
        0xD05: "Cortex-A55",
        0xD06: "Cortex-A65",
        0xD07: "Cortex-A57",
        0xD08: "Cortex-A72",
        0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75",
        0xD0B: "Cortex-A76",
        0xD0C: "Neoverse N1",
        0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE",
        0xD40: "Neoverse V1",
        0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE",
        0xD44: "Cortex-X1",
        0xD46: "Cortex-A510",
        0xD47: "Cortex-A710",
        0xD48: "Cortex-X2",
        0xD49: "Neoverse N2",
        0xD4A: "Neoverse E1",
        0xD4B: "Cortex-A78C",
        0xD4C: "Cortex-X1C",
        0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3",
        0xD4F: "Neoverse V2",
        0xD80: "Cortex-A520",
        0xD81: "Cortex-A720",
        0xD82: "Cortex-X4",
        0xD84: "Neoverse V3",
        0xD85: "Cortex-X925",
        0xD87: "Cortex-A725",
        0xD8E: "Neoverse N3",
    },
    0x43: {0x0AF: "ThunderX2"},
    0x46: {0x001: "A64FX"},
    0x48: {0xD01: "Kunpeng 920", 0xD02: "TaiShan v120"},
    0x4E: {0x004: "NVIDIA Carmel"},
    0x51: {
        0x001: "Qualcomm Oryon",
        0x802: "Kryo 3xx Gold",
        0x803: "Kryo 3xx Silver",
        0x804: "Kryo 4xx Gold",
        0x805: "Kryo 4xx Silver",
    },
    0x61: {
        0x022: "Apple M1",
        0x023: "Apple M1",
        0x024: "Apple M1 Pro",
        0x025: "Apple M1 Pro",
        0x028: "Apple M1 Max",
        0x029: "Apple M1 Max",
        0x032: "Apple M2",
        0x033: "Apple M2",
        0x034: "Apple M2 Pro",
        0x035: "Apple M2 Pro",
        0x038: "Apple M2 Max",
        0x039: "Apple M2 Max",
    },
    0x6D: {0xD49: "Azure Cobalt 100"},
    0x70: {0x662: "Phytium FTC662", 0x663: "Phytium FTC663", 0x862: "Phytium FTC862"},
    0xC0: {0xAC3: "AmpereOne", 0xAC4: "AmpereOne A"},
}
"""By the implementer and the part that an ARM core says of itself: both are in its MIDR."""


def processor_name(proc: Path = PROC) -> str:
    """Return the processor's name; an empty text where nobody says it.

    proc: the folder that the kernel tells of itself in. Without one, macOS is asked.
    """
    cpuinfo = _read(proc / "cpuinfo")
    if not cpuinfo and sys.platform == "darwin":
        return _of_macos()
    return name_in(cpuinfo, _read(proc / "device-tree" / "model"))


def cpuinfo_fields(cpuinfo: Path) -> dict[str, str]:
    """Return what /proc/cpuinfo, or a file like it, says of the first core; nothing without one."""
    return _fields(_read(cpuinfo))


def name_in(cpuinfo: str, board: str = "") -> str:
    """Return the name that /proc/cpuinfo's text says, or stands for; an empty text without one.

    On ARM it has a number for each core's maker and kind, which are in our tables or shown as they
    are. board: what the device tree calls the machine, if it has one: a name that people know.
    """
    if "CPU implementer" not in cpuinfo:
        return " ".join(_fields(cpuinfo).get("model name", "").split())
    cores = " and ".join(dict.fromkeys(_cores_in(cpuinfo))) or "ARM processor"
    board = " ".join(board.replace("\0", " ").split())
    return f"{board} ({cores})" if board else cores


def _fields(cpuinfo: str) -> dict[str, str]:
    return dict(reversed(re.findall(r"^([\w ]+?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)))


def _cores_in(cpuinfo: str) -> list[str]:
    """Return the names of all cores, in order."""
    said = re.findall(
        r"^CPU (implementer|part)[ \t]*:[ \t]*(0x[0-9a-f]{1,8})[ \t]*$",
        cpuinfo,
        re.MULTILINE | re.IGNORECASE,
    )
    names, maker = [], 0
    for what, number in said:  # of each core its maker first
        if what.lower() == "implementer":
            maker = int(number, 16)
        else:
            names.append(_core(maker, int(number, 16)))
    return names


def _core(maker: int, part: int) -> str:
    unknown = f"ARM processor (implementer {maker:#04x}, part {part:#05x})"
    return PARTS.get(maker, {}).get(part, unknown)


def _of_macos() -> str:
    try:
        done = subprocess.run(SYSCTL, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return ""
