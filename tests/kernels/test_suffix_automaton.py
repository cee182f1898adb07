"""The suffix automaton against a search of every place, and its bounds on hostile texts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dure.kernels import SuffixAutomaton, SuffixReader, suffix_reference


def ints(tokens: object) -> np.ndarray:
    """The tokens as the automaton takes them."""
    return np.asarray(tokens, np.int32)


def fibonacci_word(size: int) -> np.ndarray:
    """The text with the fewest substrings that never becomes periodic."""
    a, b = [0], [0, 1]
    while len(b) < size:
        a, b = b, b + a
    return ints(b[:size])


def de_bruijn(letters: int, length: int) -> np.ndarray:
    """A text that has each word of `length` letters once: the Lyndon words in order."""
    text: list[int] = []
    word = [0]
    while word:
        if length % len(word) == 0:
            text += word
        word = [word[i % len(word)] for i in range(length)]
        while word and word[-1] == letters - 1:
            word.pop()
        if word:
            word[-1] += 1
    return ints(text)


def breaking(size: int) -> np.ndarray:
    """A period that repeats, and breaks at the end each time by a token never seen."""
    period = list(range(40))
    text: list[int] = []
    fresh = 1000
    while len(text) < size:
        text += [*period * 3, fresh]
        fresh += 1
    return ints(text[:size])


def hostile(size: int) -> Iterator[np.ndarray]:
    """Texts that make automata large or slow."""
    yield np.zeros(size, np.int32)
    yield fibonacci_word(size)
    yield de_bruijn(2, max(1, size.bit_length() - 1))[:size]
    yield de_bruijn(4, max(1, size.bit_length() // 2))[:size]
    yield breaking(size)
    yield ints([0] + [1] * (size - 2) + [2])  # the most states and transitions there can be
    yield np.arange(size, dtype=np.int32)
    yield ints([t for i in range(size // 2) for t in (0, i + 1)])  # one state of many transitions
    yield ints([t for i in range(size // 3) for t in (0, i % 7 + 1, i + 10)])


def check_match(index: SuffixAutomaton, twin: suffix_reference.SuffixAutomaton) -> None:
    """The length is that of the search, and the place has as many tokens of the end before it."""
    length, position = index.match
    assert length == twin.match.length
    assert 0 <= position <= twin.match.position
    assert index.agreement(position, len(index)) >= length
    assert length == 0 or position < len(index)


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_suffix_that_occurred_before_is_found_at_every_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = int(rng.integers(1, 6))
    index, twin = SuffixAutomaton(130), suffix_reference.SuffixAutomaton()
    for _ in range(120):
        if rng.random() < 0.03:
            index.separate()
            twin.separate()
        else:
            token = int(rng.integers(letters))
            index.append(token)
            twin.extend([token])
        check_match(index, twin)
    assert index.copy(0, 130)[: len(twin.copy(0, 130))] == twin.copy(0, 130)


@pytest.mark.parametrize("which", range(9))
def test_matches_in_hostile_texts_are_those_of_a_search(which: int) -> None:
    text = list(hostile(150))[which]
    index, twin = SuffixAutomaton(160), suffix_reference.SuffixAutomaton()
    for token in text.tolist():
        index.append(token)
        twin.extend([token])
        check_match(index, twin)


def test_several_texts_are_one_index_and_no_match_goes_over_a_border() -> None:
    index = SuffixAutomaton(100)
    index.extend(ints([5, 6, 7, 8]))
    index.separate()
    index.extend(ints([7, 8]))
    assert index.match == (2, 4)
    index.append(9)
    assert index.match.length == 0  # "7 8 | 7 8 9" is two texts
    index.extend(ints([5, 6]))
    assert index.match == (2, 2)
    assert index.copy(2, 10) == [7, 8]  # to the end of its text
    index.separate()
    assert index.match.length == 0
    index.extend(ints([9, 5, 6]))
    assert index.match == (3, 10)


@pytest.mark.parametrize("seed", range(10))
def test_a_reader_knows_how_much_of_its_end_the_automaton_has_while_that_grows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = int(rng.integers(1, 5))
    index, twin = SuffixAutomaton(400), suffix_reference.SuffixAutomaton()
    index.extend(ints([1]))
    twin.extend([1])
    reader, read = SuffixReader(index), []
    for _ in range(80):
        for _ in range(int(rng.integers(3))):
            grown = rng.integers(0, letters, 2).tolist()
            index.extend(ints(grown))
            twin.extend(grown)
            if rng.random() < 0.1:
                index.separate()
                twin.separate()
        token = int(rng.integers(letters))
        reader.extend(ints([token]))
        read.append(token)
        length, position = reader.match
        longest = suffix_reference.longest_match(read, twin.text, range(len(twin.text) + 1))
        assert length <= longest.length  # what was appended after it was read may have more
        assert length > 0 or token not in twin.text
        assert twin.text[position - length : position] == read[len(read) - length :]


def test_a_reader_of_a_finished_automaton_knows_the_longest() -> None:
    rng = np.random.default_rng(4)
    for letters in (1, 2, 3, 5):
        text = rng.integers(0, letters, 100).astype(np.int32)
        index = SuffixAutomaton(100)
        index.extend(text)
        reader, read = SuffixReader(index), []
        for token in rng.integers(0, letters + 1, 60).tolist():
            reader.extend(ints([token]))
            read.append(token)
            longest = suffix_reference.longest_match(read, text.tolist(), range(101))
            assert reader.match.length == longest.length


@pytest.mark.parametrize("seed", range(10))
def test_the_nearest_place_agreement_and_copy_are_those_of_a_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index, twin = SuffixAutomaton(200), suffix_reference.SuffixAutomaton()
    for token in rng.integers(-1, int(rng.integers(1, 7)), 60).tolist():
        if token < 0:
            index.separate()
            twin.separate()
        else:
            index.append(token)
            twin.extend([token])
    for _ in range(100):
        position, before, after, most, limit = (int(n) for n in rng.integers(0, 61, 5))
        assert index.agreement(position, most) == twin.agreement(position, most)
        assert index.copy(position, limit) == twin.copy(position, limit)
        near = {"before": before, "after": after, "most": most % 5}
        assert index.nearest(position, **near) == twin.nearest(position, **near)


def test_a_period_goes_on() -> None:
    index = SuffixAutomaton(100)
    index.extend(ints([1, 2, 3, 1, 2, 3, 1, 2]))
    length, position = index.match
    assert (length, position) == (5, 5)
    assert index.copy(position, 8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert index.copy(len(index), 8) == []


@pytest.mark.parametrize("which", range(9))
def test_memory_is_at_most_80_bytes_a_token_in_every_text(which: int) -> None:
    size = 20_000
    text = list(hostile(size))[which]
    index = SuffixAutomaton(len(text))
    index.extend(text)
    assert len(index) == len(text)
    assert index.nbytes <= 80 * index.max_tokens + 10_000
    small = SuffixAutomaton(2**28)
    assert small.nbytes < 10_000  # it grows as it is filled


def test_bulk_and_single_tokens_give_the_same() -> None:
    text = breaking(3000)
    bulk, single = SuffixAutomaton(3000), SuffixAutomaton(3000)
    bulk.extend(text)
    for token in text.tolist():
        single.append(token)
    assert bulk.match == single.match
    assert bulk.nbytes == single.nbytes


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    for wrong in (0, -1, 2**28 + 1):
        with pytest.raises(ValueError, match="max_tokens"):
            SuffixAutomaton(wrong)
    index = SuffixAutomaton(4)
    index.extend(ints([1, 2, 3]))
    for tokens in ([1, -1], [-5], [4, 5]):
        with pytest.raises(ValueError, match=r"below 0|room"):
            index.extend(ints(tokens))
    assert len(index) == 3
    with pytest.raises(ValueError, match="below 0"):
        index.append(-1)
    for wrong_type in (np.zeros(1, np.int64), np.zeros((1, 1), np.int32), [1]):
        with pytest.raises(TypeError):
            index.extend(wrong_type)  # type: ignore[arg-type]
    index.separate()
    with pytest.raises(ValueError, match="room"):
        index.append(1)
    with pytest.raises(ValueError, match="room"):
        index.separate()
    for position in (-1, 5):
        with pytest.raises(ValueError, match="position"):
            index.copy(position, 1)
        with pytest.raises(ValueError, match="position"):
            index.agreement(position, 1)
        with pytest.raises(ValueError, match="position"):
            index.nearest(position, before=1, after=1, most=1)
    with pytest.raises(ValueError, match="negative"):
        index.copy(0, -1)
    with pytest.raises(ValueError, match="negative"):
        index.nearest(0, before=-1, after=0, most=0)
    with pytest.raises(ValueError, match="below 0"):
        SuffixReader(index).extend(ints([-1]))


def test_a_reader_keeps_its_automaton() -> None:
    index = SuffixAutomaton(10)
    index.extend(ints([1, 2, 3]))
    reader = SuffixReader(index)
    del index
    reader.extend(ints([2, 3]))
    assert reader.match == (2, 3)
