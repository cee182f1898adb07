"""A part of streaming.py: dure or ik_llama.cpp with one model, in a process of its own.

It answers lines of JSON as engine.py does. Prompts are random tokens, other ones for each seed;
dure samples what follows as for a user, ik_llama.cpp is given random tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 4096


def drawn(count: int, seed: int) -> list[int]:
    """Random tokens."""
    rng = random.Random(seed)
    return [rng.randrange(100, 30000) for _ in range(count)]


def disk_bytes() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


class Dure:
    """dure as a user has it: LLM, its scheduler and its sampler."""

    def __init__(self, options: argparse.Namespace) -> None:
        # The peers' Python has no dure, and starting up is a part of what is timed.
        from dure import LLM, SamplingParams  # noqa: PLC0415

        self.params = SamplingParams
        self.llm = LLM(
            options.model,
            threads=options.threads,
            memory=options.memory or None,
            context=CONTEXT,
            speculate="off",
            cache_bytes=options.cache_bytes,
        )
        self.pool = getattr(self.llm, "_expert_pool", None)

    def facts(self) -> dict[str, Any]:
        """What the model was planned to take."""
        return {"plan": vars(self.llm.memory), **self.counts()}

    def counts(self) -> dict[str, Any]:
        """The counters of the experts' cache, if there is one."""
        if self.pool is None:
            return {}
        stats = self.pool.stats
        names = ("hits", "misses", "read_bytes", "waited_seconds", "guessed_right", "guessed_wrong")
        sizes = ("experts", "resident", "resident_bytes", "capacity_bytes")
        return {name: getattr(stats, name) for name in (*names, *sizes)}

    def sampling(self, count: int, seed: int) -> Any:
        """Exactly `count` tokens."""
        return self.params(max_tokens=count, temperature=1.0, seed=seed, ignore_eos=True)

    def decode(self, prompt: int, warm: int, count: int, seed: int) -> dict[str, Any]:
        """Time `count` tokens after a prompt and `warm` ones; say what Belady would have read."""
        stream = self.llm.stream(drawn(prompt, seed), self.sampling(warm + count, seed))
        with self.watched() as seen:
            for _ in range(warm):
                next(stream)
            first, before, read = len(seen), self.counts(), disk_bytes()
            begun = time.perf_counter()
            for _ in stream:
                pass
            seconds = time.perf_counter() - begun
        after = self.counts()
        return {
            "seconds": seconds,
            "tokens": count,
            "read_bytes": disk_bytes() - read,
            **{f"{name}_delta": after[name] - before[name] for name in list(after)[:6]},
            **self.optimum(seen, first, count),
        }

    @contextmanager
    def watched(self) -> Any:
        """Yield a list that the experts of every layer of every step are appended to."""
        seen: list[tuple[Any, np.ndarray]] = []
        if self.pool is None:
            yield seen
            return
        begin = self.pool.begin

        def watching(experts: Any, ids: Any, x: Any, scores: Any) -> Any:
            seen.append((experts, np.array(ids)))
            return begin(experts, ids, x, scores)

        self.pool.begin = watching
        try:
            yield seen
        finally:
            del self.pool.begin

    def optimum(self, seen: list[Any], first: int, tokens: int) -> dict[str, Any]:
        """The records and bytes that Belady's cache of the same size reads a token."""
        if not seen:
            return {}
        from cache_policies import Belady, Request  # noqa: PLC0415

        layers = {id(experts): experts for experts, _ in seen}
        number = {key: at for at, key in enumerate(layers)}
        count = max(experts.count for experts in layers.values())
        record = float(np.mean([experts.record_bytes for experts in layers.values()]))
        requests = [
            Request(number[id(experts)], ids, np.empty(0), counts=at >= first)
            for at, (experts, ids) in enumerate(seen)
        ]
        size = int(self.pool.stats.capacity_bytes / record)
        missed = Belady(requests, len(layers), count).misses(size)
        needed = sum(len(np.unique(request.ids)) for request in requests[first:])
        return {
            "record_bytes": record,
            "cached_records": size,
            "needed_a_token": needed / tokens,
            "belady_misses_a_token": missed / tokens,
            "belady_bytes_a_token": missed * record / tokens,
        }

    def prefill(self, count: int, seed: int) -> dict[str, Any]:
        """Time a prompt of `count` tokens, to the first one of its answer."""
        read, begun = disk_bytes(), time.perf_counter()
        list(self.llm.stream(drawn(count, seed), self.sampling(1, seed)))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "tokens": count, "read_bytes": disk_bytes() - read}

    def crowd(self, sequences: int, prompt: int, count: int, seed: int) -> dict[str, Any]:
        """Time prompts with answers, all at once."""
        prompts = [drawn(prompt, seed * 1000 + at) for at in range(sequences)]
        params = [self.sampling(count, seed * 1000 + at) for at in range(sequences)]
        read, begun = disk_bytes(), time.perf_counter()
        self.llm.generate(prompts, params)
        seconds = time.perf_counter() - begun
        tokens = sequences * (prompt + count)
        return {"seconds": seconds, "tokens": tokens, "read_bytes": disk_bytes() - read}


class Ik:
    """ik_llama.cpp with its weights mapped, driven below its sampler."""

    def __init__(self, options: argparse.Namespace) -> None:
        from engine import IkLlama  # noqa: PLC0415 - it needs the peer's package

        class Sized(IkLlama):
            """With a batch size of its own."""

            def set_up_context(self, settings: Any, flash: bool) -> None:
                super().set_up_context(settings, flash)
                settings.n_ubatch = options.batch

        self.engine = Sized(options.model, threads=options.threads, repack=False)
        self.engine.open(1, CONTEXT, flash=True)

    def facts(self) -> dict[str, Any]:
        """Its version."""
        return {"version": self.engine.version}

    def fill(self, tokens: list[int], start: int) -> None:
        """Compute these tokens, and the last one's logits."""
        self.engine.forward([(t, start + i, 0) for i, t in enumerate(tokens)], [len(tokens) - 1])

    def decode(self, prompt: int, warm: int, count: int, seed: int) -> dict[str, Any]:
        """As dure's."""
        tokens = drawn(prompt + warm + count, seed)
        self.engine.clear()
        self.fill(tokens[:prompt], 0)
        for at in range(prompt, prompt + warm):
            self.fill(tokens[at : at + 1], at)
        read, begun = disk_bytes(), time.perf_counter()
        for at in range(prompt + warm, len(tokens)):
            self.fill(tokens[at : at + 1], at)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "tokens": count, "read_bytes": disk_bytes() - read}

    def prefill(self, count: int, seed: int) -> dict[str, Any]:
        """As dure's."""
        self.engine.clear()
        read, begun = disk_bytes(), time.perf_counter()
        tokens = drawn(count, seed)
        for start in range(0, count, 2048):
            self.fill(tokens[start : start + 2048], start)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "tokens": count, "read_bytes": disk_bytes() - read}


def main() -> None:
    """Load, say so, and answer lines until the input ends."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("engine", choices=["dure", "ik"])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=512, help="ik's rows of a step")
    parser.add_argument("--memory", type=int, default=0, help="dure's budget in bytes; 0: none")
    parser.add_argument("--cache-bytes", type=int, help="dure's KV cache")
    options = parser.parse_args()
    # An engine that prints to standard output must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side: Any = {"dure": Dure, "ik": Ik}[options.engine](options)
    load_s = time.perf_counter() - begun
    print(json.dumps({"load_s": load_s, **side.facts()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(side, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
