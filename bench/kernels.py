"""How many operations and bytes a second does a matrix product reach, by type, rows and ISA?

One JSON object a line: giga-operations (2 a weight and row) and gigabytes of packed weights a
second, the best of --repeat. DURE_ISA in the environment picks one set; without it, all are run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from dure import kernels
from dure.formats.blocks import BLOCKS, SUPPORTED

# The largest matrix of Qwen2.5-1.5B: 13.8 million weights, beyond the caches of most machines.
ROWS, COLS = 8960, 1536


def random_weights(dtype: str, rows: int, cols: int) -> kernels.Matrix:
    """A packed matrix of random blocks. Its values are noise; the arithmetic does not mind."""
    block = BLOCKS[dtype]
    draw = np.random.default_rng(0)
    matrix = kernels.Matrix(dtype, rows, cols)
    raw = draw.integers(0, 256, (rows, cols // block.block_size * block.block_bytes), np.uint8)
    if dtype in ("F32", "F16", "BF16"):
        # Random bits would be subnormal or not a number here and there, which some units slow down.
        values = draw.standard_normal((rows, cols)).astype(np.float32)
        half = values.astype(np.float16) if dtype == "F16" else values.view(np.uint32) >> 16
        raw = values if dtype == "F32" else half.astype(half.dtype if dtype == "F16" else "<u2")
        raw = np.ascontiguousarray(raw).view(np.uint8)
    matrix.fill(0, raw)
    return matrix


def measure(matrix: kernels.Matrix, rows: int, threads: int, repeat: int) -> dict[str, float]:
    """Speeds of `rows` rows of activations times the matrix: the best of `repeat` calls."""
    x = np.random.default_rng(1).standard_normal((rows, matrix.cols)).astype(np.float32)
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        kernels.matmul(x, matrix, threads=threads)
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    operations = 2 * rows * matrix.rows * matrix.cols
    return {
        "ms": round(best * 1e3, 3),
        "gops": round(operations / best / 1e9, 1),
        "gb_per_s": round(matrix.nbytes / best / 1e9, 2),
    }


def main() -> None:
    """Run the whole table, each instruction set in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--types", nargs="+", default=list(SUPPORTED), choices=SUPPORTED)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if "DURE_ISA" not in os.environ:
        for isa in kernels.available_isas():
            environment = {**os.environ, "DURE_ISA": isa}
            subprocess.run([sys.executable, *sys.argv], env=environment, check=True)
        return
    for dtype in options.types:
        matrix = random_weights(dtype, ROWS, COLS)
        for rows in options.rows:
            speeds = measure(matrix, rows, options.threads, options.repeat)
            facts = {"isa": kernels.isa(), "type": dtype, "rows": rows, "threads": options.threads}
            print(json.dumps({**facts, **speeds}), flush=True)


if __name__ == "__main__":
    main()
