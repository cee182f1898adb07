"""How fast is a mixture that is larger than the memory, and is the budget kept? Prints JSON lines.

    sudo python bench/streaming.py MOE.gguf [--rows decode prefill …] [--json figures.jsonl]
         [--server BIN/llama-server] [--ik PYTHON-WITH-IK]

Each engine runs in a memory cgroup (version 1, which needs root) whose limit is the budget, page
cache included, with the file's pages dropped before it starts; what it read is read_bytes of
/proc/PID/io. Rows, each of which can be run alone:

    disk     reads of a record's size past the page cache, 1, 2 and 4 at once, sustained
    decode   one sequence, half of the file: 64 tokens after a prompt of 64 and 64 warm ones; dure
             and the peers in turns, the disk's limit before and after, Belady's reads beside it
    quarter  the same with a quarter of the file
    prefill  2,048 tokens, half of the file
    crowd    8 sequences at once, against one after the other; dure alone
    whole    the file's size as budget, against no budget; dure alone
    start    to the first token of 16, half of the file, against loading the whole; dure alone
    memory   prompts and answers for --minutes, half of the file: peak over budget, refusals

Peers are run with their weights mapped (llama.cpp is killed otherwise), by --settings, as
llama:1 (threads) or ik:2. Their prompts are computed in steps of --batch rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from streaming_engines import GROUPS, Server, Side, SideError

ROWS = ["disk", "decode", "quarter", "prefill", "crowd", "whole", "start", "memory"]
ALIGNED = 4096  # of direct reads
DISK_SECONDS, DISK_WARM_SECONDS = 4.0, 6.0  # the first use up what a drive saves up while idle


class Bench:
    """The rows of one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.file_bytes = options.model.stat().st_size

    def record(self, row: str, **facts: Any) -> None:
        """Print a figure, and append it to the JSON lines file."""
        line = json.dumps({"row": row, "model": self.options.model.name, **facts})
        print(line, flush=True)
        if self.options.json is not None:
            with self.options.json.open("a", encoding="utf-8") as file:
                print(line, file=file)

    def drop_pages(self) -> None:
        """Have the kernel forget what it holds of the file."""
        with self.options.model.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @contextlib.contextmanager
    def side(self, setting: str, budget: int, *, batch: int = 512) -> Iterator[Side]:
        """An engine that has loaded the model, "dure", "llama:1" or "ik:2"; 0 is no budget."""
        self.drop_pages()
        engine, _, threads = setting.partition(":")
        threads = threads or str(self.options.threads)
        script = str(Path(__file__).with_name("streaming_side.py"))
        model = str(self.options.model)
        if engine == "llama":
            command = [
                *(str(self.options.server), "--model", model, "--host", "127.0.0.1"),
                *("--threads", threads, "--parallel", "1", "--ctx-size", "4096", "--no-repack"),
                *("--device", "none", "--no-ui", "--cache-ram", "0", "--no-warmup"),
                *("--batch-size", "2048", "--ubatch-size", str(batch)),
            ]
        elif engine == "ik":
            command = [str(self.options.ik), script, "ik", model, "--threads", threads]
            command += ["--batch", str(batch)]
        else:
            command = [sys.executable, script, "dure", model, "--threads", threads]
            command += ["--memory", str(budget)]
        kind = Server if engine == "llama" else Side
        # In a home of its own dure remembers nothing of runs before.
        with tempfile.TemporaryDirectory() as home:
            side = kind(command, budget, verbose=self.options.verbose, home=home)
            side.limit = self.options.limit
            try:
                yield side
            finally:
                self.last = side.close()

    def measure(
        self,
        row: str,
        setting: str,
        budget: int,
        work: Callable[[Side], dict[str, Any]],
        **how: int,
    ) -> dict[str, Any] | None:
        """Run work on a new process, and record its figure, or how it failed; then return None."""
        facts: dict[str, Any] = {"setting": setting, "budget_bytes": budget, **how}
        answer = None
        try:
            with self.side(setting, budget, **how) as side:
                facts["load_s"] = round(side.ready(240.0)["load_s"], 2)
                answer = work(side)
        except SideError as error:
            facts["error"] = str(error)
        facts |= self.last
        facts["peak_over_budget"] = round(facts["peak_bytes"] / budget, 4) if budget else None
        if answer is not None:
            answer["tps"] = answer["tokens"] / answer["seconds"]
            answer["mb_a_token"] = answer["read_bytes"] / answer["tokens"] / 1e6
            facts |= {k: round(v, 3) if isinstance(v, float) else v for k, v in answer.items()}
        self.record(row, **facts)
        return answer

    def settings(self) -> list[str]:
        """The peers' settings whose programs there are."""
        there = {"llama": self.options.server, "ik": self.options.ik}
        return [name for name in self.options.settings if there[name.partition(":")[0]]]

    # The rows.

    def disk(self, row: str = "disk", depths: tuple[int, ...] = (1, 2, 4)) -> float:
        """Read records at random; return the best rate, bytes a second."""
        self.drop_pages()
        size = -(-self.options.record // ALIGNED) * ALIGNED
        direct = os.open(self.options.model, os.O_RDONLY | os.O_DIRECT)
        places = self.file_bytes // ALIGNED - size // ALIGNED
        rates = {}

        def reads(seed: int, end: float) -> int:
            rng, buffer, done = random.Random(seed), mmap.mmap(-1, size), 0
            while time.perf_counter() < end:
                done += os.preadv(direct, [buffer], rng.randrange(places) * ALIGNED)
            return done

        try:
            for depth in (depths[-1], *depths):
                # The first is not kept: a drive that was idle may be faster for a while.
                seconds = DISK_SECONDS if rates or depth == depths[-1] else DISK_WARM_SECONDS
                begun = time.perf_counter()
                with ThreadPoolExecutor(depth) as pool:
                    jobs = [pool.submit(reads, seed, begun + seconds) for seed in range(depth)]
                    total = sum(job.result() for job in jobs)
                rates[depth] = total / (time.perf_counter() - begun)
        finally:
            os.close(direct)
        shown = {f"qd{depth}_mb_s": round(rate / 1e6, 1) for depth, rate in rates.items()}
        self.record(row, read_bytes=size, **shown)
        return max(rates.values())

    def decode(self, row: str = "decode", share: float = 0.5) -> None:
        """One sequence."""
        budget = int(self.file_bytes * share)
        work = {"prompt": 64, "warm": self.options.warm, "count": self.options.tokens}
        ours: list[dict[str, Any]] = []
        theirs: dict[str, list[float]] = {}
        rates = [self.disk(f"{row} disk", (4,))]
        for turn in range(self.options.repeat):
            answer = self.measure(
                row, "dure", budget, lambda side, seed=turn: side.ask("decode", seed=seed, **work)
            )
            if answer:
                ours.append(answer)
            for setting in self.settings():
                peer = self.measure(
                    row,
                    setting,
                    budget,
                    lambda side, seed=turn: side.ask("decode", seed=seed, **work),
                )
                if peer:
                    theirs.setdefault(setting, []).append(peer["tps"])
        rates.append(self.disk(f"{row} disk", (4,)))
        if not ours:
            return
        tps = statistics.median(answer["tps"] for answer in ours)
        best = max((statistics.median(speeds) for speeds in theirs.values()), default=None)
        optimum = statistics.median(a.get("belady_bytes_a_token", 0.0) for a in ours)
        allowed = statistics.fmean(rates) / optimum if optimum else None
        self.record(
            f"{row} result",
            tps=round(tps, 3),
            over_best_peer=None if best is None else round(tps / best, 2),
            peers={name: round(statistics.median(s), 3) for name, s in theirs.items()},
            disk_allows_tps=None if allowed is None else round(allowed, 3),
            over_disk_with_belady=None if allowed is None else round(tps / allowed, 3),
        )

    def quarter(self) -> None:
        """The same with a quarter of the file."""
        self.decode("quarter", 0.25)

    def prefill(self) -> None:
        """A long prompt."""
        budget, speeds = self.file_bytes // 2, {}
        for turn in range(self.options.repeat):

            def work(side: Side, seed: int = turn) -> dict[str, Any]:
                return side.ask("prefill", count=self.options.prompt, seed=seed)

            answers = {"dure": self.measure("prefill", "dure", budget, work)}
            for setting in self.settings():
                for batch in self.options.batch:
                    key = f"{setting} {batch}"
                    answers[key] = self.measure("prefill", setting, budget, work, batch=batch)
            for key, answer in answers.items():
                if answer:
                    speeds.setdefault(key, []).append(answer["tps"])
        medians = {key: statistics.median(values) for key, values in speeds.items()}
        ours = medians.pop("dure", None)
        best = max(medians.values(), default=None)
        ratio = round(ours / best, 2) if ours and best else None
        self.record("prefill result", tps=ours, peers=medians, over_best_peer=ratio)

    def crowd(self) -> None:
        """Eight sequences, at once and in turn."""
        budget, work = self.file_bytes // 2, {"prompt": 32, "count": 64}
        turns = []

        def both(side: Side) -> dict[str, Any]:
            side.ask("crowd", sequences=1, seed=90, **work)  # warm
            turns.extend(
                side.ask("crowd", sequences=1, seed=91 + at, **work)["seconds"] for at in range(2)
            )
            return side.ask("crowd", sequences=8, seed=94, **work)

        answer = self.measure("crowd", "dure", budget, both)
        if answer:
            one = statistics.fmean(turns)
            ratio = round(8 * one / answer["seconds"], 3)
            self.record("crowd result", one_s=one, all_s=answer["seconds"], over_in_turn=ratio)

    def whole(self) -> None:
        """The file's size as budget, and no budget."""
        speeds: dict[str, dict[str, list[float]]] = {"decode": {}, "prefill": {}}
        for turn in range(self.options.repeat):
            for name, budget in (("none", 0), ("whole", self.file_bytes)):

                def work(side: Side, seed: int = turn, name: str = name) -> dict[str, Any]:
                    side.ask("prefill", count=512, seed=seed + 50)
                    answer = side.ask("prefill", count=512, seed=seed)
                    speeds["prefill"].setdefault(name, []).append(512 / answer["seconds"])
                    return side.ask("decode", prompt=64, warm=64, count=64, seed=seed)

                answer = self.measure("whole", "dure", budget, work)
                if answer:
                    speeds["decode"].setdefault(name, []).append(answer["tps"])
        for what, each in speeds.items():
            if len(each) == 2:
                medians = {name: statistics.median(values) for name, values in each.items()}
                ratio = round(medians["whole"] / medians["none"], 3)
                self.record("whole result", work=what, tps=medians, over_no_budget=ratio)

    def start(self) -> None:
        """To the first token from nothing, of a file that is not in the page cache."""
        times: dict[int, list[float]] = {}
        for turn in range(self.options.repeat):
            for budget in (0, self.file_bytes // 2):

                def work(side: Side, budget: int = budget, seed: int = turn) -> dict[str, Any]:
                    answer = side.ask("prefill", count=16, seed=seed)
                    seconds = time.perf_counter() - side.begun
                    times.setdefault(budget, []).append(seconds)
                    return {**answer, "first_token_s": seconds}

                self.measure("start", "dure", budget, work)
        medians = {budget: statistics.median(values) for budget, values in times.items()}
        if len(medians) == 2:
            whole, half = medians[0], medians[self.file_bytes // 2]
            self.record("start result", whole_s=whole, half_s=half, faster=round(whole / half, 2))

    def memory(self) -> None:
        """Mixed work for some minutes."""

        def work(side: Side) -> dict[str, Any]:
            end, turn = time.perf_counter() + 60 * self.options.minutes, 0
            total = {"seconds": 0.0, "tokens": 0, "read_bytes": 0}
            while time.perf_counter() < end:
                for what, how in (
                    ("prefill", {"count": 2048}),
                    ("crowd", {"sequences": 8, "prompt": 128, "count": 32}),
                    ("crowd", {"sequences": 1, "prompt": 64, "count": 64}),
                ):
                    turn += 1
                    answer = side.ask(what, seed=1000 + turn, **how)
                    total = {key: total[key] + answer[key] for key in total}
            return {**total, "requests": turn}

        self.measure("memory", "dure", self.file_bytes // 2, work)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file, as make_moe.py writes them")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS[:-1])
    parser.add_argument("--server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--ik", type=Path, help="a Python that has ik-llama-cpp-python and numpy")
    parser.add_argument("--settings", nargs="+", default=["llama:1", "llama:2", "ik:1", "ik:2"])
    parser.add_argument("--batch", type=int, nargs="+", default=[2048], help="peers' prefill rows")
    parser.add_argument("--threads", type=int, default=2, help="of dure")
    parser.add_argument("--repeat", type=int, default=1, help="alternations")
    parser.add_argument("--warm", type=int, default=64, help="tokens before those that are timed")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are timed")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the long prompt")
    parser.add_argument("--record", type=int, default=2_850_000, help="bytes of a read of `disk`")
    parser.add_argument("--minutes", type=float, default=4.0, help="of the row `memory`")
    parser.add_argument("--limit", type=float, default=280.0, help="seconds of an engine's answer")
    parser.add_argument("--json", type=Path, help="a file that every figure is appended to")
    parser.add_argument("--verbose", action="store_true", help="show what the engines log")
    options = parser.parse_args()
    wrong = [s for s in options.settings if s.partition(":")[0] not in ("llama", "ik")]
    if wrong:
        parser.error(f"--settings are llama:THREADS or ik:THREADS, not {wrong[0]}")
    if not (GROUPS / "memory.limit_in_bytes").exists() or os.geteuid() != 0:
        parser.error(f"this needs root and the memory controller of cgroups v1 at {GROUPS}")
    return options


def main() -> None:
    """Run the rows that were asked for."""
    options = parse()
    # Ended from outside, it ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    bench = Bench(options)
    for row in options.rows:
        getattr(bench, row)()


if __name__ == "__main__":
    main()
