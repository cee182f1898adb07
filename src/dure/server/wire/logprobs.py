"""Log-probabilities as OpenAI's two APIs write them, and the texts of single tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dure.engine.request import TokenLogprobs
    from dure.text.tokenizer import Tokenizer

LOWEST = -9999.0
"""The log-probability written for a probability of 0: JSON has no infinity."""


def chat_logprobs(
    entries: Sequence[TokenLogprobs | None] | None, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Write a chat choice's `logprobs`: each token with its top tokens; None if not requested."""
    if entries is None:
        return None
    return {
        "content": [_chat_entry(each, tokenizer) for each in entries if each is not None],
        "refusal": None,
    }


class TextOffset:
    """Counts where the next token begins, in characters; a character may span tokens."""

    def __init__(self) -> None:
        self._characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: bytes) -> int:
        """Return where the token begins: the number of complete characters before it."""
        begins = self._characters
        self._characters += len(self._decoder.decode(token))
        return begins


def completion_logprobs(
    entries: Sequence[TokenLogprobs | None],
    ids: Sequence[int],
    tokenizer: Tokenizer,
    at: TextOffset,
) -> dict[str, Any]:
    """Write the `logprobs` of a completion: four lists with one entry a token.

    entries: one a token; None for a first prompt token, which nothing precedes. ids: the tokens.
    at: where the first one begins; it is moved to the end.
    """
    texts = [token_text(tokenizer, token_id) for token_id in ids]
    offsets = [at.push(tokenizer.token_bytes(token_id)) for token_id in ids]
    return {
        "tokens": texts,
        "token_logprobs": [None if each is None else finite(each.logprob) for each in entries],
        "top_logprobs": [None if each is None else _top(each, tokenizer) for each in entries],
        "text_offset": offsets,
    }


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Decode one token; bytes that are not whole characters are written as "bytes:…", in hex."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """Clamp the log-probability to what JSON can hold."""
    return logprob if logprob > LOWEST else LOWEST  # not a number is neither


def _chat_entry(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        **_token(entry.token_id, entry.logprob, tokenizer),
        "top_logprobs": [_token(token_id, value, tokenizer) for token_id, value in entry.top],
    }


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(raw),
    }


def _top(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the top tokens and, as OpenAI does, the chosen one."""
    top: dict[str, float] = {}
    for token_id, value in (*entry.top, (entry.token_id, entry.logprob)):
        top.setdefault(token_text(tokenizer, token_id), finite(value))
    return top
