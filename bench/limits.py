"""How fast can this machine read memory, and compute out of registers?

One JSON object a line, for 1 and --threads threads: the best of --repeat. The loops are limits.cpp,
compiled when this runs (the compiler that built dure will do), for AVX2, and for AVX-512 VNNI and
AMX where the machine has them. Linux on x86-64.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("limits.cpp")
FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avxvnni": ["-mavx2", "-mfma", "-mavxvnni"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512vnni"],
}
FLAGS["amx"] = [*FLAGS["avx512"], "-mamx-tile", "-mamx-int8"]
NEEDED = {  # in Linux's words
    "avx2": {"avx2", "fma"},
    "avxvnni": {"avx2", "fma", "avx_vnni"},
    "avx512": {"avx512_vnni", "avx512bw", "avx512vl"},
    "amx": {"avx512_vnni", "avx512bw", "avx512vl", "amx_tile", "amx_int8"},
}
READ_BYTES = 1 << 28  # a thread: beyond any cache
ROUNDS = 20_000_000  # some 0.05 s


def available() -> list[str]:
    """The instruction sets of FLAGS that this machine has, by Linux's /proc."""
    words = set(Path("/proc/cpuinfo").read_text("utf-8").split())
    return [isa for isa in FLAGS if NEEDED[isa] <= words]


def compiled(isa: str) -> ctypes.CDLL:
    """limits.cpp for one instruction set, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"limits_{isa}.so"
        flags = ["-O3", "-std=c++17", "-shared", "-fPIC", *FLAGS[isa]]
        subprocess.run(["c++", *flags, "-o", str(target), str(SOURCE)], check=True)
        library = ctypes.CDLL(str(target))
    library.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    for name in ("read_memory", "int8_dots", "float_fmas"):
        getattr(library, name).restype = ctypes.c_int64
    for name in ("int8_dots", "float_fmas"):
        getattr(library, name).argtypes = [ctypes.c_int64]
    return library


def rate(work: Callable[[int], int], threads: int, repeat: int) -> float:
    """Work a second, in 1e9, of `threads` threads that do it at once: the best of `repeat`."""
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            done = sum(pool.map(work, range(threads)))
            best = max(best, done / (time.perf_counter() - start) / 1e9)
    return round(best, 1)


def memory_read(threads: int, repeat: int = 5) -> float:
    """GB/s that `threads` threads read, each its own part of one array."""
    library = compiled("avx2")
    data = np.ones(threads * READ_BYTES + 64, np.uint8)
    first = data.ctypes.data + -data.ctypes.data % 64

    def read(thread: int) -> int:
        library.read_memory(first + thread * READ_BYTES, READ_BYTES)
        return READ_BYTES

    return rate(read, threads, repeat)


def peak(isa: str, function: str, threads: int, repeat: int = 5) -> float:
    """1e9 operations a second of limits.cpp's `int8_dots` or `float_fmas`."""
    compute = getattr(compiled(isa), function)
    return rate(lambda _: int(compute(ROUNDS)), threads, repeat)


def machine_limits(threads: int, repeat: int = 5) -> list[dict[str, float | int | str]]:
    """Each limit as {"limit", "unit", "threads", "rate"}, on one thread and on `threads`."""
    limits: list[dict[str, float | int | str]] = []
    for count in sorted({1, threads}):
        found = [("memory read", "GB/s", memory_read(count, repeat))]
        for isa in available():
            dots = peak(isa, "int8_dots", count, repeat)
            found.append((f"int8 dot products, {isa}", "GOP/s", dots))
            fmas = peak(isa, "float_fmas", count, repeat)
            found.append((f"float32 FMA, {isa}", "GFLOP/s", fmas))
        limits += [{"limit": n, "unit": u, "threads": count, "rate": r} for n, u, r in found]
    return limits


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    for limit in machine_limits(options.threads, options.repeat):
        print(json.dumps(limit), flush=True)


if __name__ == "__main__":
    main()
