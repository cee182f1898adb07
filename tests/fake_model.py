"""A language of 256 bytes and a model that says what a test tells it to, through a real cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dure.batch import BLOCK_SIZE, Batch, KVCacheSpec
from dure.chat.template import CHATML
from dure.formats.checkpoint import Checkpoint
from dure.loading.load import LoadedModel
from dure.loading.memory import MemoryUse

START, END, UNKNOWN = 256, 257, 258
SPECIAL = {"<|im_start|>": START, "<|im_end|>": END}
VOCAB_SIZE = 259
BYTES = (*(bytes([byte]) for byte in range(256)), b"<|im_start|>", b"<|im_end|>", b"")

Script = Callable[[str], str | None]
"""From everything said so far to the next character, or None to end."""


def alphabet(text: str) -> str | None:
    """The letter after the last one, "a" after anything else, and the end after "z"."""
    last = text[-1]
    if last == "z":
        return None
    return chr(ord(last) + 1) if "a" <= last < "z" else "a"


@cache  # the same script, so that a server of it is known to be the same
def reply(words: str) -> Script:
    """A script that answers every chat message with `words`."""

    def say(text: str) -> str | None:
        said = text.rpartition("<|im_start|>assistant\n")[2]
        return words[len(said)] if words.startswith(said) and len(said) < len(words) else None

    return say


class ByteTokenizer:
    """A token a byte, and the two marks of ChatML."""

    eos_ids = frozenset({END})
    special_ids = frozenset({START, END})
    added_ids = special_ids
    eos_id = END
    bos_id = None
    strips_leading_space = False
    bos_token = ""
    eos_token = "<|im_end|>"
    vocab_size = VOCAB_SIZE
    around = ((), ())

    def rows_without_token(self, rows: int) -> list[int]:
        return list(range(self.vocab_size, rows))

    def token_id(self, text: str) -> int | None:
        return SPECIAL.get(text)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        if parse_special:
            for mark, token in SPECIAL.items():
                text = text.replace(mark, chr(0xE000 + token))
        ids: list[int] = []
        for character in text:
            code = ord(character) - 0xE000
            ids += [code] if code in (START, END) else character.encode()
        return ids

    def prepare_long(self) -> None:
        """Long texts need no more than short ones."""

    def token_bytes(self, token_id: int) -> bytes:
        return BYTES[token_id] if token_id < VOCAB_SIZE else b""

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "replace")


class ScriptModel:
    """Keeps every token in the cache's blocks, and reads back from there what was said so far."""

    vocab_size = VOCAB_SIZE
    hidden_size = 3
    score: Any = None  # the head of a reranker
    kv_cache_specs = (KVCacheSpec("gqa", num_kv_heads=1, head_dim=1),)

    def __init__(self, script: Script = alphabet, *, context_length: int = 1024) -> None:
        self.script = script
        self.context_length = context_length
        self.batches: list[Batch] = []

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        self.cache = cache
        self.batches.append(batch)
        slots = self.cache[0]  # (blocks, 1, 64): token ids stand where keys would
        blocks = batch.block_tables[batch.sequences, batch.positions // BLOCK_SIZE]
        slots[blocks, 0, batch.positions % BLOCK_SIZE] = batch.tokens
        logits = np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)
        for out, row in zip(logits, batch.logit_rows, strict=True):
            out[self._next(batch, int(row))] = 30.0
        return logits

    def embed(self, batch: Batch) -> np.ndarray:
        """A token's hidden state: the token, its position from 1, and 1."""
        ones = np.ones(len(batch.tokens))
        return np.stack([batch.tokens, batch.positions + 1, ones], axis=1).astype(np.float32)

    def run(self, x: np.ndarray, batch: Batch, cache: Any, *, rows: Any = None) -> np.ndarray:
        self._logits = self.forward(batch, cache)
        return x if rows is None else x[rows]

    def normed(self, x: np.ndarray) -> np.ndarray:
        return x

    def logits(self, x: np.ndarray) -> np.ndarray:
        assert len(x) == len(self._logits)
        return self._logits

    def head_rows(self, token_ids: np.ndarray) -> np.ndarray:
        return np.zeros((len(token_ids), self.hidden_size), np.float32)

    def _next(self, batch: Batch, row: int) -> int:
        count = int(batch.positions[row]) + 1
        blocks = batch.block_tables[batch.sequences[row], : -(-count // BLOCK_SIZE)]
        ids = self.cache[0][blocks, 0, :BLOCK_SIZE].reshape(-1)[:count].astype(np.int32)
        text = b"".join(BYTES[min(token, UNKNOWN)] for token in ids.tolist())
        said = self.script(text.decode("utf-8", "replace"))
        return END if said is None else ord(said)


class SharedModel(ScriptModel):
    """A model that several engines compute at once, each on a thread of its own."""

    def __init__(self, script: Script = alphabet, *, context_length: int = 1024) -> None:
        self._own = threading.local()
        super().__init__(script, context_length=context_length)

    def forward(self, batch: Batch, cache: Sequence[np.ndarray]) -> np.ndarray:
        one = copy(self)
        one.__class__ = ScriptModel
        return ScriptModel.forward(one, batch, cache)

    def run(self, x: np.ndarray, batch: Batch, cache: Any, *, rows: Any = None) -> np.ndarray:
        self._own.logits = self.forward(batch, cache)
        return x if rows is None else x[rows]

    def logits(self, x: np.ndarray) -> np.ndarray:
        assert len(x) == len(self._own.logits)
        return self._own.logits


def loaded(
    model: ScriptModel,
    *,
    context: int = 256,
    num_blocks: int = 64,
    template: str | None = CHATML,
    sampling: dict[str, Any] | None = None,
    **more: Any,
) -> LoadedModel:
    """What `dure.loading.load.load` would have given for the model; with `more` of its fields."""
    path = Path("fake.gguf")
    checkpoint = Checkpoint(path, "gguf", {}, chat_template=template)
    return LoadedModel(
        name="fake",
        path=path,
        checkpoint=checkpoint,
        model=model,
        text=ByteTokenizer(),  # type: ignore[arg-type]
        threads=1,
        context=context,
        num_blocks=num_blocks,
        cache_dtype="f16",
        sampling=sampling or {"temperature": 0},
        memory=MemoryUse(None, 0, 0, 0, 0, 0, 0, streamed=False, prefill_rows=512),
        **more,
    )
