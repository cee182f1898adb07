"""Does any answer change or fail when stages die and networks are cut? Prints what was seen.

    sudo python bench/ray_chaos.py qwen2.5-coder-0.5b.gguf --minutes 10 --streams 32 --every 60

Real Ray nodes with a network each (see `ray_nodes.py`). Every so often the process of a random
stage is killed with SIGKILL, or a node that has one is cut off for a while; if Ray gives that node
up, it is started there again. Every token and log-probability of every answer, greedy or drawn with
a seed, is compared with those of an undisturbed run. Ends with 1 if anything failed or was left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray_nodes import STAGE, Node, Nodes
from ray_streams import Answer, Serving, ask, at_once, body_of, in_threads, serve

PORT = 8000
_SETTLE_SECONDS = 60.0  # in which all of a server must be gone


@dataclass
class Event:
    """What was done to the cluster."""

    kind: str
    node: int
    at: float
    told: float = 0.0  # seconds that the server says it took to link all again


@dataclass
class Chaos:
    """Hurts the cluster, and keeps account of it."""

    nodes: Nodes
    serving: Serving
    options: argparse.Namespace
    over: threading.Event = field(default_factory=threading.Event)
    events: list[Event] = field(default_factory=list)
    ray_started: int = 0  # again
    failure: str = ""

    def run(self) -> None:
        """Hurt it until it is over."""
        drawn, at = random.Random(self.options.seed), time.monotonic() + self.options.every
        try:
            while not self.over.wait(max(0.0, at - time.monotonic())):
                at += self.options.every
                found = [node for node in self.nodes.nodes[1:] if self.nodes.stages(node)]
                if not found:
                    note("no stage is there to be hurt")
                    continue
                node = drawn.choice(found)
                kind = self.options.only or drawn.choice(["kill", "cut"])
                self.events.append(Event(kind, node.number, time.monotonic()))
                note(f"{kind} on node {node.number}")
                if kind == "kill":
                    os.kill(drawn.choice(self.nodes.stages(node)), signal.SIGKILL)
                else:
                    self.nodes.cut(node)
                    self.over.wait(self.options.cut)
                    self.nodes.mend(node)
                    self.renew(node)
        except (OSError, RuntimeError) as error:
            self.failure = str(error)

    def renew(self, node: Node) -> None:
        """Start Ray again on a node that was cut off for so long that it was given up."""
        until = time.monotonic() + 20  # in which it would hear of it
        while time.monotonic() < until:
            if not self.nodes.has_ray(node):
                self.nodes.start_ray(node)
                self.ray_started += 1
                note(f"Ray is started again on node {node.number}")
                return
            time.sleep(0.5)

    def told(self) -> None:
        """Ask the server now and then what the last recovery took."""
        while not self.over.wait(2.0):
            with contextlib.suppress(OSError, ValueError):
                seconds = self.serving.metric("stage_recovery_seconds")
                if self.events and self.events[-1].told != seconds:
                    self.events[-1].told = seconds


def streamed(
    serving: Serving, bodies: Sequence[dict[str, Any]], minutes: float
) -> list[list[Answer]]:
    """What each stream was answered, again and again, until the time is up."""
    end = time.monotonic() + 60 * minutes
    found: list[list[Answer]] = [[] for _ in bodies]

    def one(number: int) -> None:
        while time.monotonic() < end:
            found[number].append(ask(serving, bodies[number]))
            if found[number][-1].error:
                time.sleep(1.0)

    in_threads(len(bodies), one)
    return found


def recovery(event: Event, until: float, times: Sequence[float]) -> float:
    """The longest time without a token of any stream, of those that end after the event."""
    gaps = [b - a for a, b in pairwise(times) if event.at < b and a < until]
    return max(gaps, default=0.0)


def what_is_left(nodes: Nodes, before: dict[int, set[str]]) -> list[str]:
    """Processes, ports and files of a server that has ended."""
    left: list[str] = []
    for node in nodes.nodes:
        for _, line in nodes.processes(node):
            if line.startswith(STAGE) or b"dure serve" in line:
                left.append(f"a process on node {node.number}: {line[:60]!r}")
        for port, owner in nodes.listening(node).items():
            if owner.startswith(STAGE) or b"dure" in owner:
                left.append(f"port {port} on node {node.number}")
        left += [
            f"{each} on node {node.number}" for each in nodes.files(node) - before[node.number]
        ]
    return left


def tried(options: argparse.Namespace, log: Any) -> dict[str, Any]:
    """What was seen."""
    bodies = [
        body_of(number, words=options.words, tokens=options.tokens)
        for number in range(options.streams)
    ]
    with Nodes(options.nodes) as nodes:
        for node in nodes.nodes:
            nodes.start_ray(node)
        note(f"Ray runs on {len(nodes.nodes)} nodes")
        before = {node.number: nodes.files(node) for node in nodes.nodes}
        serving = serve(
            nodes,
            nodes.head,
            PORT,
            options.model,
            *("--threads", "1", "--ray", nodes.address),
            *("--stages", str(options.stages), "--parallel", str(options.streams)),
            *("--context", str(options.context)),
            log=log,
        )
        note(f"it answers after {serving.seconds:.1f} s")
        expected = [answer.tokens for answer in at_once(serving, bodies)]
        note("the undisturbed run is there")
        chaos = Chaos(nodes, serving, options)
        threads = [threading.Thread(target=each, daemon=True) for each in (chaos.run, chaos.told)]
        for thread in threads:
            thread.start()
        answers = streamed(serving, bodies, options.minutes)
        chaos.over.set()
        for thread in threads:
            thread.join()
        restarts = serving.metric("stage_restarts")
        serving.stop()
        until = time.monotonic() + _SETTLE_SECONDS
        while (left := what_is_left(nodes, before)) and time.monotonic() < until:
            time.sleep(0.5)
    flat = [answer for each in answers for answer in each]
    times = sorted(at for answer in flat for at in answer.times)
    ends = [*(event.at for event in chaos.events[1:]), float("inf")]
    return {
        "model": Path(options.model).name,
        "minutes": options.minutes,
        "streams": options.streams,
        "stages": options.stages,
        "nodes": options.nodes,
        "answers": len(flat),
        "tokens": len(times),
        "failed": [answer.error for answer in flat if answer.error],
        "changed": sum(
            not answer.error and answer.tokens != expected[number]
            for number, each in enumerate(answers)
            for answer in each
        ),
        "longest_gap_seconds": max((answer.longest_gap for answer in flat), default=0.0),
        "events": [
            {
                "kind": event.kind,
                "node": event.node,
                "seconds_without_a_token": round(recovery(event, end, times), 2),
                "told_recovery_seconds": round(event.told, 2),
            }
            for event, end in zip(chaos.events, ends, strict=True)
        ],
        "restarts": restarts,
        "ray_started_again": chaos.ray_started,
        "left": left,
        "failure": chaos.failure,
    }


def table(found: dict[str, Any]) -> str:
    """What was seen, as Markdown."""
    lines = [
        f"{found['answers']} answers, {found['tokens']:,} tokens in {found['minutes']:g} minutes: "
        f"{len(found['failed'])} failed, {found['changed']} changed; the longest gap in a stream "
        f"{found['longest_gap_seconds']:.1f} s; {found['restarts']:.0f} stages started again.",
        f"Left behind: {', '.join(found['left']) or 'nothing'}.",
        "",
        "| what | node | seconds without a token | of which until all were linked |",
        "|---|---|---|---|",
    ]
    for each in found["events"]:
        lines.append(
            f"| {each['kind']} | {each['node']} | {each['seconds_without_a_token']:.1f} | "
            f"{each['told_recovery_seconds']:.1f} |"
        )
    lines += [f"- {error}" for error in sorted(set(found["failed"]))[:5]]
    return "\n".join(lines + ([found["failure"]] if found["failure"] else []))


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Hurt, compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a file, or a name that is here")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--every", type=float, default=60.0, help="seconds")
    parser.add_argument("--cut", type=float, default=30.0, help="seconds that a network is cut")
    parser.add_argument("--only", choices=["kill", "cut"], help="instead of both by chance")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--words", type=int, default=24, help="of each prompt")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for what was seen")
    parser.add_argument("--log", type=Path, help="a file for what the server says")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with options.log.open("wb") if options.log else tempfile.TemporaryFile() as log:
        try:
            found = tried(options, log)
        except RuntimeError as error:
            if options.log is None:
                log.seek(0)
                note(log.read().decode("utf-8", "replace")[-3000:])
            raise SystemExit(str(error)) from error
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    if found["failed"] or found["changed"] or found["left"] or found["failure"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
