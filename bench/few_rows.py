"""What does a matrix product of a few rows cost over one of one row, by type and shape?

    python bench/few_rows.py [--types Q4_K Q6_K …] [--shapes 8960x1536 …] [--rounds 15]

Prints a Markdown table. Speculation lives on these figures: a token and its drafts are rows of one
step. The numbers of rows take turns within a round, in an order that is drawn, so that a machine
that becomes slower does so for all; a figure is the median over the rounds of that round's cost
over its own product of one row. Each product reads the next of as many matrices as --stream holds,
so that weights come from memory, as in a model. rows.py asks the same of a whole model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
from kernels import random_blocks

from dure import kernels

TYPES = ("Q4_K", "Q6_K", "Q5_K", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
SHAPES = ("8960x1536", "1536x8960", "1536x1536")  # Qwen2.5-1.5B: gate and up, down, attention


class Products:
    """Equal matrices of one type and shape, read in turn, and the rows that they multiply."""

    def __init__(self, dtype: str, shape: str, most: int, stream_mb: int, threads: int) -> None:
        rows, columns = map(int, shape.split("x"))
        raw = random_blocks(dtype, rows, columns)
        count = max(1, (stream_mb << 20) // kernels.packed_bytes(dtype, rows, columns))
        self.matrices = [kernels.Matrix(dtype, rows, columns) for _ in range(count)]
        for matrix in self.matrices:
            matrix.fill(0, raw)
        self.x = np.random.default_rng(1).standard_normal((most, columns), np.float32)
        self.threads = threads

    def seconds(self, rows: int) -> float:
        """Time a product of the first `rows` rows: the mean over all matrices."""
        x = self.x[:rows]
        begun = time.perf_counter()
        for matrix in self.matrices:
            kernels.matmul(x, matrix, threads=self.threads)
        return (time.perf_counter() - begun) / len(self.matrices)

    def costs(self, sizes: list[int], rounds: int) -> dict[int, list[float]]:
        """Time each number of rows once a round."""
        draw = random.Random(2)
        costs: dict[int, list[float]] = {size: [] for size in sizes}
        for turn in range(rounds + 1):
            for size in draw.sample(sizes, len(sizes)):
                seconds = self.seconds(size)
                if turn:  # the first round fills the caches
                    costs[size].append(seconds)
        return costs


def line(dtype: str, shape: str, costs: dict[int, list[float]]) -> str:
    """Return one line of the table."""
    cells = [dtype, shape, f"{1e6 * statistics.median(costs[1]):.0f}"]
    for size, times in costs.items():
        if size > 1:
            each = [a / b for a, b in zip(times, costs[1], strict=True)]
            cells.append(f"{statistics.median(each):.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="besides one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stream", type=int, default=64, help="MB of matrices, read in turn")
    options = parser.parse_args()
    sizes = sorted({1, *options.rows})
    print(f"| {kernels.isa()}, {options.threads} threads | shape | 1 row, us | ", end="")
    print(" | ".join(map(str, sizes[1:])) + " |")
    print("|---" * (len(sizes) + 2) + "|")
    for dtype in options.types:
        for shape in options.shapes:
            products = Products(dtype, shape, sizes[-1], options.stream, options.threads)
            print(line(dtype, shape, products.costs(sizes, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
