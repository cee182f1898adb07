"""The real vocabulary of SmolLM2 (49,152 tokens) against llama.cpp and transformers.

smollm2_ids.json holds the ids that llama.cpp's tokenizer (ik_llama_cpp 0.1, `llama_tokenize` with
add_special false) gives for each of nasty_texts(): "plain" with parse_special false, "special" with
parse_special true where that differs, by the text's place in the list.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from nasty import nasty_texts
from tokenizers import pre_tokenizers

from dure.formats.checkpoint import open_checkpoint
from dure.text.tokenizer import Tokenizer

pytestmark = pytest.mark.model

TEXTS = nasty_texts()


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(open_checkpoint(smollm2))


def test_ids_equal_llama_cpps(tokenizer: Tokenizer) -> None:
    golden = json.loads(Path(__file__).with_name("smollm2_ids.json").read_text())
    assert len(TEXTS) == len(golden["plain"])
    for index, text in enumerate(TEXTS):
        plain = golden["plain"][index]
        special = golden["special"].get(str(index), plain)
        for expected, parse_special in ((plain, False), (special, True)):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert [int(i) for i in expected.split()] == ids, text


@pytest.mark.long  # transformers takes half a minute to read the file
def test_ids_and_texts_equal_transformers(tokenizer: Tokenizer, smollm2: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - only this test needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # transformers ignores tokenizer.ggml.pre; SmolLM2's own tokenizer.json splits digits first.
    theirs._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text, add_special=False)
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_what_has_bytes_in_the_vocabulary_comes_back(tokenizer: Tokenizer) -> None:
    # 21 bytes have no token: those of no text (C0, FF…), and control letters such as U+0004.
    known = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    lacking = {byte for byte in range(256) if bytes([byte]) not in known}
    assert len(lacking) == 21
    kept = [text for text in TEXTS if lacking.isdisjoint(text.encode())]
    assert len(kept) > 350
    for text in kept:
        for parse_special in (True, False):
            assert text == tokenizer.decode(tokenizer.encode(text, parse_special=parse_special))


def test_the_ends_and_the_missing_bos_are_read_from_the_file(tokenizer: Tokenizer) -> None:
    assert {0, 2} == tokenizer.eos_ids
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special=False)
    assert tokenizer.vocab_size == 49_152
