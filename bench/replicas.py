"""Two replicas of one thread each, or one engine with two threads: which answers faster?

    python bench/replicas.py MODEL [--ray local] [--rounds 3] [--streams 16] [--answer 64]

Streams are conversations of three turns, in four groups of a common beginning. Both ways compute
the same requests, in turns, in one process; with --ray the replicas are on the nodes of that
cluster. Prints of each round the tokens a second and the share of prompt tokens found in a cache,
and in the end the usual ratio of both, the median. Ends with an error if a token differs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass

import numpy as np

from dure import LLM, AsyncLLM, SamplingParams

GROUPS, PREFIX, OWN, TURN, TURNS = 4, 512, 48, 32, 3  # tokens


@dataclass
class Result:
    """What one way did in one round."""

    tokens: list[list[int]]  # of each stream, of all turns
    seconds: float
    prompt: int
    cached: int

    @property
    def speed(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds

    @property
    def hits(self) -> float:
        return self.cached / self.prompt


async def talked(llm: AsyncLLM, streams: int, answer: int, seed: int) -> Result:
    """Hold all conversations at once."""
    random = np.random.default_rng(seed)

    def words(count: int) -> list[int]:
        return [int(each) for each in random.integers(1000, 20_000, count)]

    prefixes = [words(PREFIX) for _ in range(GROUPS)]
    said = [[*prefixes[i % GROUPS], *words(OWN)] for i in range(streams)]
    turns = [[words(TURN) for _ in range(TURNS)] for _ in range(streams)]
    params = SamplingParams(max_tokens=answer, temperature=0.7, seed=seed, ignore_eos=True)
    result = Result([[] for _ in range(streams)], 0.0, 0, 0)

    async def talk(stream: int) -> None:
        for new in turns[stream]:
            said[stream] += new
            [done] = await llm.generate([said[stream]], params)
            said[stream] += done.token_ids
            result.tokens[stream] += done.token_ids
            result.prompt += done.prompt_tokens
            result.cached += done.cached_tokens

    began = time.perf_counter()
    await asyncio.gather(*(talk(stream) for stream in range(streams)))
    result.seconds = time.perf_counter() - began
    return result


async def main(options: argparse.Namespace) -> None:
    common = {"speculate": "off", "context": 2048, "conversations": options.streams}
    one = AsyncLLM(LLM(options.model, threads=2, **common))
    two = AsyncLLM(LLM(options.model, threads=1, replicas=2, ray=options.ray, **common))
    ratios: list[tuple[float, float]] = []
    for number in range(options.rounds):
        order = [one, two] if number % 2 == 0 else [two, one]
        done = {llm: await talked(llm, options.streams, options.answer, number) for llm in order}
        if done[one].tokens != done[two].tokens:
            raise SystemExit("the tokens differ")
        for name, llm in (("one engine, 2 threads", one), ("2 replicas, 1 thread", two)):
            result = done[llm]
            print(f"{name:<24}{result.speed:8.1f} tokens/s   {result.hits:6.1%} cached", flush=True)
        ratios.append((done[two].speed / done[one].speed, done[two].hits / done[one].hits))
    speed, hits = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"replicas / one: {speed:.3f} of the speed, {hits:.3f} of the prefix hits")
    for llm in (one, two):
        llm_inside = await llm.load()
        await llm.close()
        llm_inside.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--ray", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--answer", type=int, default=64)
    asyncio.run(main(parser.parse_args()))
