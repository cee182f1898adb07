"""How fast a model will be on a machine: the seconds of its steps, part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache, cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from dure.planning.machine import STAND_INS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dure.batch import CacheDtype
    from dure.layers.mixer_work import MixerWork
    from dure.planning.machine import Machine
    from dure.planning.work import MatrixWork, ModelWork

CHUNK = 512
"""Rows of a prompt in one step."""

SKEW = 0.6
"""How uneven experts are chosen: the standard deviation of an expert's constant in its router's
score over that of what changes from token to token. bench/make_moe.py says which measurements of
trained routers it follows."""

HITS_BY_SHARE = ((0.0, 0.0), (0.115, 0.53), (0.23, 0.76), (0.5, 0.93), (1.0, 1.0))
"""Share of experts in memory -> share of those that the next token needs: Qwen3-30B-A3B, published
(../loading/expectation.py has the same)."""

INDEXER_TYPE = "Q8_0"
"""What an indexer's scores are taken to be as fast as: products with matrices of this type."""


@dataclass(frozen=True)
class StepTime:
    """Where the seconds of a step go."""

    products: float = 0.0  # dense matrices
    experts: float = 0.0
    attention: float = 0.0  # and recurrent layers
    head: float = 0.0
    overhead: float = 0.0  # what layers and calls take by themselves
    disk: float = 0.0  # waiting for experts

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return float(sum(getattr(self, each.name) for each in fields(self)))

    def __add__(self, other: StepTime) -> StepTime:
        names = [each.name for each in fields(self)]
        return StepTime(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class Speeds:
    """What is expected of one model on one machine."""

    work: ModelWork
    machine: Machine
    cache_dtype: CacheDtype = "f16"
    expert_cache_bytes: int | None = None  # of experts in memory; None: all of them
    prefill_rows: int = CHUNK
    skew: float = SKEW

    def decode_tps(self, streams: int, depth: int) -> float:
        """Return tokens a second of all `streams` together, each of which holds `depth` tokens."""
        return streams / self.decode_step(streams, depth).total

    def prefill_tps(self, tokens: int) -> float:
        """Return tokens a second of a prompt of so many tokens, from an empty cache."""
        return tokens / self.first_token_s(tokens)

    def first_token_s(self, tokens: int) -> float:
        """Return the seconds from a prompt of so many tokens to its first token."""
        return sum(step.total for step in self.prefill_steps(tokens))

    def decode_step(self, streams: int, depth: int) -> StepTime:
        """Return a step of one token in each of `streams` sequences of `depth` tokens."""
        attention = 0.0
        for mixer, count in self.work.mixers:
            seen = streams * min(depth + 1, _most_seen(mixer))
            attention += count * self._attention_s(mixer, streams, seen, "one")
            attention += count * self._indexer_s(mixer, streams * (depth + 1))
        return self._products(streams, share=1.0, logits=streams) + StepTime(attention=attention)

    def prefill_steps(self, tokens: int, depth: int = 0) -> Iterator[StepTime]:
        """Yield the steps of a prompt of so many tokens, behind `depth` others.

        The last layer computes the last row alone, but for its keys and values.
        """
        share = (self.work.layers - 1) / self.work.layers
        for start in range(depth, depth + tokens, self.prefill_rows):
            rows = min(self.prefill_rows, depth + tokens - start)
            ends = np.arange(start + 1, start + rows + 1)
            attention = 0.0
            for mixer, count in self.work.mixers:
                seen = float(np.minimum(ends, _most_seen(mixer)).sum())
                attention += count * self._attention_s(mixer, rows, seen, "many")
                attention += count * self._indexer_s(mixer, float(ends.sum()))
            step = self._products(rows, share=share, logits=1)
            yield step + StepTime(attention=share * attention)

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What was not measured, in sentences."""
        said = list(self.machine.assumed)
        for matrix in self.work.matrices:
            if matrix.use == "embedding" or matrix.dtype in self.machine.gops:
                continue
            stand_in = STAND_INS.get(matrix.dtype, "")
            like = stand_in if stand_in in self.machine.gops else self.machine.nearest(matrix.dtype)
            said.append(f"{matrix.dtype} is taken to be as fast as {like}")
        if any(matrix.experts for matrix in self.work.matrices):
            said.append("experts are chosen as unevenly as trained routers do (skew 0.6)")
        if any(mixer.indexer_heads for mixer, _ in self.work.mixers):
            said.append(f"an indexer's scores take as long as products of {INDEXER_TYPE}")
        if self._missing_share:
            said.append("a cache of experts hits as published for Qwen3-30B-A3B")
        return tuple(dict.fromkeys(said))

    def _products(self, rows: int, *, share: float, logits: int) -> StepTime:
        """Return what matrices take of a step, and layers by themselves.

        share: of the layers that compute all `rows`; logits: rows whose logits are wanted.
        """
        step = rows, share, logits  # the steps of a long prompt are alike
        if step not in self._known:
            self._known[step] = self._products_of(rows, share=share, logits=logits)
        return self._known[step]

    @cached_property
    def _known(self) -> dict[tuple[int, float, int], StepTime]:
        return {}

    def _products_of(self, rows: int, *, share: float, logits: int) -> StepTime:
        machine, dense, experts, head, elements = self.machine, 0.0, 0.0, 0.0, 0.0
        for matrix in self.work.matrices:
            weights = float(matrix.rows * matrix.columns * matrix.count)
            if matrix.use == "head":
                head += machine.seconds_of(matrix.dtype, weights, logits)
            elif matrix.use == "expert":
                experts += share * self._expert_seconds(matrix, rows)
                if not machine.expert_factors:  # which have them
                    elements += matrix.count * (matrix.rows + matrix.columns) * matrix.active
            elif matrix.use == "dense":
                dense += share * machine.seconds_of(matrix.dtype, weights, rows)
                elements += matrix.count * (matrix.rows + matrix.columns)
        overhead = (
            machine.step_s
            + machine.layer_s * self.work.layers
            + machine.elements_s(elements, rows) * share
        )
        return StepTime(dense, experts, 0.0, head, overhead, self._disk_seconds(rows))

    def _expert_seconds(self, matrix: MatrixWork, rows: int) -> float:
        """Return the seconds of one part of the mixtures: each expert has its own rows."""
        weights = float(matrix.rows * matrix.columns)
        counts = _rows_of_experts(matrix.experts, matrix.active, rows, self.skew)
        each = sum(
            experts
            * self.machine.seconds_of(matrix.dtype, weights, got)
            * self.machine.expert_factor(got)
            for got, experts in enumerate(counts)
            if got and experts > 1e-6
        )
        return matrix.count * each

    @cached_property
    def _missing_share(self) -> float:
        """The share of the experts that one token needs and that are not in memory."""
        size = self.work.expert_bytes
        if not size or self.expert_cache_bytes is None or self.expert_cache_bytes >= size:
            return 0.0
        shares, hits = zip(*HITS_BY_SHARE, strict=True)
        return 1.0 - float(np.interp(self.expert_cache_bytes / size, shares, hits))

    def _disk_seconds(self, rows: int) -> float:
        """Return the seconds that a step waits for experts, each of which is read once."""
        speed = self.machine.disk_bytes_s
        if not self._missing_share or not speed:
            return 0.0
        read = 0.0
        for matrix in self.work.matrices:
            if matrix.use != "expert":
                continue
            here = matrix.experts * (self.expert_cache_bytes or 0) / self.work.expert_bytes
            missing = matrix.active * self._missing_share
            if rows > 1:  # of many rows each is another text's, and the most used are here
                shares = chosen_shares(matrix.experts, matrix.active, self.skew)
                needed = np.sort(1 - (1 - shares) ** rows)
                missing = float(needed[: math.ceil(matrix.experts - here)].sum())
            read += matrix.nbytes / matrix.experts * missing
        return read / speed

    def _attention_s(
        self, mixer: MixerWork, rows: int, seen: float, how: Literal["one", "many"]
    ) -> float:
        """Return the seconds of one layer, whose rows see so many keys together."""
        if mixer.kind == "conv":
            return 0.0
        if mixer.kind == "recurrent":
            numbers = mixer.heads * mixer.key_dim * mixer.value_dim
            return 1e-9 * self.machine.delta_ns * numbers * rows
        prefix = "latent " if mixer.kind == "latent" else ""
        speed = self.machine.attention_of(f"{prefix}{self.cache_dtype} {how}")
        group = mixer.heads / mixer.kv_heads
        a_key = speed.ns(group, mixer.key_dim + mixer.value_dim)
        return 1e-9 * (seen + rows * speed.row_keys) * mixer.kv_heads * a_key

    def _indexer_s(self, mixer: MixerWork, keys: float) -> float:
        """Return the seconds in which a layer's indexer, if it has one, scores so many keys."""
        numbers = keys * mixer.indexer_dim
        return self.machine.seconds_of(INDEXER_TYPE, numbers, mixer.indexer_heads)


def _most_seen(mixer: MixerWork) -> int:
    """Return the most keys that one row sees."""
    return min(mixer.window or 1 << 60, mixer.chosen or 1 << 60)


def expected(
    work: ModelWork,
    machine: Machine,
    *,
    expert_cache_bytes: int | None = None,
    cache_dtype: CacheDtype = "f16",
    prefill_rows: int = CHUNK,
) -> Speeds:
    """Say how fast a model will be. expert_cache_bytes: of experts in memory; None: all of them."""
    return Speeds(work, machine, cache_dtype, expert_cache_bytes, prefill_rows)


@cache
def chosen_shares(experts: int, active: int, skew: float) -> NDArray[np.float64]:
    """Return how often each of so many experts is among the `active` of a row, (experts,).

    An expert's score is a constant of its own, normal with standard deviation `skew`, and a part
    that each row draws anew, with 1: it is chosen where the sum is beyond one bound. 0: all alike.
    """
    normal = NormalDist()
    constants = [skew * normal.inv_cdf((i + 0.5) / experts) for i in range(experts)]
    low, high = -10.0, 10.0
    for _ in range(60):
        bound = (low + high) / 2
        if sum(normal.cdf(each - bound) for each in constants) > active:
            low = bound
        else:
            high = bound
    return np.array([normal.cdf(each - low) for each in constants])


@cache
def _rows_of_experts(experts: int, active: int, rows: int, skew: float) -> list[float]:
    """Return how many experts are expected to get 0, 1, 2, … `rows` rows: binomially each."""
    shares = np.clip(chosen_shares(experts, active, skew), 1e-12, 1 - 1e-12)
    factorials = np.array([math.lgamma(count + 1) for count in range(rows + 1)])
    ways = factorials[-1] - factorials - factorials[::-1]
    got = np.arange(rows + 1)
    logs = ways + np.outer(np.log(shares), got) + np.outer(np.log1p(-shares), rows - got)
    return [float(count) for count in np.exp(logs).sum(axis=0)]
