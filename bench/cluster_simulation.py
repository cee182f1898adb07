"""How do 1,000 users fare on 64 nodes of which one is lost every hour? Prints a table.

    python bench/cluster_simulation.py here.json --users 1000 --nodes 64 --stages 2 --spares 4

Copies of a model, each in stages on `--stages` nodes, and spare nodes. The seconds of a pass by its
rows are those of `cluster_paper.py`, from a measured machine. Each user thinks, asks, and reads an
answer; a request goes to the copy that has its conversation, unless that is full. Nodes are lost at
random, and come back after `--repair` minutes. A copy that loses one stands still until a spare has
noticed, started and read the layers, then computes its conversations again; without a spare its
users go to other copies. Prompts are computed in pieces beside the streams, as dure does.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

from cluster_paper import Cluster, arguments, cluster_of

from dure.planning.speed import CHUNK


@dataclass
class Request:
    """What a user waits for."""

    user: int
    asked: float
    held: int  # tokens of the conversation, the question too
    to_compute: int  # of them, those that are not cached where it runs
    left: int  # tokens of the answer to come
    tokens: int = 0  # that came
    first: float | None = None
    last: float | None = None
    gap: float = 0.0  # the longest time between two tokens


@dataclass
class Copy:
    """One copy of the model, over some nodes."""

    number: int
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    users: set[int] = field(default_factory=set)  # whose conversations it has cached
    lacks: int = 0  # nodes that are lost and not replaced
    still_until: float = 0.0
    is_stepping: bool = False
    down_seconds: float = 0.0

    @property
    def load(self) -> int:
        return len(self.running) + len(self.waiting)


@dataclass
class Simulation:
    """The users, the copies and the clock."""

    cluster: Cluster
    options: argparse.Namespace
    drawn: random.Random = field(default_factory=lambda: random.Random(1))
    now: float = 0.0
    done: list[Request] = field(default_factory=list)
    lost: int = 0  # nodes
    unserved: int = 0  # requests that found no copy at all, and were asked again later
    moved: int = 0  # requests that went to another copy as theirs was lost

    def __post_init__(self) -> None:
        options = self.options
        self.copies = [
            Copy(number) for number in range((options.nodes - options.spares) // options.stages)
        ]
        self.spares = options.nodes - len(self.copies) * options.stages
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._held = [0] * options.users  # tokens of each conversation
        needs = max(map(self.cluster.needs, self.cluster.spans))
        self.replacing = options.notice + options.start + needs / (1e9 * options.read_gb_s)
        self._prefill_tps = self.cluster.prefill_tps()
        self.step_seconds = cache(self._step_seconds)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        for user in range(self.options.users):
            self.at(self.drawn.uniform(0, self.options.think), partial(self.ask, user))
        self.at(self.drawn.expovariate(1 / self._between_losses), self.lose)
        while self._queue and self._queue[0][0] <= seconds:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = seconds

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, what))

    def ask(self, user: int) -> None:
        """A user asks what follows from the conversation so far, or begins a new one."""
        options = self.options
        if self._held[user] > options.longest:
            self._held[user] = 0
            for copy in self.copies:
                copy.users.discard(user)
        question = 1 + round(self.drawn.expovariate(1 / options.question))
        answer = 1 + round(self.drawn.expovariate(1 / options.answer))
        self._held[user] += question
        self.place(Request(user, self.now, self._held[user], 0, answer), question)

    def place(self, request: Request, new: int) -> None:
        """Send a request to a copy; new: tokens that no cache has."""
        alive = [copy for copy in self.copies if not copy.lacks]
        if not alive:
            self.unserved += 1
            self.at(self.now + 30.0, lambda: self.place(request, new))
            return
        copy = min(alive, key=lambda each: (each.load, each.number))
        known = next((each for each in alive if request.user in each.users), None)
        if known is not None and known.load < copy.load + self.options.parallel // 2:
            copy = known
        request.to_compute = new if copy is known else request.held
        for each in self.copies:
            each.users.discard(request.user)
        copy.users.add(request.user)
        copy.waiting.append(request)
        self.wake(copy)

    def wake(self, copy: Copy) -> None:
        if not copy.is_stepping and not copy.lacks:
            copy.is_stepping = True
            self.at(max(self.now, copy.still_until), lambda: self.step(copy))

    def step(self, copy: Copy) -> None:
        """Compute a round: a token of each stream that has its prompt, and a piece of prompts."""
        copy.is_stepping = False
        if copy.lacks or self.now < copy.still_until:
            self.wake(copy)
            return
        while copy.waiting and len(copy.running) < self.options.parallel:
            copy.running.append(copy.waiting.popleft())
        if not copy.running:
            return
        ready = [each for each in copy.running if not each.to_compute]
        room = pieces = CHUNK
        for each in copy.running:
            taken = min(room, each.to_compute)
            each.to_compute -= taken
            room -= taken
        ended = self.now + self.step_seconds(len(ready), -(-(pieces - room) // 64) * 64)
        self.at(ended, lambda: self.end_step(copy, ready))
        copy.is_stepping = True

    def end_step(self, copy: Copy, ready: list[Request]) -> None:
        copy.is_stepping = False
        if not copy.lacks and self.now >= copy.still_until:  # else what was on its way is lost
            for each in ready:
                self.token(copy, each)
        self.wake(copy)

    def token(self, copy: Copy, request: Request) -> None:
        if request.first is None:
            request.first = self.now
        else:
            request.gap = max(request.gap, self.now - (request.last or self.now))
        request.last = self.now
        request.held += 1
        request.tokens += 1
        request.left -= 1
        if not request.left:
            copy.running.remove(request)
            self.done.append(request)
            self._held[request.user] = request.held
            wait = self.drawn.expovariate(1 / self.options.think)
            self.at(self.now + wait, lambda: self.ask(request.user))

    def lose(self) -> None:
        """Lose a node, whichever it is."""
        self.lost += 1
        self.at(self.now + self.drawn.expovariate(1 / self._between_losses), self.lose)
        self.at(self.now + 60 * self.options.repair, self.repaired)
        place = self.drawn.randrange(self.options.nodes)
        if place >= len(self.copies) * self.options.stages:
            self.spares = max(0, self.spares - 1)
            return
        copy = self.copies[place // self.options.stages]
        if self.spares:
            self.spares -= 1
            self.replace(copy)
            return
        copy.lacks += 1
        copy.down_seconds -= self.now
        homeless = [*copy.running, *copy.waiting]
        copy.running, copy.waiting, copy.users = [], deque(), set()
        self.moved += len(homeless)
        for each in homeless:
            self.place(each, each.held)

    def replace(self, copy: Copy) -> None:
        """Let a spare take the layers of a lost node: what was cached is computed again."""
        copy.down_seconds += self.replacing
        copy.still_until = self.now + self.replacing
        copy.users = {each.user for each in (*copy.running, *copy.waiting)}
        for each in (*copy.running, *copy.waiting):
            each.to_compute = each.held
        self.wake(copy)

    def repaired(self) -> None:
        """A node is back: it becomes a spare, or a part of a copy that lacks one."""
        for copy in self.copies:
            if copy.lacks:
                copy.lacks -= 1
                copy.down_seconds += self.now
                self.replace(copy)
                return
        self.spares += 1

    @property
    def _between_losses(self) -> float:
        return 3600 / self.options.losses

    def _step_seconds(self, rows: int, prompt_rows: int) -> float:
        """Seconds of a round with so many streams, and rows of prompts."""
        decoding = self.cluster.round_seconds(rows) if rows else 0.0
        return decoding + prompt_rows / self._prefill_tps


def shares(values: list[float]) -> str:
    """The median, the 99th of a hundred and the largest."""
    ordered = sorted(values) or [0.0]
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"{statistics.median(ordered):.1f} | {p99:.1f} | {ordered[-1]:.1f}"


def table(made: Simulation, hours: float) -> str:
    """What was seen, as Markdown."""
    done = [each for each in made.done if each.first is not None and each.last is not None]
    tokens = sum(each.tokens for each in done)
    spans = [(each.last or 0) - (each.first or 0) for each in done]
    rates = [each.tokens / span for each, span in zip(done, spans, strict=True) if span]
    down = sum(each.down_seconds for each in made.copies)
    down += sum(made.now for each in made.copies for _ in range(each.lacks))
    lines = [
        f"{len(made.copies)} copies of {made.options.stages} stages, and "
        f"{made.options.nodes - len(made.copies) * made.options.stages} spare nodes, for {hours:g} "
        f"hours: {made.lost} nodes lost, a copy back after {made.replacing:.0f} s and its prompts.",
        f"{len(done):,} answers, {tokens / (3600 * hours):.0f} tokens a second; "
        f"{made.moved} requests went to another copy, {made.unserved} waited for any; copies stood "
        f"still for {100 * down / (3600 * hours * len(made.copies)):.2f} % of the time.",
        "",
        "| | median | 99 % | most |",
        "|---|---|---|---|",
        f"| seconds to the first token | {shares([(e.first or 0) - e.asked for e in done])} |",
        f"| longest gap in an answer, seconds | {shares([each.gap for each in done])} |",
        f"| tokens a second of a user | {shares(rates)} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    parser.set_defaults(model="qwen3-235b")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--stages", type=int, default=2, help="nodes of a copy")
    parser.add_argument("--spares", type=int, default=4)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--losses", type=float, default=1.0, help="nodes an hour")
    parser.add_argument("--repair", type=float, default=30.0, help="minutes")
    parser.add_argument("--think", type=float, default=60.0, help="seconds, on average, as below")
    parser.add_argument("--question", type=float, default=200.0, help="tokens")
    parser.add_argument("--answer", type=float, default=300.0, help="tokens")
    parser.add_argument("--longest", type=int, default=4096, help="tokens of a conversation")
    parser.add_argument("--parallel", type=int, default=64, help="streams of a copy")
    parser.add_argument("--notice", type=float, default=10.0, help="seconds until a loss is seen")
    parser.add_argument("--start", type=float, default=5.0, help="seconds an actor takes to start")
    parser.add_argument("--read-gb-s", type=float, default=1.0, help="of a node's disk")
    options = parser.parse_args()
    made = Simulation(cluster_of(options, options.stages), options)
    made.run(3600 * options.hours)
    print(table(made, options.hours))


if __name__ == "__main__":
    main()
