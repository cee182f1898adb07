"""Grammars: which tokens may come next, so that an answer is what was asked for.

The parsing is llguidance's, imported when the first grammar comes. Every grammar is one text in its
variant of Lark; dure.chat.grammar_rules writes them.
"""

from __future__ import annotations

import copy
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.engine.grammar_numbers import check_numbers
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.text.tokenizer import Tokenizer

MAX_GRAMMAR_BYTES = 1 << 20
MAX_KEPT = 32
# Steps of the lexer and items of the parser: many times what a schema of a real API takes. A step
# of 2,000 items is 5 ms, one of 20,000 a quarter of a second; 300 properties make 1,200 at most.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_WHILE = re.compile(r"^ *while processing ")
_EXCERPT = re.compile(r"^ *\d+ \| ", re.MULTILINE)
# Of the processor's time. A step of most grammars takes less than a millisecond, and while it lasts
# every other answer waits.
MAX_FIRST_SECONDS = 0.5  # of a grammar, on a thread of its own
MAX_STEP_SECONDS = 0.02  # on average
MAX_SLOW_SECONDS = 0.2  # of one answer in all, beyond those
MAX_FORCED_SECONDS = 0.001  # on average, of asking for forced tokens, which is 10 µs as a rule


class GrammarCompiler:
    """Compiles grammars over one vocabulary and keeps the newest. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: of the logits, which may have more columns than there are tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._engine: Any = None
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str, what: str = "The grammar") -> Grammar:
        """Compile a Lark grammar.

        Raises InvalidRequestError, about `what`, if it is not a grammar or too large.
        """
        size = len(text.encode("utf-8", "replace"))
        if size > MAX_GRAMMAR_BYTES:
            raise InvalidRequestError(
                f"{what} takes {size:,} bytes as a grammar; the limit is {MAX_GRAMMAR_BYTES:,}.",
                hint="ask for less at once",
            )
        with self._lock:
            kept = self._kept.get(text)
            if kept is not None:
                self._kept.move_to_end(text)
                return kept
            engine = self._built()
        eos_ids = {each for each in self._tokenizer.eos_ids if each < self._vocab_size}
        made = Grammar(engine, text, what, eos_ids, self._vocab_size)
        with self._lock:
            self._kept[text] = made
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return made

    def prepare(self) -> None:
        """Build what the first grammar needs, which stops all threads for a second."""
        with self._lock:
            self._built()

    def _built(self) -> Any:
        if self._engine is None:
            self._engine = _engine(self._tokenizer, self._vocab_size)
        return self._engine


class Grammar:
    """A compiled grammar, from which any number of answers may start."""

    def __init__(
        self, engine: Any, text: str, what: str, eos_ids: AbstractSet[int], vocab_size: int
    ) -> None:
        import llguidance  # noqa: PLC0415 - only who asks for a grammar waits for it

        check_numbers(text, what)
        limits = llguidance.LLParserLimits(**_LIMITS)
        self._what = what
        self._matcher = llguidance.LLMatcher(engine, text, log_level=0, limits=limits)
        self._eos_ids = np.array(sorted(eos_ids), np.int32)
        self._engine_eos = engine.eos_token
        self._vocab_size = vocab_size
        # The first step is often the longest: it is made here, where nobody else waits for it; and
        # again, since what the first has cost counts for all that begin later.
        began = time.thread_time()
        trials = [self._matcher.deep_copy() for _ in range(2)]
        for trial in trials:
            trial.compute_bitmask()
            trial.compute_ff_tokens()
        failed = any(trial.is_error() for trial in trials)
        if failed or time.thread_time() - began > MAX_FIRST_SECONDS:
            # The library's own words quote its grammar's insides; they are for us, not for users.
            raise InvalidRequestError(
                f"{what} cannot be enforced: it is malformed, or too complex.",
                hint="make it simpler",
            )

    def after(self, token_ids: Sequence[int]) -> Grammar:
        """Return the grammar of what follows tokens that are written already.

        InvalidRequestError if no text of the grammar begins with them.
        """
        made = copy.copy(self)
        made._matcher = self._matcher.deep_copy()
        taken = made._matcher.try_consume_tokens(list(token_ids))
        if taken < len(token_ids) or made._matcher.is_error():
            raise InvalidRequestError(
                f"{self._what} does not allow the beginning that the last message is.",
                hint="let it begin as the format does, or leave one of the two out",
            )
        return made

    def start(self, *, deferred: bool = False) -> GrammarState:
        """Return the grammar's first state; `deferred`: it allows all until told to begin."""
        return GrammarState(
            self._matcher.deep_copy(), self._eos_ids, self._engine_eos, self._vocab_size, deferred
        )


class GrammarState:
    """Where one answer stands in a grammar."""

    def __init__(
        self,
        matcher: Any,
        eos_ids: NDArray[np.int32],
        engine_eos: int,
        vocab_size: int,
        deferred: bool,
    ) -> None:
        self.deferred = deferred
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._engine_eos = engine_eos
        self._vocab_size = vocab_size
        self._seconds = 0.0
        self._steps = 0
        self._forced_seconds = 0.0
        self._forced_steps = 0

    def begin(self) -> None:
        """Enforce the grammar from the next token on."""
        self.deferred = False

    def forbidden(self) -> NDArray[np.int32]:
        """Return the ids that must not come next; before the grammar begins, the end tokens.

        Raises InvalidRequestError if the grammar's limits were met on the way.
        """
        if self.deferred:
            return self._eos_ids
        began = time.thread_time()
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._seconds += time.thread_time() - began
        self._steps += 1
        # The mask is as long as the tokenizer, rounded up: logits beyond it have no token.
        bits = np.unpackbits(words, bitorder="little")[: self._vocab_size]
        allowed = np.zeros(self._vocab_size, np.bool_)
        allowed[: len(bits)] = bits
        too_slow = self._seconds > MAX_SLOW_SECONDS + self._steps * MAX_STEP_SECONDS
        if self._matcher.is_error() or too_slow:
            raise InvalidRequestError(
                "The grammar became too complex in the midst of the answer.", hint="make it simpler"
            )
        # The engine knows one end of generation; where that may come, so may the others.
        allowed[self._eos_ids] = allowed[self._engine_eos]
        if not allowed.any():
            raise InvalidRequestError("The grammar allows no token of this vocabulary.")
        return np.flatnonzero(~allowed).astype(np.int32)

    def forced_tokens(self, limit: int) -> list[int]:
        """Return up to `limit` tokens that the grammar leaves no choice about; they come next.

        `forbidden` begins by computing the same, so to ask changes no answer. Where that is slow it
        is not done any more: the list is empty.
        """
        allowed_seconds = MAX_SLOW_SECONDS / 10 + self._forced_steps * MAX_FORCED_SECONDS
        if self.deferred or self._forced_seconds > allowed_seconds:
            return []
        began = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()
        self._forced_seconds += time.thread_time() - began
        self._forced_steps += 1
        return [int(token) for token in tokens[:limit]]

    def accept(self, token_id: int) -> bool:
        """Advance by `token_id`; return whether nothing may follow but an end of generation."""
        if self.deferred or token_id in self._eos_ids:
            return False
        self._matcher.consume_token(token_id)
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()


def cause_of_failure(text: str) -> str:
    """Return why a Lark text without special tokens cannot be compiled; "" if it can.

    The words are llguidance's: they say what is wrong, and quote no part of the grammar.
    """
    import llguidance  # noqa: PLC0415

    limits = llguidance.LLParserLimits(**_LIMITS)
    said = str(llguidance.LLMatcher.validate_grammar(text, None, limits=limits))
    if not said:
        return ""
    words = _PLACE.sub("", said, count=1)
    words = _EXCERPT.split(words, maxsplit=1)[0]
    return "\n".join(line for line in words.rstrip().split("\n") if not _WHILE.match(line))


def _engine(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """Build llguidance's view of the vocabulary: the bytes of each token, and special tokens."""
    import llguidance  # noqa: PLC0415

    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)), n_vocab=vocab_size
    )


class _Vocabulary:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        # Tokens may lie beyond the model's logits: none of those can ever be chosen.
        size = min(tokenizer.vocab_size, vocab_size)
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        # Marks that are no control tokens, such as <tool_call>, must not come up in texts either.
        special = tokenizer.special_ids | tokenizer.added_ids
        self.special_token_ids = sorted(token for token in special if token < size)
        ends = {tokenizer.eos_id, *tokenizer.eos_ids}
        known = sorted(token for token in ends if token is not None and token < size)
        if not known:
            raise InvalidRequestError(
                f"This model has no token that ends an answer among its {vocab_size:,}, so no "
                "format can be enforced.",
                hint="leave the format out, and tell the model in words",
            )
        self.eos_token_id = tokenizer.eos_id if tokenizer.eos_id in known else known[0]
        bos = tokenizer.bos_id
        self.bos_token_id = bos if bos is not None and bos < size else None

    def __call__(self, text: str | bytes) -> list[int]:
        """Encode a text in which no mark counts."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_special=False, parse_special=False)
