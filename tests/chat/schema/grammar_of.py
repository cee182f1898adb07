"""What the grammar of a schema allows, for tests."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from dure.engine.grammar import Grammar

ENDINGS = frozenset(b'"}],')


class Enforced:
    """A compiled grammar over bytes."""

    def __init__(self, grammar: Grammar, end: int) -> None:
        self._grammar = grammar
        self._end = end

    def allows(self, value: Any) -> bool:
        """Whether an answer may be the JSON text of `value`, and end there."""
        state = self._grammar.start()
        text = json.dumps(value, ensure_ascii=False).encode()
        for i, byte in enumerate(text):
            if byte in state.forbidden():
                return False
            if state.accept(byte):
                return i + 1 == len(text)
        return self._end not in state.forbidden()

    def walk(self, seed: int, *, longest: int = 400) -> str | None:
        """Return a text that a model of noise would write; None if it finds no end.

        It prefers what ends a text, a list or an object, since letters alone would go on for long.
        """
        state, random_, written = self._grammar.start(), random.Random(seed), bytearray()
        while len(written) < longest:
            allowed = np.setdiff1d(np.arange(self._end + 1), state.forbidden()).tolist()
            ends = [token for token in allowed if token in ENDINGS or token == self._end]
            ascii_ = [token for token in allowed if 32 <= token < 127]
            among = ends if ends and random_.random() < 0.5 else (ascii_ or allowed)
            token = random_.choice(among)
            if token == self._end:
                break
            written.append(token)
            if state.accept(token):
                break
        else:
            return None
        return written.decode()
