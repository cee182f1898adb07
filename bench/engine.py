"""One engine in a process of its own, told what to do through its standard input.

Each line in is a JSON object {"do": NAME, ...}, each line out its answer. The first answer says how
the start went: the seconds from nothing to the first token, import of the engine included. All
engines do the same work, timed by the same lines: fixed random tokens, nothing sampled, prompts in
chunks of 512. It runs in the Python that has the engine, and needs numpy beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

CHUNK = 512  # prompt tokens in one call
LOSS_ROWS = 128  # rows of logits in one call: 128 of a 150k vocabulary are 77 MB
FIRST_PROMPT = 16  # tokens of the prompt that the first token after loading answers
SLACK = (
    64  # a sequence may be longer than asked by one part in so many, where none can be taken away
)

Row = tuple[int, int, int]  # token, position, sequence


class Engine(Protocol):
    """What is asked of an engine."""

    vocab_size: int
    version: str

    def open(self, sequences: int, length: int, flash: bool) -> None:
        """Make an empty cache of `sequences` sequences of up to `length` tokens."""

    def clear(self) -> None:
        """Forget all tokens."""

    def trim(self, depth: int) -> bool:
        """Forget the tokens of every sequence from position `depth` on, if it can."""

    def forward(self, rows: Sequence[Row], wanted: Sequence[int]) -> None:
        """Compute the rows, and the logits of those in `wanted`."""

    def logits(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """The logits (vocab_size,) of each of the last call's `wanted`."""


class Dure:
    """dure, below its scheduler and sampler, as `dure bench` drives it."""

    def __init__(self, model: str, *, threads: int, repack: bool) -> None:
        del repack  # its weights always are
        # Imported here because starting up is a part of what is timed.
        self.measure = importlib.import_module("dure.benchmark")
        loading = importlib.import_module("dure.loading.load")
        self.loaded = loading.load(model, threads=threads, context=4096, cache_tokens=4096)
        self.vocab_size = self.loaded.model.vocab_size
        self.version = importlib.import_module("dure").__version__

    def facts(self) -> dict[str, Any]:
        """{"isa", "read_bytes"}: the latter is what one token reads of the weights."""
        checkpoint = self.loaded.checkpoint
        tensors, metadata = dict(checkpoint.tensors), checkpoint.metadata
        if "output.weight" in tensors:
            tensors.pop("token_embd.weight")  # of which a token reads one row
        architecture = metadata.get("general.architecture")
        experts = metadata.get(f"{architecture}.expert_count", 0)
        used = metadata.get(f"{architecture}.expert_used_count", 0)
        sizes = [
            tensor.size_bytes * used // experts if "_exps." in name else tensor.size_bytes
            for name, tensor in tensors.items()
        ]
        kernels = importlib.import_module("dure.kernels")
        return {"isa": kernels.isa(), "read_bytes": sum(sizes)}

    def open(self, sequences: int, length: int, flash: bool) -> None:
        del flash
        self.run: Any = None  # the old cache goes before the new one comes
        self.sequences = sequences
        model = self.loaded.model
        self.run = self.measure.DirectRunner(model, tokens=length, sequences=sequences)

    def clear(self) -> None:
        """Nothing to do: attention never looks behind the position it is given."""

    def trim(self, depth: int) -> bool:
        """Nothing to do, for the same reason; what recurrent layers keep costs the same."""
        del depth
        return True

    def forward(self, rows: Sequence[Row], wanted: Sequence[int]) -> None:
        tokens, positions, sequences = zip(*rows, strict=True)
        self.last = self.run.forward(tokens, positions, sequences, wanted)

    def logits(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        del wanted
        yield from self.last


class Llama:
    """llama.cpp or its fork ik_llama.cpp, through the C functions that both have."""

    MODULE, PACKAGE = "llama_cpp", "llama-cpp-python"

    def __init__(self, model: str, *, threads: int, repack: bool) -> None:
        self.api: Any = importlib.import_module(self.MODULE)
        self.threads = threads
        self.context: Any = None
        self.api.llama_backend_init()
        settings = self.api.llama_model_default_params()
        self.set_up_model(settings, repack)
        self.model = self.api.llama_model_load_from_file(model.encode(), settings)
        if not self.model:
            raise SystemExit(f"{self.PACKAGE} cannot load {model}")
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.version = version(self.PACKAGE)

    def set_up_model(self, settings: Any, repack: bool) -> None:
        """Choose whether the weights go into its extra buffers (repacked, or AMX)."""
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = repack

    def set_up_context(self, settings: Any, flash: bool) -> None:
        """Choose flash attention, and a cache of its own for each sequence."""
        settings.flash_attn_type = int(flash)
        settings.kv_unified = False

    def open(self, sequences: int, length: int, flash: bool) -> None:
        if self.context:
            self.api.llama_free(self.context)
        settings = self.api.llama_context_default_params()
        settings.n_ctx = -(-length // 256) * 256 * sequences
        settings.n_batch = min(settings.n_ctx, 2048)
        settings.n_seq_max = self.sequences = sequences
        settings.n_threads = settings.n_threads_batch = self.threads
        self.set_up_context(settings, flash)
        self.context = self.api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"{self.PACKAGE} cannot make a context of {settings.n_ctx} tokens")

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def trim(self, depth: int) -> bool:
        memory, sequences = self.api.llama_get_memory(self.context), range(self.sequences)
        # A memory of recurrent layers refuses.
        return all(self.api.llama_memory_seq_rm(memory, each, depth, -1) for each in sequences)

    def forward(self, rows: Sequence[Row], wanted: Sequence[int]) -> None:
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = 0
        for at in wanted:
            batch.logits[at] = 1
        failed = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"{self.PACKAGE}: the forward pass failed with {failed}")

    def logits(self, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        for at in wanted:
            pointer = self.api.llama_get_logits_ith(self.context, at)
            floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
            yield np.ctypeslib.as_array(floats, (self.vocab_size,))


class IkLlama(Llama):
    """The fork, which kept older names for its cache and has its own way of repacking."""

    MODULE, PACKAGE = "ik_llama_cpp._ctypes_api", "ik-llama-cpp-python"

    def set_up_model(self, settings: Any, repack: bool) -> None:
        settings.repack_tensors, settings.use_mmap = repack, not repack

    def set_up_context(self, settings: Any, flash: bool) -> None:
        settings.flash_attn = flash

    def clear(self) -> None:
        self.api.llama_kv_cache_clear(self.context)

    def trim(self, depth: int) -> bool:
        # The wheel's Python has no name for this function; its library does.
        remove = self.api._lib.llama_kv_cache_seq_rm
        remove.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3]
        remove.restype = ctypes.c_bool
        return all(remove(self.context, sequence, depth, -1) for sequence in range(self.sequences))


ENGINES: dict[str, Any] = {"dure": Dure, "llama": Llama, "ik": IkLlama}


class Session:
    """One engine, the cache it has open, and the work that can be asked of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        start = time.perf_counter()
        kind = ENGINES[options.engine]
        self.engine: Engine = kind(options.model, threads=options.threads, repack=options.repack)
        self.cache: tuple[int, int, bool] = (1, FIRST_PROMPT, options.flash)
        self.engine.open(*self.cache)
        self.held = 0  # tokens in each sequence
        self.fill(FIRST_PROMPT)
        self.first_token_s = time.perf_counter() - start

    def hold(self, sequences: int, length: int, flash: bool, depth: int) -> dict[str, Any]:
        """Have `depth` tokens in each sequence of such a cache, kept ones if possible.

        It may be a few more, where an engine cannot take some of them away.
        """
        if (sequences, length, flash) != self.cache:
            self.cache = (sequences, length, flash)
            self.engine.open(*self.cache)
            self.held = 0
        if depth == 0:
            self.engine.clear()
            self.held = 0
        elif depth < self.held:
            if self.engine.trim(depth):
                self.held = depth
            elif self.held - depth > depth // SLACK:
                self.engine.clear()
                self.held = 0
        return self.fill(max(0, depth - self.held))

    def fill(self, count: int) -> dict[str, Any]:
        """{"seconds", "tokens"}: puts `count` more random tokens into each sequence."""
        draw = random.Random(self.held)
        highest = min(30000, self.engine.vocab_size)
        tokens = [draw.randrange(min(100, highest - 1), highest) for _ in range(count)]
        start = time.perf_counter()
        for sequence in range(self.cache[0]):
            for first in range(0, count, CHUNK):
                part = tokens[first : first + CHUNK]
                rows = [(t, self.held + first + i, sequence) for i, t in enumerate(part)]
                self.engine.forward(rows, [len(part) - 1])
        self.held += count
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": count * self.cache[0]}

    def decode(self, steps: int) -> dict[str, Any]:
        """{"seconds", "tokens"} of `steps` tokens in each sequence, then forgotten if possible."""
        sequences = range(self.cache[0])
        start = time.perf_counter()
        for step in range(steps):
            token = (100 + step) % self.engine.vocab_size
            rows = [(token, self.held + step, sequence) for sequence in sequences]
            self.engine.forward(rows, sequences)
        seconds = time.perf_counter() - start
        if not self.engine.trim(self.held):
            self.held += steps
        return {"seconds": seconds, "tokens": steps * len(sequences)}

    def loss(self, tokens: list[int]) -> dict[str, Any]:
        """{"loss"}: mean negative log-likelihood of the second half of tokens, after the first."""
        self.engine.clear()
        self.held = 0
        middle, total = len(tokens) // 2, 0.0
        rows = [(token, at, 0) for at, token in enumerate(tokens[:-1])]
        self.engine.forward(rows[: middle - 1], [middle - 2])
        for start in range(middle - 1, len(rows), LOSS_ROWS):
            part = rows[start : start + LOSS_ROWS]
            wanted = range(len(part))
            self.engine.forward(part, wanted)
            for at, logits in zip(wanted, self.engine.logits(wanted), strict=True):
                wide = logits.astype(np.float64)
                wide -= wide.max()
                total += math.log(np.exp(wide).sum()) - float(wide[tokens[start + at + 1]])
        self.engine.clear()
        return {"loss": total / (len(rows) - middle + 1)}

    def tokenize(self, text: str) -> dict[str, Any]:
        """{"tokens"} of the text, by dure's tokenizer: every engine is scored on the same ones."""
        assert isinstance(self.engine, Dure), "the peers are given their tokens"
        tokenizer = self.engine.loaded.tokenizer
        return {"tokens": list(tokenizer.encode(text, add_special=False, parse_special=False))}

    def facts(self) -> dict[str, Any]:
        """{"first_token_s", "version"} of this process, and what dure knows of the file."""
        known = self.engine.facts() if isinstance(self.engine, Dure) else {}
        return {"first_token_s": self.first_token_s, "version": self.engine.version, **known}


def main() -> None:
    """Load, answer that, then answer one line after another until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repack", action="store_true", help="repack the weights (peers)")
    parser.add_argument("--flash", action="store_true", help="flash attention, at first (peers)")
    options = parser.parse_args()
    # An engine that prints to standard output must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(options)
    print(json.dumps(session.facts()), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(session, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
