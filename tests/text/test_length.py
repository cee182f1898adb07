"""How many tokens a long text has at least: a bound, found in a part of it."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from dure.text.length import PIECE, least_tokens, longest_text
from dure.text.vocabulary import LibraryEncoder

WORDS = "The river runs past the old bridge. 12345 été 東京 \U0001f600\n"


def trained(
    normalizer: normalizers.Normalizer | None, cutter: pre_tokenizers.PreTokenizer | None
) -> LibraryEncoder:
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=False))
    if normalizer is not None:
        library.normalizer = normalizer
    if cutter is not None:
        library.pre_tokenizer = cutter
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    library.train_from_iterator([WORDS * 3, "a" * 64, " " * 64], trainer)
    return LibraryEncoder(library)


ENCODERS = {
    "bytes": trained(None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "whole text": trained(normalizers.Replace(" ", "▁"), None),
    "a space in front": trained(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None
    ),
    "NFKC": trained(normalizers.NFKC(), pre_tokenizers.Whitespace()),
    "spaces run together": trained(
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "), pre_tokenizers.Whitespace()
    ),
}
TEXTS = {
    "words": WORDS * 2000,
    "one word": "a" * 100_000,
    "spaces": " " * 100_000,
    "ligatures": "\ufdfa" * 70_000,  # one character that NFKC makes 18 of
    "half of it spaces": ("a" + " " * 25_000) * 4,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=list(ENCODERS))
def test_the_bound_is_never_above_the_number_of_tokens(encoder: LibraryEncoder, text: str) -> None:
    whole = len(encoder.encode(text))
    found = least_tokens(encoder.encode, [text], 2000)
    assert found <= whole
    if whole > 4000:
        assert found > 2000


def test_no_more_is_tokenised_than_decides() -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * len(text)

    assert least_tokens(encode, ["x" * (100 * PIECE)], PIECE) > PIECE
    assert seen == [PIECE, PIECE]


def test_a_short_text_is_not_counted() -> None:
    def encode(_: str) -> list[int]:
        raise AssertionError("it was tokenised")

    assert least_tokens(encode, ["x" * 6000], 1000) == 0


def test_a_text_of_few_tokens_is_counted_no_further_than_it_may_be_tokenised() -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0]

    assert least_tokens(encode, [" " * (200 * PIECE)], 1000) == 0
    assert sum(seen) <= longest_text(1000) + 2 * PIECE
