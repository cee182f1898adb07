"""A model without weights whose logits are a hash of all that its cache says came before.

Like a real one it reads the past only through block tables: a wrong table, a block used twice, a
stale copy or a position written out of turn changes every later token. Each position stores its
token and a state that depends on all tokens before it, read back from the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from dure.batch import BLOCK_SIZE, Batch, KVCacheSpec, StateSpec
from dure.engine.engine import Engine
from dure.engine.model_runner import ModelRunner
from dure.engine.passes import StepOutput
from dure.engine.request import Request, SamplingParams
from dure.kernels import sampling_reference

VOCAB_SIZE = 64
STATES = 2048  # whole numbers up to 2048 are exact in float16


class PrefixModel:
    """Logits (m, 64) from SHAKE-128 of the tokens and states in the cache up to each row."""

    vocab_size = VOCAB_SIZE
    kv_cache_specs: tuple[KVCacheSpec | StateSpec, ...] = (
        KVCacheSpec("gqa", 1, 1),
        KVCacheSpec("window", 2, 3, window=8),
    )
    window = 8

    def __init__(self, context_length: int = 512) -> None:
        self.context_length = context_length
        self.batches: list[Batch] = []  # what was asked for, without the cache
        self.before_forward: Callable[[Batch], None] = lambda batch: None
        self.change_logits: Callable[[Batch, np.ndarray], None] = lambda batch, logits: None

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        self.cache = cache
        self.batches.append(batch)
        self.before_forward(batch)
        for token, position, sequence in zip(
            batch.tokens, batch.positions, batch.sequences, strict=True
        ):
            self._write(batch, int(sequence), int(position), int(token))
        logits = np.stack([self._logits(batch, row) for row in batch.logit_rows] or [_NO_ROW])
        logits = logits[: len(batch.logit_rows)]
        self.change_logits(batch, logits)
        return logits

    def _write(self, batch: Batch, sequence: int, position: int, token: int) -> None:
        before = STATES - 1
        if position > 0:
            before = self._state(batch, sequence, position - 1, near=self.window > 1)
        state = (before * 1103 + token * 7 + position + 12345) % STATES
        index, slot = divmod(position, BLOCK_SIZE)
        block, near = batch.block_tables[sequence, index], self._near(batch)[sequence, index]
        assert block >= 0 <= near, "a row has no block to write to"
        first, second = self.cache[:2]
        first[block, 0, slot] = token
        first[block, 0, BLOCK_SIZE + slot] = state
        second[near, 1, slot] = STATES - 1 - state  # the other layer must agree when read

    def _near(self, batch: Batch) -> np.ndarray:
        """The block tables of the layer with a window."""
        return batch.tables_of(self.kv_cache_specs[1].window)

    def _state(self, batch: Batch, sequence: int, position: int, *, near: bool = True) -> int:
        index, slot = divmod(position, BLOCK_SIZE)
        block, other = batch.block_tables[sequence, index], self._near(batch)[sequence, index]
        state = int(self.cache[0][block, 0, BLOCK_SIZE + slot])
        if near:  # within the other layer's window
            assert other >= 0, "a block that is seen was given back"
            assert state + int(self.cache[1][other, 1, slot]) == STATES - 1, "layers disagree"
        return state

    def _logits(self, batch: Batch, row: int) -> np.ndarray:
        count = int(batch.positions[row]) + 1
        table = batch.block_tables[batch.sequences[row]]
        blocks = table[: -(-count // BLOCK_SIZE)]
        assert blocks.min() >= 0
        for position in range(max(0, count - self.window), count):  # as far as the window goes
            self._state(batch, int(batch.sequences[row]), position)
        held = self.cache[0][blocks, 0]  # (blocks, 64)
        tokens = held[:, :BLOCK_SIZE].reshape(-1)[:count]
        states = held[:, BLOCK_SIZE:].reshape(-1)[:count]
        data = tokens.astype(np.int16).tobytes() + states.astype(np.int16).tobytes()
        words = np.frombuffer(hashlib.shake_128(data).digest(4 * VOCAB_SIZE), dtype="<u4")
        return (words.astype(np.float64) / 2**32 * 8 - 4).astype(np.float32)


class StateModel(PrefixModel):
    """A PrefixModel with a recurrent layer: a hash of all tokens, and how many they were.

    What it keeps in blocks and what it keeps in its state must tell of the same position.
    """

    kv_cache_specs = (*PrefixModel.kv_cache_specs, StateSpec(2))

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        self.cache = cache
        assert batch.states is not None
        states, saves = self.cache[2], dict(batch.states.snapshots.tolist())
        slots = batch.states.slots[batch.sequences]
        assert len({*batch.states.slots, *saves.values()}) == len(batch.states.slots) + len(saves)
        seen = []
        count, value = 0.0, 0.0
        for row, (token, position, slot) in enumerate(
            zip(batch.tokens, batch.positions, slots, strict=True)
        ):
            if row == 0 or slots[row - 1] != slot:
                count, value = states[slot] if position > 0 else (0.0, 1.0)
            assert count == position, "the state is that of another position"
            count, value = position + 1, (int(value) * 13 + token * 7 + position + 5) % 2**16
            seen.append(int(value))
            if row in saves:
                states[saves[row]] = count, value
            if row + 1 == len(slots) or slots[row + 1] != slot:
                states[slot] = count, value
        logits = super().forward(batch, cache)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            out[:] = np.roll(out, seen[row])
        return logits


_NO_ROW = np.zeros(VOCAB_SIZE, dtype=np.float32)


def make_engine(model: PrefixModel | None = None, **options: object) -> Engine:
    """An engine over a PrefixModel, with the numpy sampling functions."""
    settings: dict = {"max_batch_tokens": 64, "max_sequences": 8, **options}
    runner = ModelRunner(
        model or PrefixModel(),
        num_blocks=settings.pop("num_blocks", 64),
        num_window_blocks=settings.pop("num_window_blocks", None),
        num_states=settings.pop("num_states", 2 * settings["max_sequences"]),
        cache_dtype=settings.pop("cache_dtype", "f16"),
    )
    return Engine(runner, sampling=sampling_reference, **settings)


def run(engine: Engine, limit: int = 100_000) -> list[StepOutput]:
    """Every output until the engine is idle, with the pool checked after each step."""
    outputs = []
    for _ in range(limit):
        if not engine.has_work:
            return outputs
        outputs += engine.step()
        engine.scheduler.check()
    raise AssertionError("the engine never came to rest")


def answer(
    prompt: Sequence[int], params: SamplingParams, *, engine: Engine | None = None
) -> Request:
    """The finished request, alone in an engine of its own unless one is given."""
    engine = engine or make_engine()
    request = engine.add(prompt, params)
    run(engine)
    return request


def random_prompt(rng: np.random.Generator, length: int) -> list[int]:
    """Token ids of the PrefixModel."""
    return rng.integers(0, VOCAB_SIZE, length).tolist()
