"""How many operations and bytes of cache a second does attention reach, by shape, depth and ISA?

One JSON object a line: giga-operations (4 a visible key, query head and column) and gigabytes of
cache a second, the best of --repeat. Decode reads as many layers in turn as 512 MB hold, so that
the cache comes from memory, as in a model. DURE_ISA in the environment picks one set; without it,
all are run.
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

SHAPES = {  # query heads, key-value heads, head_dim
    "qwen2.5-1.5b": (12, 2, 128),
    "qwen2.5-0.5b": (14, 2, 64),
    "smollm2-135m": (9, 3, 64),
    "qwen3-30b-a3b": (32, 4, 128),
    "llama2-7b": (32, 32, 128),
    "gpt-oss-20b": (64, 8, 64),
    "qwen3.6-35b-a3b": (16, 2, 256),
}
LAYER_BYTES = 512 << 20


def measure(
    shape: tuple[int, int, int], rows: int, depth: int, threads: int, repeat: int
) -> dict[str, float]:
    """Speeds of `rows` new rows of one sequence that holds `depth` tokens."""
    heads, kv_heads, d = shape
    draw = np.random.default_rng(0)
    tokens = depth + rows
    blocks = -(-tokens // 32)
    layer_bytes = blocks * 32 * kv_heads * 2 * d * 2
    layers = max(1, min(64, LAYER_BYTES // layer_bytes)) if rows == 1 else 1
    one = draw.standard_normal((blocks, kv_heads, 64 * d)).astype(np.float16)
    caches = [one.copy() for _ in range(layers)]
    q = draw.standard_normal((rows, heads, d)).astype(np.float32)
    positions = np.arange(depth, tokens, dtype=np.int32)
    sequences = np.zeros(rows, np.int32)
    tables = np.arange(blocks, dtype=np.int32)[None]
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        for cache in caches:
            kernels.paged_attention(
                q, cache, positions, sequences, tables, scale=d**-0.5, threads=threads
            )
        seconds.append((time.perf_counter() - start) / layers)
    best = min(seconds[1:])
    visible = rows * depth + rows * (rows + 1) // 2
    return {
        "us": round(best * 1e6, 1),
        "gops": round(4 * visible * heads * d / best / 1e9, 1),
        "gb_per_s": round(tokens * kv_heads * 4 * d / best / 1e9, 2),
    }


def main() -> None:
    """Run the whole table, each instruction set in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 512])
    parser.add_argument("--depth", nargs="+", type=int, default=[0, 512, 4096, 16384])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if "DURE_ISA" not in os.environ:
        for isa in kernels.available_isas():
            environment = {**os.environ, "DURE_ISA": isa}
            subprocess.run([sys.executable, *sys.argv], env=environment, check=True)
        return
    for name in options.shapes:
        for rows in options.rows:
            for depth in options.depth:
                speeds = measure(SHAPES[name], rows, depth, options.threads, options.repeat)
                facts = {"isa": kernels.isa(), "shape": name, "rows": rows, "depth": depth}
                print(json.dumps({**facts, "threads": options.threads, **speeds}), flush=True)


if __name__ == "__main__":
    main()
