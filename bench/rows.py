"""What does a step of several rows cost over a step of one? Prints Markdown tables.

    python bench/rows.py MODEL [--depth 512] [--rounds 15] [--heads] [--share 0.5 0.8] [--json FILE]

Rows of one sequence are consecutive positions, as a token and its drafts are; rows of several are a
token of each. Logits are computed of all. The numbers of rows take turns within a round, in another
order each time, so that a machine that becomes slower does so for all; a figure is the median over
the rounds of that round's cost over its own step of one.

--heads adds the cost of one draft by the checkpoint's own head, and --share what heads that are
right in such shares of cases can bring at most, by these costs, with as many drafts as are best.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from dure.batch import Batch
from dure.benchmark import DirectRunner
from dure.engine.block_pool import blocks_for
from dure.loading.load import load

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
Costs = dict[int, list[float]]  # rows -> seconds, one a round


class Steps:
    """A model whose `sequences` sequences hold `depth` tokens each, and steps on top of these.

    A step writes its rows behind the depth again and again: attention never looks further.
    """

    def __init__(self, model: Any, depth: int, sequences: int, most: int) -> None:
        self.model, self.depth = model, depth
        draw = random.Random(1)
        self.ids = [draw.randrange(100, min(30000, model.vocab_size)) for _ in range(depth + most)]
        self.run = DirectRunner(model, tokens=depth + most, sequences=sequences)
        for sequence in range(sequences):
            self.run.fill(self.ids[:depth], sequence)

    def seconds(self, rows: int, *, several: bool) -> float:
        """Time one step: a row of each of the first sequences, or rows of the first one."""
        tokens = self.ids[self.depth : self.depth + rows]
        places = [self.depth] * rows if several else range(self.depth, self.depth + rows)
        sequences = range(rows) if several else [0] * rows
        begun = time.perf_counter()
        self.run.forward(tokens, places, sequences, range(rows))
        return time.perf_counter() - begun

    def costs(self, sizes: tuple[int, ...], rounds: int, *, several: bool) -> Costs:
        """Time each number of rows once a round, in an order that is drawn."""
        draw = random.Random(2)
        costs: Costs = {rows: [] for rows in sizes}
        for rows in sizes:
            self.seconds(rows, several=several)  # not counted: it allocates
        for _ in range(rounds):
            for rows in draw.sample(sizes, len(sizes)):
                costs[rows].append(self.seconds(rows, several=several))
        return costs


def head_seconds(model: Any, rounds: int, depth: int) -> float:
    """Return the median time of one row of the model's own drafting head."""
    blocks = blocks_for(depth + rounds + 1)
    cache = [spec.storage(blocks, "f16") for spec in model.draft_cache_specs]
    hidden = np.random.default_rng(0).standard_normal(
        (1, model.embed_tokens.weight.cols), np.float32
    )
    times = []
    for turn in range(rounds + 1):
        batch = Batch(
            tokens=np.array([100 + turn], np.int32),
            positions=np.array([depth + turn], np.int32),
            sequences=np.zeros(1, np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
            logit_rows=np.zeros(1, np.int32),
        )
        begun = time.perf_counter()
        model.draft(hidden, batch, cache)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def ratios(costs: Costs) -> dict[int, tuple[float, float, float]]:
    """Return the quartiles of each number of rows over one row, by rounds."""
    found = {}
    for rows, times in costs.items():
        each = [a / b for a, b in zip(times, costs[1], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
        found[rows] = (low, middle, high)
    return found


def expected(share: float, one: dict[int, float], head: float) -> tuple[float, int]:
    """Return the best speed-up of heads that are right in `share` of cases, and its drafts.

    k drafts bring 1 + p + … + p^k tokens and cost a step of k + 1 rows and k drafts.
    one: rows -> cost over a step of one row; between two numbers a straight line.
    head: the cost of a draft over that of such a step.
    """
    sizes = sorted(one)
    best = (1.0, 0)
    for drafts in range(1, sizes[-1]):
        tokens = sum(share**depth for depth in range(drafts + 1))
        step = float(np.interp(drafts + 1, sizes, [one[size] for size in sizes]))
        best = max(best, (tokens / (step + drafts * head), drafts))
    return best


def table(name: str, depth: int, kinds: dict[str, Costs]) -> str:
    """Return the figures as Markdown: a line for each kind of rows."""
    sizes = list(next(iter(kinds.values())))
    lines = [
        f"| {name}, depth {depth} | 1 row, ms | " + " | ".join(map(str, sizes[1:])) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for kind, costs in kinds.items():
        found = ratios(costs)
        cells = [f"{1000 * statistics.median(costs[1]):.1f}"]
        cells += [f"{found[rows][1]:.2f}" for rows in sizes[1:]]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=512, help="tokens before the step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="besides one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quantize", choices=("q8", "q6", "q4"), help="of float weights")
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--share", type=float, nargs="+", default=[], help="of right drafts")
    parser.add_argument("--json", type=Path, help="append all figures to this file")
    options = parser.parse_args()
    sizes = tuple(sorted({1, *options.rows}))
    loaded = load(
        options.model,
        threads=options.threads,
        quantize=options.quantize,
        speculate="heads" if options.heads else "off",
        context=max(2048, options.depth + sizes[-1]),
        with_tokenizer=False,
    )
    kinds = {}
    for kind, sequences in (("one sequence", 1), ("several sequences", sizes[-1])):
        steps = Steps(loaded.model, options.depth, sequences, sizes[-1])
        kinds[kind] = steps.costs(sizes, options.rounds, several=sequences > 1)
    print(table(loaded.name, options.depth, kinds))
    found = ratios(kinds["one sequence"])
    one_row = statistics.median(kinds["one sequence"][1])
    figures: dict[str, Any] = {
        "model": loaded.name,
        "depth": options.depth,
        "threads": loaded.threads,
        "one_row_ms": 1000 * one_row,
        "ratios": {kind: ratios(costs) for kind, costs in kinds.items()},
    }
    head = 0.0
    if options.heads:
        head = head_seconds(loaded.model, options.rounds, options.depth) / one_row
        figures["head"] = head
        print(f"\nOne draft of the head costs {head:.3f} of a step of one row.")
    if options.share:
        print("\n| right | best number of drafts | speed-up |\n|---|---|---|")
    for share in options.share:
        best = expected(share, {rows: each[1] for rows, each in found.items()}, head)
        figures.setdefault("expected", {})[share] = best
        print(f"| {share:.0%} | {best[1]} | {best[0]:.2f} |")
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
