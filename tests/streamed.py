"""Models whose experts may be on disk, driven by an engine as `LLM` drives them.

`python streamed.py '{"model": …, "memory": …, "prompts": [[…], …], …}'` answers the prompts at once
and prints one JSON object: so that a test can measure a process that does nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.request import Request, SamplingParams
from dure.loading.load import LoadedModel, load

OVERHEADS = (
    "dure.loading.planner.OVERHEAD_BYTES",
    "dure.loading.memory.OVERHEAD_BYTES",
    "dure.loading.planner.PROCESS_BYTES",
    "dure.loading.planner.READERS_BYTES",
)
"""What a plan counts beside a model; where a test makes it 0, a file of a few MB is too large."""


def opened(path: Path | str, memory: int | None = None, **options: Any) -> LoadedModel:
    """The model under a budget in bytes, with a small cache."""
    settings: dict[str, Any] = {"threads": 2, "context": 512, "cache_tokens": 1024, **options}
    return load(path, memory=memory, with_tokenizer=False, **settings)


def engine_of(model: LoadedModel, **options: Any) -> Engine:
    """An engine as `LLM` makes it."""
    runner = ModelRunner(
        model.model,
        num_blocks=model.num_blocks,
        num_states=model.num_states,
        cache_dtype=model.cache_dtype,
        expert_pool=model.expert_pool,
    )
    rows = model.memory.prefill_rows
    return Engine(runner, max_prefill_tokens=rows, threads=model.threads, **options)


def params(tokens: int) -> SamplingParams:
    """How the requests of these tests are drawn."""
    return SamplingParams(max_tokens=tokens, temperature=0.8, top_k=50, seed=7, logprobs=4)


def finish(engine: Engine) -> None:
    """Step until nothing is left to do."""
    while engine.has_work:
        engine.step()
    engine.check_idle()


def digest(request: Request) -> str:
    """A hash of all that a caller sees of the request, every log-probability as its bytes."""
    found = hashlib.sha256(np.array(request.output_ids, np.int32).tobytes())
    for at in request.logprobs:
        ids, values = zip(*at.top, strict=True)
        found.update(np.array([at.token_id, *ids], np.int32).tobytes())
        found.update(np.array([at.logprob, *values], np.float32).tobytes())
    return found.hexdigest()


def answers(
    model: LoadedModel, prompts: Sequence[Sequence[int]], tokens: int, **options: Any
) -> list[str]:
    """The digests of answers to all prompts at once."""
    engine = engine_of(model, **options)
    requests = [engine.add(prompt, params(tokens)) for prompt in prompts]
    finish(engine)
    for each in requests:
        if each.error is not None:
            raise each.error
    return [digest(each) for each in requests]


def peak_rss() -> int:
    """The most memory that this process has had at once, in bytes, shared pages too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def main() -> None:
    """Answer, and print what came of it."""
    asked = json.loads(sys.argv[1])
    model = opened(asked["model"], asked["memory"], **asked.get("options", {}))
    found = answers(model, asked["prompts"], asked["tokens"])
    print(
        json.dumps(
            {
                "answers": found,
                "memory": asdict(model.memory),
                "stats": None if model.expert_pool is None else asdict(model.expert_pool.stats),
                "peak_rss": peak_rss(),
            }
        )
    )


if __name__ == "__main__":
    main()
