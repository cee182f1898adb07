"""How many tokens a long text has at least, without tokenising all of it.

A text of megabytes takes seconds and some 190 bytes of memory for each of its own to tokenise. To
refuse one that is too long for a context, its first tokens are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

PIECE = 1 << 16  # characters tokenised at a time: 12 MB of memory, 30 ms
SHORT = 6  # characters for each token that may be: a shorter text is not counted
LONG = 8  # characters for each token that may be: no text that people write has as many
LONG_TEXT = 1 << 19  # characters that are tokenised however short the context is
_SLACK_TOKENS = 16  # of one piece


def longest_text(tokens: int) -> int:
    """Return how many characters are tokenised at most where so many tokens may be."""
    return max(LONG_TEXT, LONG * tokens)


def least_tokens(encode: Callable[[str], list[int]], texts: Iterable[str], enough: int) -> int:
    """Return a lower bound of the tokens of all texts, or 0 if all are short.

    Counting ends when the bound is above `enough`, or after `longest_text` characters, so that the
    work is that of tokenising about `enough` tokens, whatever the texts' size.

    encode: tokenises a piece. enough: the number of tokens that decides.

    The bytes of a text say little about its tokens: one token may be 256 spaces, and a normaliser
    may drop most of a text (NFKC, white space run together). So pieces are tokenised. A piece has
    other tokens than the same stretch of the whole text near its two ends alone: a word that a cut
    divides, a mark, a space in front. An eighth of a piece's tokens and 16 more are not counted for
    that, which is far more than a cut can change.
    """
    listed = list(texts)
    if sum(map(len, listed)) <= max(PIECE, SHORT * enough):
        return 0
    found = counted = 0
    for text in listed:
        for start in range(0, len(text), PIECE):
            if counted > longest_text(enough):
                return found
            counted += PIECE
            tokens = len(encode(text[start : start + PIECE]))
            found += max(0, tokens - tokens // 8 - _SLACK_TOKENS)
            if found > enough:
                return found
    return found
