"""TextStream: what is shown is the whole text, whatever the tokens are and wherever they split."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from dure.errors import InvalidRequestError
from dure.text.detokenizer import Detokenizer
from dure.text.tokenizer import Tokenizer

BYTE_LEVEL = tiny.from_metadata(
    tiny.gguf_metadata(tiny.train_byte_level(pre_tokenizers.ByteLevel(), vocab_size=500), "gpt-2")
)
SENTENCEPIECE = tiny.from_metadata(tiny.sentencepiece_metadata(tiny.train_sentencepiece(600)))
TOKENIZERS = st.sampled_from([BYTE_LEVEL, SENTENCEPIECE])


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], **options: object) -> list[str]:
    stream = Detokenizer(tokenizer, **options)  # type: ignore[arg-type]
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@functools.cache
def _byte_ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}


def _ids_of(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token a byte: the worst split there is."""
    by_bytes = _byte_ids(tokenizer)
    return [by_bytes[bytes([byte])] for byte in data]


@given(TOKENIZERS, st.lists(st.integers(0, 620)), st.booleans(), st.booleans())
def test_the_pieces_of_any_ids_make_up_the_decoded_text(
    tokenizer: Tokenizer, ids: list[int], skip: bool, continues: bool
) -> None:
    expected = tokenizer.decode(ids, skip_special=skip, continues=continues)
    assert expected == "".join(_pieces(tokenizer, ids, skip_special=skip, continues=continues))


@given(TOKENIZERS, st.binary(max_size=40))
def test_any_bytes_come_out_as_the_decoded_text(tokenizer: Tokenizer, data: bytes) -> None:
    ids = _ids_of(tokenizer, data)
    assert tokenizer.decode(ids, skip_special=True) == "".join(_pieces(tokenizer, ids))


@given(st.text(max_size=30))
def test_no_piece_is_half_a_character(text: str) -> None:
    pieces = _pieces(BYTE_LEVEL, _ids_of(BYTE_LEVEL, text.encode()))
    assert text == "".join(pieces)
    assert text.count("\ufffd") == sum(piece.count("\ufffd") for piece in pieces)
    assert all(len(piece) <= 1 for piece in pieces)


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, said plainly: of the prefixes of text that end with a stop, the shortest counts."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=200)
@given(
    TOKENIZERS,
    st.text("ab한", max_size=40),
    st.lists(st.text("ab한", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_text_is_cut_before_the_first_stop_string_to_be_completed(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    expected, stopped = _cut(text, stops)
    whole = tokenizer.encode(text, add_special=False)
    for ids in (whole, _ids_of(tokenizer, text.encode())):
        stream = Detokenizer(tokenizer, stop=stops)
        shown = "".join([*(stream.push(i) for i in ids), stream.finish()])
        assert (expected, stopped) == (shown, stream.stopped)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=6), min_size=1))
def test_no_more_is_held_back_than_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    stream = Detokenizer(BYTE_LEVEL, stop=stops)
    shown = ""
    for end, token_id in enumerate(_ids_of(BYTE_LEVEL, text.encode()), start=1):
        shown += stream.push(token_id)
        if stream.stopped is not None:
            return
        held = text[len(shown) : end]
        assert text[:end] == shown + held
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_is_shown_after_a_stop_string() -> None:
    stream = Detokenizer(BYTE_LEVEL, stop=["."])
    ids = BYTE_LEVEL.encode("one. two.", add_special=False)
    assert "".join(stream.push(i) for i in ids) == "one"
    assert stream.stopped == "."
    assert stream.finish() == ""


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end() -> None:
    stream = Detokenizer(BYTE_LEVEL, stop=["###"])
    shown = [stream.push(i) for i in _ids_of(BYTE_LEVEL, b"a##")]
    assert shown == ["a", "", ""]
    assert stream.finish() == "##"
    assert stream.stopped is None


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = BYTE_LEVEL.encode("a<|im_end|>b", add_special=False)
    assert "".join(_pieces(BYTE_LEVEL, ids)) == "ab"
    assert "".join(_pieces(BYTE_LEVEL, ids, skip_special=False)) == "a<|im_end|>b"


@pytest.mark.parametrize("stop", [[""], ["a", ""], "text", [5]])
def test_stop_strings_that_are_none_are_refused(stop: object) -> None:
    with pytest.raises(InvalidRequestError, match="stop must be a list"):
        Detokenizer(BYTE_LEVEL, stop=stop)  # type: ignore[arg-type]
