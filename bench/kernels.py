"""How near do matrix products and experts come to the machine's limits, by type, rows and ISA?

Prints a Markdown table for each instruction set: giga-operations a second (2 a weight and row), and
for one row gigabytes of packed weights a second, beside what limits.py measures in the same
process: what memory gives, and int8 dot products (for float weights: FMA) out of registers. Each
figure is the best of --repeat; --json appends all of them to a file. Few rows take as many matrices
in turn as 256 MB hold, so that weights come from memory, as in a model. DURE_ISA in the environment
picks one set; without it, all are run. attention.py asks the same of attention.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import limits
import numpy as np

from dure import kernels
from dure.formats.blocks import BLOCKS, SUPPORTED
from dure.kernels.dequantize import LAYOUTS, OWN_TYPES

# The largest matrix of Qwen2.5-1.5B, and the experts of Qwen3-30B-A3B.
ROWS, COLS = 8960, 1536
EXPERTS, CHOSEN, HIDDEN, INTERMEDIATE = 128, 8, 2048, 768
STREAMED_BYTES = 256 << 20  # beyond most caches
STREAMED_ROWS = 16  # up to which weights are read faster than they are used
FLOATS = ("F32", "F16", "BF16")
DOWNLOADED = ("Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q8_0", "Q4_0", "Q4_1", "IQ4_XS", "BF16", "F16")


def random_blocks(dtype: str, rows: int, cols: int) -> np.ndarray:
    """Source blocks (rows, row_bytes). Their values are noise; the arithmetic does not mind."""
    block = BLOCKS[dtype]
    draw = np.random.default_rng(0)
    if dtype in FLOATS:
        # Random bits would be subnormal or not a number here and there, which some units slow down.
        values = draw.standard_normal((rows, cols)).astype(np.float32)
        if dtype == "F16":
            return values.astype("<f2").view(np.uint8)
        if dtype == "BF16":
            return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        return values.view(np.uint8)
    raw = draw.integers(0, 256, (rows, cols // block.block_size * block.block_bytes), np.uint8)
    if dtype in OWN_TYPES:  # as of floats
        raw.view(LAYOUTS[dtype])["scale"] = 0.01
        if "min" in (LAYOUTS[dtype].names or ()):
            raw.view(LAYOUTS[dtype])["min"] = -0.01
    return raw


def random_matrices(dtype: str) -> list[kernels.Matrix]:
    """As many equal packed matrices as STREAMED_BYTES hold."""
    raw = random_blocks(dtype, ROWS, COLS)
    count = -(-STREAMED_BYTES // kernels.packed_bytes(dtype, ROWS, COLS))
    matrices = [kernels.Matrix(dtype, ROWS, COLS) for _ in range(count)]
    for matrix in matrices:
        matrix.fill(0, raw)
    return matrices


def best_seconds(call: Callable[[int], object], count: int, repeat: int) -> float:
    """Seconds of a call, the mean of calls 0 to count - 1: the best of `repeat` after a warm-up."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        for index in range(count):
            call(index)
        seconds.append((time.perf_counter() - start) / count)
    return min(seconds[1:])


def figures(seconds: float, operations: int, weight_bytes: int) -> dict[str, float]:
    """Speeds of one call."""
    return {
        "ms": round(seconds * 1e3, 3),
        "gops": round(operations / seconds / 1e9, 1),
        "gb_per_s": round(weight_bytes / seconds / 1e9, 2),
    }


def measure_matmul(
    matrices: list[kernels.Matrix], rows: int, threads: int, repeat: int
) -> dict[str, float]:
    """Speeds of `rows` rows of activations times a matrix."""
    x = np.random.default_rng(1).standard_normal((rows, COLS)).astype(np.float32)
    count = len(matrices) if rows <= STREAMED_ROWS else 1
    seconds = best_seconds(
        lambda index: kernels.matmul(x, matrices[index], threads=threads), count, repeat
    )
    return figures(seconds, 2 * rows * ROWS * COLS, matrices[0].nbytes)


def random_experts(dtype: str) -> kernels.Experts:
    """The experts of one layer."""
    experts = kernels.Experts(EXPERTS, HIDDEN, INTERMEDIATE, dtype, dtype, dtype)
    wide = random_blocks(dtype, INTERMEDIATE, HIDDEN)
    tall = random_blocks(dtype, HIDDEN, INTERMEDIATE)
    for expert in range(EXPERTS):
        experts.fill("gate", expert, wide)
        experts.fill("up", expert, wide)
        experts.fill("down", expert, tall)
    return experts


def measure_experts(
    experts: kernels.Experts, rows: int, threads: int, repeat: int
) -> dict[str, float]:
    """Speeds of one layer's experts, each of `rows` rows taking CHOSEN of them at random."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((rows, HIDDEN)).astype(np.float32)
    count = 16 if rows <= STREAMED_ROWS else 1  # other experts in each call
    scores = draw.random((count, rows, EXPERTS))
    ids = np.ascontiguousarray(np.argsort(scores)[:, :, :CHOSEN].astype(np.int32))
    weights = np.full((rows, CHOSEN), 1 / CHOSEN, np.float32)
    seconds = best_seconds(
        lambda index: kernels.experts_mlp(x, ids[index], weights, experts, threads=threads),
        count,
        repeat,
    )
    distinct = sum(len(np.unique(chosen)) for chosen in ids) / count
    operations = 2 * rows * CHOSEN * 3 * HIDDEN * INTERMEDIATE
    return figures(seconds, operations, int(experts.nbytes / EXPERTS * distinct))


def measure_all(options: argparse.Namespace) -> list[dict[str, str | int | float]]:
    """Every figure: of each type, and of the experts in Q4_K, by rows."""
    found: list[dict[str, str | int | float]] = []

    def add(what: str, rows: int, speeds: dict[str, float]) -> None:
        facts = {"isa": kernels.isa(), "what": what, "rows": rows, "threads": options.threads}
        found.append({**facts, **speeds})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)

    for dtype in options.types:
        matrices = random_matrices(dtype)
        for rows in options.rows:
            add(dtype, rows, measure_matmul(matrices, rows, options.threads, options.repeat))
    if options.experts:
        experts = random_experts("Q4_K")
        for rows in options.rows:
            speeds = measure_experts(experts, rows, options.threads, options.repeat)
            add("experts, Q4_K", rows, speeds)
    return found


def table(found: list[dict[str, str | int | float]], threads: int) -> str:
    """GOP/s by rows, and GB/s of one row with its share of the limit."""
    isa = kernels.isa()
    read = limits.memory_read(threads)
    peaks = "no peak for this set"
    if isa in limits.available():
        dots, fmas = (limits.peak(isa, name, threads) for name in ("int8_dots", "float_fmas"))
        peaks = f"int8 dots {dots} GOP/s, float32 FMA {fmas} GFLOP/s"
    rows = sorted({int(figure["rows"]) for figure in found})
    lines = [
        f"{isa}, {threads} threads; limits: memory {read} GB/s, {peaks}.",
        "",
        "| GOP/s | " + " | ".join(f"{n} rows" for n in rows) + f" | {rows[0]} rows, GB/s |",
        "|---" * (len(rows) + 2) + "|",
    ]
    for what in dict.fromkeys(figure["what"] for figure in found):
        own = [figure for figure in found if figure["what"] == what]
        speed = float(own[0]["gb_per_s"])
        cells = [*(str(figure["gops"]) for figure in own), f"{speed} ({speed / read:.0%})"]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the whole table, each instruction set in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    ours = ("I4G", "F8G", "I8G", "U8G", "NV4G")
    known = [dtype for dtype in SUPPORTED if dtype in DOWNLOADED or dtype.startswith(ours)]
    parser.add_argument("--types", nargs="*", default=known, choices=SUPPORTED)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16, 32, 512])
    parser.add_argument("--no-experts", dest="experts", action="store_false")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file that every figure is appended to")
    options = parser.parse_args()
    if "DURE_ISA" not in os.environ:
        for isa in kernels.available_isas():
            environment = {**os.environ, "DURE_ISA": isa}
            subprocess.run([sys.executable, *sys.argv], env=environment, check=True)
        return
    options.rows.sort()
    found = measure_all(options)
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(figure) + "\n" for figure in found)
    print(table(found, options.threads), flush=True)


if __name__ == "__main__":
    main()
