"""What does speculation bring, and what does it cost where there is nothing to guess?

    python bench/speculation.py MODEL [--draft SMALLER] [--server LLAMA_SERVER] [--only edit,json]

For each piece of work (speculation_work.py) one build of dure answers with speculation off and on,
in turns, each in a process that stays loaded; with --server so does llama.cpp's llama-server, with
each of its n-gram settings (llama_server.py). After the first round, settings of it that were
slower than 85 % of its best one are left out, but for "none".

Prints JSON objects, one a line: each answer ("run"), for each side the medians ("side"), and for
pairs of sides the median over the rounds of second over first, with its quartiles ("ratio"; above 1
the second is better), and whether dure's answers are the same, token by token. Decode speed goes
from the first token to the last; total seconds have the prompt in them, and so have those of CPU
time, which tell less of other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llama_server import NGRAM, SMALLER_MODEL, LlamaServer
from speculation_work import EVERY, PEER_WORK, WORK, Work

CONTENDER = 0.85  # of the peer's best setting in the first round; slower ones are left out then
OFF, ON, DRAFT = "dure off", "dure on", "dure draft"

Done = dict[str, Any]  # what one answer took


class Side(Protocol):
    """Who answers."""

    def answer(self, work: Work, turn: int) -> Done:
        """Do the work once."""

    def close(self) -> None:
        """End its process."""


class Dure:
    """A speculation_side.py with one setting."""

    def __init__(self, speculate: str, options: argparse.Namespace) -> None:
        self.more = {"size": options.size, "warm": options.warm}
        script = str(Path(__file__).with_name("speculation_side.py"))
        command = [sys.executable, script, options.model, "--speculate", speculate]
        for name in ("threads", "quantize"):
            if value := getattr(options, name):
                command += [f"--{name}", str(value)]
        self.process = subprocess.Popen(
            [*command, "--context", str(options.context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()
        show(kind="process", speculate=speculate, **self.facts)

    def answer(self, work: Work, turn: int) -> Done:
        """Do the work once."""
        assert self.process.stdin is not None
        asked = {"work": work.name, "turn": turn, **self.more}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process, which frees its memory."""
        self.process.kill()
        self.process.communicate()

    def _read(self) -> Done:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A process of dure ended with {self.process.wait()}.")
        return dict(json.loads(line))


class Sides:
    """All sides, each started when it is first needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started: dict[str, Side] = {}

    def of(self, work: Work) -> list[str]:
        """Return the names of the sides that do this work."""
        names = [OFF, DRAFT if work.drafted_by_model and self.options.draft else ON]
        if self.options.server is None or work.name not in PEER_WORK:
            return names
        wanted = {**NGRAM, **(SMALLER_MODEL if names[1] == DRAFT else {})}
        return names + [name for name in wanted if self.options.settings in name or name == "none"]

    def get(self, name: str) -> Side:
        """Return the side of this name."""
        if name not in self.started:
            self.started[name] = self._start(name)
        return self.started[name]

    def close(self) -> None:
        """End all processes."""
        for side in self.started.values():
            side.close()

    def _start(self, name: str) -> Side:
        options = self.options
        if name in (OFF, ON, DRAFT):
            return Dure({OFF: "off", ON: options.on, DRAFT: options.draft}[name], options)
        return LlamaServer(
            options.server,
            options.model,
            name,
            draft=options.draft,
            threads=options.threads or len(os.sched_getaffinity(0)),
            context=options.context,
        )


def show(**line: Any) -> None:
    """Print one JSON object."""
    rounded = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()
    }
    print(json.dumps(rounded, ensure_ascii=False), flush=True)


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the quartiles, the median among them."""
    if len(values) == 1:
        return [round(values[0], 3)] * 3
    return [round(each, 3) for each in statistics.quantiles(values, n=4, method="inclusive")]


def difference(first: Done, second: Done) -> str:
    """Return where two sides' answers differ, token by token; empty where they are the same."""
    for number, (a, b) in enumerate(zip(first["answers"], second["answers"], strict=True)):
        for at, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return f"answer {number} differs from token {at} on: {x}, {y}"
        if len(a) != len(b):
            return f"answer {number} has {len(a)} tokens, then {len(b)}"
    return ""


def measure(work: Work, sides: Sides, options: argparse.Namespace) -> None:
    """Do one piece of work on all sides in turns, and print the figures."""
    names = sides.of(work)
    for name in names:
        sides.get(name)  # loads before anything is timed
    runs: dict[str, list[Done]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names if turn % 2 else reversed(names):
            done = sides.get(name).answer(work, turn)
            hidden = () if options.show else ("answers", "text")
            brief = {key: value for key, value in done.items() if key not in hidden}
            show(kind="run", work=work.name, side=name, round=turn, **brief)
            runs[name].append(done)
        names = [name for name in names if "error" not in runs[name][-1]]
        if turn == 0:
            names = contenders(names, runs)
    report(work, {name: runs[name] for name in runs if name in names}, runs)


def contenders(names: list[str], runs: dict[str, list[Done]]) -> list[str]:
    """Return the sides without the peer's settings that are far from its best one."""
    peers = [name for name in names if name in {**NGRAM, **SMALLER_MODEL}]
    if not peers:
        return names
    best = max(runs[name][0]["decode_tps"] for name in peers)
    slow = [name for name in peers if runs[name][0]["decode_tps"] < CONTENDER * best]
    return [name for name in names if name not in slow or name == "none"]


def report(work: Work, whole: dict[str, list[Done]], runs: dict[str, list[Done]]) -> None:
    """Print the medians of each side that took part in all rounds, and the ratios of pairs."""
    for name, done in whole.items():
        rates = quartiles([each["decode_tps"] for each in done])
        show(
            kind="side",
            work=work.name,
            side=name,
            decode_tps=rates[1],
            quartiles=[rates[0], rates[2]],
            total_s=statistics.median(each["total_s"] for each in done),
            prefill_s=statistics.median(each["prefill_s"] for each in done),
            first_prefill_s=done[0]["prefill_s"],
            **{key: done[0][key] for key in ("prompt_tokens", "output_tokens")},
            drafted=[each["drafted"] for each in done],
            accepted=[each["accepted"] for each in done],
        )
    ours = next(name for name in (DRAFT, ON) if name in whole)
    if OFF in whole:
        pairs = zip(whole[OFF], whole[ours], strict=True)
        wrong = [found for pair in pairs if (found := difference(*pair))]
        cpu = [a["cpu_s"] / b["cpu_s"] for a, b in zip(whole[OFF], whole[ours], strict=True)]
        ratio(work, whole, OFF, ours, cpu=quartiles(cpu)[1], identical=not wrong, differs=wrong)
    peers = {name: done for name, done in whole.items() if name in {**NGRAM, **SMALLER_MODEL}}
    if not peers:
        return
    best = max(peers, key=lambda name: statistics.median(d["decode_tps"] for d in peers[name]))
    ratio(work, whole, best, ours)
    if "none" in peers and best != "none":
        ratio(work, whole, "none", best)
    texts = {
        name: done[0].get("text")
        for name, done in runs.items()
        if name in {**NGRAM, **SMALLER_MODEL}
    }
    others = [
        name for name, text in texts.items() if text is not None and text != texts.get("none")
    ]
    show(kind="peer", work=work.name, best=best, text_differs_from_none=others)


def ratio(work: Work, runs: dict[str, list[Done]], first: str, second: str, **more: Any) -> None:
    """Print second over first, of decode speed and of total time."""
    pairs = list(zip(runs[first], runs[second], strict=True))
    rates = quartiles([b["decode_tps"] / a["decode_tps"] for a, b in pairs])
    totals = quartiles([a["total_s"] / b["total_s"] for a, b in pairs])
    show(
        kind="ratio",
        work=work.name,
        first=first,
        second=second,
        decode=rates[1],
        quartiles=[rates[0], rates[2]],
        total=totals[1],
        total_quartiles=[totals[0], totals[2]],
        rounds=len(pairs),
        **more,
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--on", default="auto", help='what "on" is: auto, text, heads')
    parser.add_argument("--draft", default="", help="a smaller model, for the work `code`")
    parser.add_argument("--server", type=Path, help="llama-server, to be measured too")
    parser.add_argument("--settings", default="", help="llama-server's whose name holds this")
    parser.add_argument("--only", default="", help=f"some of: {','.join(WORK)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4000, help="tokens of the hostile prompts")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quantize", help="bits of float weights: q8, q6 or q4")
    parser.add_argument("--warm", action="store_true", help="keep prompts in dure's cache")
    parser.add_argument("--show", action="store_true", help="print the answers, too")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(EVERY)
    if wrong := [name for name in names if name not in WORK]:
        parser.error(f"there is no work {', '.join(wrong)}; there is {', '.join(WORK)}")
    options.context = max(8192, options.size + 1024)
    sides = Sides(options)
    # A script that is told to end has to end its processes, too.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit("ended by SIGTERM"))
    try:
        for name in names:
            measure(WORK[name], sides, options)
    finally:
        sides.close()


if __name__ == "__main__":
    main()
