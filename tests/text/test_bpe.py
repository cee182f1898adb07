"""Our byte-level BPE against the tokenizers library's, which is the definition."""

from __future__ import annotations

import random

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from dure.text.bpe import Merges, WordEncoder


def _random_tables(rng: random.Random) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens over four letters, and merges of them in any order: unions may come before their
    parts, and one union may be made in several ways."""
    tokens = list("abcd")
    merges: list[tuple[str, str]] = []
    for _ in range(rng.randrange(1, 60)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if len(left + right) <= 8 and (left, right) not in merges:
            merges.append((left, right))
            if left + right not in tokens:
                tokens.append(left + right)
    rng.shuffle(merges)
    return {token: index for index, token in enumerate(tokens)}, merges


@pytest.mark.parametrize("takes_whole", [False, True])
def test_words_get_the_ids_of_the_library_whatever_the_merges(takes_whole: bool) -> None:
    rng = random.Random(8)
    for _ in range(150):
        ids, merges = _random_tables(rng)
        library = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=takes_whole))
        ranks = {f"{left} {right}": rank for rank, (left, right) in enumerate(merges)}
        ours = Merges(ids, ranks, takes_whole=takes_whole)
        for _ in range(40):
            # "x" is no token: both leave it out, and what it stood between become neighbours.
            word = "".join(rng.choices("abcdx", [9, 9, 9, 9, 1], k=rng.randrange(1, 90)))
            assert library.encode(word).ids == ours.ids_of(word) == ours.ids_of(word), word


def test_added_tokens_are_found_as_the_library_finds_them() -> None:
    rng = random.Random(9)
    added = ["<a>", "<a><a>", "<", "a>b", "  ", "(", ")|"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ids = {
        token: index for index, token in enumerate([*added, *sorted(set(alphabet) - {"<", "("})])
    }
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library = tokenizers.Tokenizer(models.BPE(ids, []))
    library.pre_tokenizer = cutter
    library.add_tokens([AddedToken(name, normalized=False) for name in added])
    ours = WordEncoder(Merges(ids, {}, takes_whole=False), cutter, ids, added)
    for _ in range(500):
        text = "".join(rng.choices("<a>b ()|", k=rng.randrange(30)))
        assert library.encode(text).ids == ours.encode(text), text


def test_long_texts_are_left_to_the_encoder_that_is_made_when_the_first_one_comes() -> None:
    made: list[str] = []

    class Other:
        def encode(self, text: str) -> list[int]:
            made.append(text[:1])
            return [7]

    ids = {"a": 0}
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = WordEncoder(Merges(ids, {}, takes_whole=False), cutter, ids, (), for_long=Other)
    assert (ours.encode("a" * 32_000), made) == ([0] * 32_000, [])
    assert (ours.encode("a" * 32_001), made) == ([7], ["a"])
