"""Speed and perplexity of a model, driven with fixed tokens: no scheduler, no sampler."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.batch import Batch, CacheDtype, States
from dure.engine.block_pool import blocks_for
from dure.engine.model_runner import ModelRunner
from dure.errors import InvalidRequestError
from dure.weights.expert_stats import ExpertUse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.models import Model
    from dure.weights.expert_pool import ExpertPool
    from dure.weights.expert_stats import ExpertStats

CHUNK = 512
"""Prompt tokens in one forward pass."""

LOGIT_ROWS = 128
"""Most rows of logits in one forward pass: 128 of a 150k vocabulary are 77 MB."""


class DirectRunner:
    """Runs a model on fixed tokens, with a cache for `sequences` sequences of `tokens` tokens."""

    def __init__(
        self,
        model: Model,
        *,
        tokens: int,
        sequences: int = 1,
        cache_dtype: CacheDtype = "f16",
        expert_pool: ExpertPool | None = None,
        chunk: int = CHUNK,
    ):
        """expert_pool: of experts that are not all in memory; chunk: prompt tokens in one pass."""
        self.model, self._chunk = model, max(CHUNK, chunk)
        window = max((spec.window or 0 for spec in model.kv_cache_specs), default=0)
        blocks = blocks_for(tokens)
        # What a layer with a window needs while a chunk is computed, used again and again.
        seen = min(blocks, blocks_for(window + self._chunk) + 1)
        self.block_tables = _tables(sequences, blocks, blocks)
        self.window_tables = _tables(sequences, blocks, seen) if window else None
        self.runner = ModelRunner(
            model,
            num_blocks=sequences * blocks,
            num_window_blocks=sequences * seen,
            num_states=sequences,
            cache_dtype=cache_dtype,
            expert_pool=expert_pool,
        )
        self.states = States(np.arange(sequences, dtype=np.int32), np.empty((0, 2), np.int32))

    def forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        logit_rows: Sequence[int],
        *,
        hidden_rows: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Put these rows in the cache; return the logits (len(logit_rows), vocab_size).

        Rows of one sequence are at most a `chunk`, or 512 if that is more. hidden_rows: those that
        the last layer computes, too, though nobody asks for their logits.
        """
        batch = Batch(
            tokens=np.asarray(tokens, np.int32),
            positions=np.asarray(positions, np.int32),
            sequences=np.asarray(sequences, np.int32),
            block_tables=self.block_tables,
            window_tables=self.window_tables,
            logit_rows=np.asarray(logit_rows, np.int32),
            hidden_rows=None if hidden_rows is None else np.asarray(hidden_rows, np.int32),
            states=self.states,
        )
        logits = self.runner.execute(batch)
        for error in self.runner.row_errors.values():
            raise error
        return logits

    def fill(self, tokens: Sequence[int], sequence: int = 0) -> None:
        """Put `tokens` in the cache from position 0 on, and drop their logits."""
        for start in range(0, len(tokens), self._chunk):
            part = tokens[start : start + self._chunk]
            positions = range(start, start + len(part))
            # As in a real prompt the last row's logits are wanted, and are part of what is timed.
            self.forward(part, positions, [sequence] * len(part), [len(part) - 1])

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield logits (≤ 128, vocab_size) of every one of `tokens` from position 0 on."""
        for start in range(0, len(tokens), LOGIT_ROWS):
            part = tokens[start : start + LOGIT_ROWS]
            positions = range(start, start + len(part))
            yield self.forward(part, positions, [0] * len(part), range(len(part)))

    def all_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits (len(tokens), vocab_size) of `tokens` from position 0 on."""
        result = np.empty((len(tokens), self.model.vocab_size), np.float32)
        done = 0
        for part in self.logits(tokens):
            result[done : done + len(part)] = part
            done += len(part)
        return result


def speed(
    model: Model,
    *,
    prompt: int = 512,
    decode: int = 64,
    depth: int = 0,
    batch: int = 1,
    repeat: int = 3,
    cache_dtype: CacheDtype = "f16",
    expert_pool: ExpertPool | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure tokens per second: {"prefill_tps", "decode_tps"}, medians of `repeat` rounds.

    And "prefill_samples" and "decode_samples", the speed of each round.

    Prefill: `prompt` random tokens in one empty sequence. Decode: `decode` steps of one token in
    each of `batch` sequences that hold `depth` tokens, counted over all of them. None if 0 tokens.
    chunk: prompt tokens in one pass. With `expert_pool`, of experts that are not all in memory,
    also "prefill_read_mb", MB a token, and "prefill_hit_rate", 0 to 1, over the same rounds, and
    the same of decode.
    """
    draw = random.Random(1)
    highest = min(30000, model.vocab_size)
    lowest = min(100, highest - 1)
    prompt_ids = [draw.randrange(lowest, highest) for _ in range(prompt)]
    context_ids = [draw.randrange(lowest, highest) for _ in range(depth)]
    run = DirectRunner(
        model,
        tokens=max(prompt, depth + decode, 1),
        sequences=batch,
        cache_dtype=cache_dtype,
        expert_pool=expert_pool,
        chunk=chunk,
    )
    stats = None if expert_pool is None else expert_pool.stats
    prefill, decoded = _Rounds(stats), _Rounds(stats)
    for finished in range(repeat + 1):
        if progress is not None:
            progress(finished, repeat + 1)
        if prompt:
            with prefill.timed(prompt):
                run.fill(prompt_ids)
        if decode:
            for sequence in range(batch):
                run.fill(context_ids, sequence)
            with decoded.timed(decode * batch):
                _decode(run, decode, depth, batch)
    if progress is not None:
        progress(repeat + 1, repeat + 1)
    speeds = {"prefill_tps": prefill.median(), "decode_tps": decoded.median()}
    samples = {"prefill_samples": prefill.samples, "decode_samples": decoded.samples}
    return {**speeds, **samples, **prefill.reads("prefill"), **decoded.reads("decode")}


class _Rounds:
    """Rounds of one kind of work: their speeds, and what they read from disk. Without the first."""

    def __init__(self, stats: ExpertStats | None) -> None:
        self._stats = stats
        self._speeds: list[float] = []
        self._tokens = 0
        self._use = ExpertUse()

    @contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Time the block as a round of so many tokens."""
        before, start = None if self._stats is None else self._stats.use, time.perf_counter()
        yield
        self._speeds.append(tokens / (time.perf_counter() - start))
        if len(self._speeds) > 1 and self._stats is not None and before is not None:
            self._use += self._stats.use - before
            self._tokens += tokens

    @property
    def samples(self) -> list[float]:
        """The speed of each round."""
        return [round(speed, 2) for speed in self._speeds[1:]]

    def median(self) -> float | None:
        """Return the median speed; None if there was but the warm-up."""
        return round(statistics.median(self._speeds[1:]), 2) if self._speeds[1:] else None

    def reads(self, phase: str) -> dict[str, float | None]:
        """Return what a token read, and the share of experts that were in memory."""
        if self._stats is None:
            return {}
        done = self._tokens > 0
        return {
            f"{phase}_read_mb": self._use.read_bytes / self._tokens / 1e6 if done else None,
            f"{phase}_hit_rate": self._use.hit_rate if done else None,
        }


def perplexity(
    model: Model,
    tokens: Sequence[int],
    *,
    window: int = 512,
    cache_dtype: CacheDtype = "f16",
    expert_pool: ExpertPool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Measure the perplexity of `tokens`, exp of the mean negative log-likelihood.

    A token's likelihood is its softmax over all the model's rows, as in transformers: those that no
    token has are counted.

    Returns {"tokens", "scored", "perplexity", "standard_error", "tail"}: the error is that of the
    mean over the tokens that were scored, times the perplexity (of one token there is none: NaN).

    Scored is the second half of each full window, each window starting from an empty cache. What
    comes after the last one is the tail, and not scored.
    Raises InvalidRequestError if there is no full window.
    """
    windows = len(tokens) // window
    if not windows:
        raise InvalidRequestError(
            f"The text has {len(tokens)} tokens, less than one window of {window}.",
            hint=f"use a longer text, or --window {max(2, len(tokens))} or less",
        )
    run = DirectRunner(model, tokens=window, cache_dtype=cache_dtype, expert_pool=expert_pool)
    losses: list[float] = []
    for index in range(windows):
        if progress is not None:
            progress(index, windows)
        part = tokens[index * window : (index + 1) * window]
        first = window // 2 - 1  # this row predicts the first token that is scored
        if first > 0:
            run.fill(part[:first])
        for start in range(first, window - 1, LOGIT_ROWS):
            rows = range(start, min(start + LOGIT_ROWS, window - 1))
            logits = run.forward([part[i] for i in rows], rows, [0] * len(rows), range(len(rows)))
            losses += [_loss(row, part[i + 1]) for i, row in zip(rows, logits, strict=True)]
    if progress is not None:
        progress(windows, windows)
    value, count = math.exp(statistics.fmean(losses)), len(losses)
    error = statistics.stdev(losses) / math.sqrt(count) if count > 1 else math.nan
    return {
        "tokens": len(tokens),
        "scored": count,
        "perplexity": value,
        "standard_error": value * error,
        "tail": len(tokens) - windows * window,
    }


def _tables(sequences: int, entries: int, blocks: int) -> NDArray[np.int32]:
    """Return block tables (sequences, entries) over so many blocks each, which come in turn."""
    first = blocks * np.arange(sequences, dtype=np.int32)[:, None]
    return first + np.arange(entries, dtype=np.int32) % blocks


def _decode(run: DirectRunner, steps: int, depth: int, batch: int) -> None:
    sequences = range(batch)
    for step in range(steps):
        tokens = [(100 + step + sequence) % run.model.vocab_size for sequence in sequences]
        run.forward(tokens, [depth + step] * batch, sequences, sequences)


def _loss(logits: NDArray[np.float32], token: int) -> float:
    """Return the negative log of the softmax probability of `token`, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    return math.log(float(np.exp(wide).sum())) - float(wide[token])
