"""How fast are dure and other engines on the same GGUF file, in one run?

Runs every engine that this Python can import, each in a process of its own, and prints one JSON
object a line: the workload of `dure bench` (fixed random tokens, nothing sampled, medians after a
warm-up). `llama` is llama.cpp (pip install llama-cpp-python), `ik` is ik_llama.cpp (pip install
ik-llama-cpp-python) with its weights repacked. Each is run with and without flash attention: take
its better figure. A speed counts only where the perplexity agrees: check that first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

MODULES = {"dure": "dure", "llama": "llama_cpp", "ik": "ik_llama_cpp"}
CHUNK = 512  # prompt tokens in one call, as in dure bench


class Peer:
    """A model in llama.cpp or its fork, driven through the C functions that both have."""

    def __init__(self, options: argparse.Namespace) -> None:
        fork = options.engine == "ik"
        name = "ik_llama_cpp._ctypes_api" if fork else "llama_cpp"
        self.api: Any = importlib.import_module(name)
        self.fork = fork
        self.api.llama_backend_init()
        settings = self.api.llama_model_default_params()
        if fork:
            settings.repack_tensors, settings.use_mmap = True, False
        else:
            settings.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(options.model.encode(), settings)
        if not self.model:
            raise SystemExit(f"{options.engine} cannot load {options.model}")
        self.context = self.api.llama_init_from_model(self.model, self._settings(options))
        if not self.context:
            raise SystemExit(f"{options.engine} cannot make the context")
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def _settings(self, options: argparse.Namespace) -> Any:
        """The context's settings: room for every sequence, the threads, and flash attention."""
        settings = self.api.llama_context_default_params()
        longest = max(options.prompt, options.depth + options.decode) + 32
        settings.n_ctx = longest * options.batch
        settings.n_batch = min(settings.n_ctx, 2048)
        settings.n_seq_max = options.batch
        settings.n_threads = settings.n_threads_batch = options.threads
        if self.fork:
            settings.flash_attn = options.flash
        else:
            settings.flash_attn_type = int(options.flash)
            settings.kv_unified = False
        return settings

    def clear(self) -> None:
        """Forget all sequences."""
        if self.fork:
            self.api.llama_kv_cache_clear(self.context)
        else:
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def forward(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Compute rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = int(wanted)
        failed = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"the forward pass failed with {failed}")

    def fill(self, tokens: Sequence[int], sequence: int) -> None:
        """Put tokens into an empty sequence."""
        last = len(tokens) - 1
        rows = [(token, at, sequence, at == last) for at, token in enumerate(tokens)]
        for start in range(0, len(rows), CHUNK):
            self.forward(rows[start : start + CHUNK])


def measure_peer(options: argparse.Namespace) -> dict[str, float | None]:
    """Tokens a second of prefill and decode, medians of --repeat after one warm-up."""
    peer = Peer(options)
    draw = random.Random(1)
    highest = min(30000, peer.vocab_size)
    prompt = [draw.randrange(100, highest) for _ in range(options.prompt)]
    context = [draw.randrange(100, highest) for _ in range(options.depth)]
    speeds: dict[str, list[float]] = {"prefill_tps": [], "decode_tps": []}
    for _ in range(options.repeat + 1):
        if options.prompt:
            peer.clear()
            start = time.perf_counter()
            peer.fill(prompt, 0)
            speeds["prefill_tps"].append(options.prompt / (time.perf_counter() - start))
        if options.decode:
            peer.clear()
            for sequence in range(options.batch):
                peer.fill(context, sequence)
            start = time.perf_counter()
            for step in range(options.decode):
                at = options.depth + step
                peer.forward([(100 + step + s, at, s, True) for s in range(options.batch)])
            count = options.decode * options.batch
            speeds["decode_tps"].append(count / (time.perf_counter() - start))
    return {
        name: round(statistics.median(values[1:]), 2) if values else None
        for name, values in speeds.items()
    }


def measure_dure(options: argparse.Namespace) -> dict[str, float | None]:
    """The same from `dure bench`."""
    names = ("prompt", "decode", "depth", "batch", "repeat", "threads")
    flags = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    command = [sys.executable, "-m", "dure", "bench", options.model, *flags, "--json"]
    result = json.loads(subprocess.check_output(command))
    return {name: result[name] for name in ("prefill_tps", "decode_tps")}


def run_all(arguments: Sequence[str]) -> None:
    """Every engine that is installed, one process each."""
    for engine, module in MODULES.items():
        if find_spec(module) is None:
            continue
        for extra in [[]] if engine == "dure" else [[], ["--flash"]]:
            command = [sys.executable, __file__, *arguments, "--engine", engine, *extra]
            # The engines write their logs to stderr, some of them a page.
            done = subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
            if done.returncode:
                print(json.dumps({"engine": engine, "failed": done.returncode}), flush=True)


def main() -> None:
    """Measure one engine, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--engine", choices=MODULES, help="only this one")
    parser.add_argument("--flash", action="store_true", help="flash attention, of a peer")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.engine is None:
        run_all(sys.argv[1:])
        return
    figures = measure_dure(options) if options.engine == "dure" else measure_peer(options)
    facts = {"engine": options.engine, "flash": options.flash, "model": options.model}
    sizes = {name: getattr(options, name) for name in ("prompt", "decode", "depth", "batch")}
    print(json.dumps({**facts, **sizes, "threads": options.threads, **figures}), flush=True)


if __name__ == "__main__":
    main()
