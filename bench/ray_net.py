"""What does a network between two stages cost? Prints a table; `--json` writes every figure.

    sudo python bench/ray_net.py qwen2.5-coder-1.5b.gguf

Two nodes of Ray with a network each (see `ray_nodes.py`), a stage of one thread on each; against
one process with two threads, and for one stream against one with one thread. All servers stay
loaded and take turns; a figure is the median of its turns. Tokens are counted while all streams
decode. Also: start-up, memory of each node, and what crosses the network a token.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_nodes import Nodes
from ray_streams import Serving, at_once, body_of, decoding_speed, serve

GOAL_STREAMS, GOAL_ONE, GOAL_SLOW = 0.85, 1.15, 0.8


@dataclass(frozen=True)
class Row:
    """What is measured."""

    who: str
    streams: int
    milliseconds: float = 0.0


def measure(serving: Serving, streams: int, options: argparse.Namespace) -> float:
    """Tokens a second of all streams."""
    bodies = [
        body_of(number, words=options.words, tokens=options.tokens) for number in range(streams)
    ]
    return decoding_speed(at_once(serving, bodies))


def measured(options: argparse.Namespace, log: Any) -> dict[str, Any]:
    """All figures."""
    same = ["--context", str(options.context), "--parallel", str(options.streams)]
    same += ["--speculate", "off"]
    with Nodes(2) as nodes:
        for node in nodes.nodes:
            nodes.start_ray(node)
        idle = [nodes.memory(node) for node in nodes.nodes]
        note(f"Ray runs on two nodes after {sum(nodes.start_seconds):.1f} s")
        servings = {
            "one process, 2 threads": serve(
                nodes, nodes.head, 8002, options.model, "--threads", "2", *same, log=log
            ),
            "one process, 1 thread": serve(
                nodes, nodes.head, 8001, options.model, "--threads", "1", *same, log=log
            ),
        }
        alone = nodes.memory(nodes.head)["stage"] // 2
        staged = ["--threads", "1", "--ray", nodes.address, "--stages", "2"]
        before = nodes.memory(nodes.head)["stage"]
        stages = serve(nodes, nodes.head, 8000, options.model, *staged, *same, log=log)
        servings["two stages of 1 thread"] = stages
        memory = [nodes.memory(node) for node in nodes.nodes]
        memory[0]["stage"] -= before  # what the two others take
        placement = json.loads(stages.get("/v1/status")[1])
        note(f"two stages answer after {stages.seconds:.1f} s")
        rows = [
            Row("one process, 2 threads", options.streams),
            *(Row("two stages of 1 thread", options.streams, each) for each in options.latency),
            Row("one process, 1 thread", 1),
            *(Row("two stages of 1 thread", 1, each) for each in options.latency),
        ]
        speeds: dict[Row, list[float]] = {row: [] for row in rows}
        crossed: dict[Row, list[float]] = {row: [] for row in rows}
        ways = set()
        for turn in range(options.turns):
            for row in rows:
                nodes.slow(row.milliseconds, options.loss if row.milliseconds else 0.0)
                ways |= {nodes.way} if row.milliseconds else set()
                gone = nodes.network_bytes(nodes.nodes[1])
                speeds[row].append(measure(servings[row.who], row.streams, options))
                tokens = row.streams * options.tokens
                crossed[row].append((nodes.network_bytes(nodes.nodes[1]) - gone) / tokens)
                note(
                    f"turn {turn + 1}: {row.streams} streams, {row.who}, "
                    f"{row.milliseconds:g} ms: {speeds[row][-1]:.2f} tok/s"
                )
        nodes.slow(0.0)
        for serving in servings.values():
            serving.stop()
        return {
            "model": Path(options.model).name,
            "tokens": options.tokens,
            "turns": options.turns,
            "loss": options.loss,
            "network": sorted(ways),
            "rows": [
                {
                    **vars(row),
                    "tokens_per_second": statistics.median(speeds[row]),
                    "all": speeds[row],
                    "network_bytes_a_token": statistics.median(crossed[row]),
                }
                for row in rows
            ],
            "start_seconds": {
                "ray_head": nodes.start_seconds[0],
                "ray_node": nodes.start_seconds[1],
                **{who: each.seconds for who, each in servings.items()},
            },
            "memory_bytes": {
                "ray_alone": [each["ray"] for each in idle],
                "ray": [each["ray"] for each in memory],
                "stage": [each["stage"] for each in memory],
                "one_process": alone,
            },
            "status": placement,
        }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown, with what was to be reached."""
    speed = {(r["who"], r["streams"], r["milliseconds"]): r for r in found["rows"]}
    lines = ["| | streams | ms between nodes | tok/s | ms a token | of it | goal | bytes a token |"]
    lines.append("|" + "---|" * 8)
    for row in found["rows"]:
        many = row["streams"] > 1
        one = speed[f"one process, {2 if many else 1} thread{'s' * many}", row["streams"], 0.0]
        rate, base = row["tokens_per_second"], one["tokens_per_second"]
        share = goal = ""
        if row is not one and not row["milliseconds"]:
            share = f"{rate / base:.2f}" if many else f"{base / rate:.2f} of its time"
            goal = f"at least {GOAL_STREAMS}" if many else f"at most {GOAL_ONE}"
        elif row is not one:
            plain = speed.get((row["who"], row["streams"], 0.0))
            share = f"{rate / plain['tokens_per_second']:.2f} of 0 ms" if plain else ""
            goal = f"at least {GOAL_SLOW}" if many else ""
        lines.append(
            f"| {row['who']} | {row['streams']} | {row['milliseconds']:g} | {rate:.2f} | "
            f"{1000 * row['streams'] / rate:.1f} | {share} | {goal} | "
            f"{row['network_bytes_a_token']:,.0f} |"
        )
    seconds, memory = found["start_seconds"], found["memory_bytes"]
    lines += ["", "Start-up: " + ", ".join(f"{who} {s:.1f} s" for who, s in seconds.items()) + "."]
    parts = [f"{who} {_megabytes(each)}" for who, each in memory.items()]
    lines.append("Memory, the head's node first: " + ", ".join(parts) + ".")
    lines.append("Network: " + ", ".join(found["network"] or ["a bridge"]) + ".")
    return "\n".join(lines)


def _megabytes(sizes: int | Sequence[int]) -> str:
    each = [sizes] if isinstance(sizes, int) else sizes
    return " and ".join(f"{size / 1e6:,.0f} MB" for size in each)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a file, or a name that is here")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--words", type=int, default=24, help="of each prompt")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.0, 1.0, 10.0], help="ms")
    parser.add_argument("--loss", type=float, default=0.0, help="share of frames, where it is slow")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--log", type=Path, help="a file for what the servers say")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with options.log.open("wb") if options.log else tempfile.TemporaryFile() as log:
        try:
            found = measured(options, log)
        except RuntimeError as error:
            if options.log is None:
                log.seek(0)
                note(log.read().decode("utf-8", "replace")[-3000:])
            raise SystemExit(str(error)) from error
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
