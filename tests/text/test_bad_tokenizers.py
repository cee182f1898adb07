"""Damaged and hostile tokenizers: a TokenizerError that says what is wrong, never a panic."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tokenizers import pre_tokenizers

from dure.errors import TokenizerError
from dure.text import vocabulary


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return tiny.gguf_metadata(tiny.train_byte_level(pre_tokenizers.ByteLevel()), "gpt-2")


def _changed(metadata: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**metadata, **{f"tokenizer.ggml.{name}": value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "carries no tokenizer"),
        ({"model": "t5"}, "kind 't5'"),
        ({"pre": "qwen22"}, "qwen22"),
        ({"pre": 5}, "pre is not a text"),
        ({"tokens": None}, "no list of tokens"),
        ({"tokens": []}, "no list of tokens"),
        ({"tokens": ["a", 5]}, "a token is not a text"),
        ({"tokens": ["a" * 5000]}, "at most 1,024 characters"),
        ({"tokens": ["\udcff"]}, "UTF-8"),
        ({"token_type": np.array([1, 1])}, "2 token types"),
        ({"token_type": 3}, "token_type is not a list"),
        ({"token_type": "normal"}, "token_type is not a list"),
        ({"bos_token_id": float("inf")}, "bos_token_id is not a number"),
        ({"bos_token_id": [1]}, "bos_token_id is not a number"),
        ({"merges": None}, "no list of merges"),
        ({"merges": ["a"]}, "merge 0 is not two tokens"),
        ({"merges": ["a b", "a b c"]}, "merge 1 is not two tokens"),
        ({"merges": ["a "]}, "merge 0 is not two tokens"),
        ({"merges": [" a"]}, "merge 0 is not two tokens"),
        ({"merges": ["a b", "a\nb", "a b c"]}, "merge 1 is not two tokens"),
        ({"merges": [5]}, "merge is not a text"),
        ({"merges": ["nowhere tofind"]}, "reading the merges"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"bos_token_id": "one"}, "bos_token_id is not a number"),
        ({"model": "llama"}, "none scores"),
        ({"model": "llama", "scores": np.zeros(3)}, "3 scores"),
        ({"model": "llama", "scores": 1.5}, "none scores"),
        ({"model": "llama", "scores": ["a"] * 1205}, "score is not a number"),
        ({"model": "llama", "scores": [float("nan")] * 1205}, "score is NaN"),
    ],
)
def test_damaged_metadata_is_refused_with_a_reason(
    metadata: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        tiny.from_metadata(_changed(metadata, **changes))
    assert caught.value.hint


ANY_TYPE = (
    *(True, 0, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\0"),
    *([], [1], [-1], [1.5], [float("nan")], ["a"], [["a"]], [None], [2**64], {}, list(range(300))),
)


@pytest.mark.parametrize(
    "key", sorted(tiny.gguf_metadata(tiny.train_byte_level(pre_tokenizers.ByteLevel()), "gpt-2"))
)
def test_a_key_of_any_type_loads_or_is_refused(metadata: dict[str, Any], key: str) -> None:
    for value in ANY_TYPE:
        with contextlib.suppress(TokenizerError):
            tiny.from_metadata({**metadata, key: value})


def test_an_unknown_rule_is_answered_with_the_nearest_known_ones(metadata: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="nearest known ones are qwen35"):
        tiny.from_metadata(_changed(metadata, pre="qwen3.5"))


@pytest.mark.parametrize("none", [-1, 2**32 - 1])
def test_minus_one_means_no_such_token(metadata: dict[str, Any], none: int) -> None:
    assert tiny.from_metadata(_changed(metadata, bos_token_id=none)).bos_id is None


def test_more_tokens_than_any_model_has_are_refused(
    metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dure.text.gguf_vocabulary.MAX_TOKENS", 100)
    with pytest.raises(TokenizerError, match="above the limit of 100"):
        tiny.from_metadata(metadata)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"version": "1.0"}',
        "[" * 100_000,
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
    ],
)
def test_a_tokenizer_json_without_a_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError):
        tiny.from_folder(tmp_path)


def test_a_missing_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot read"):
        tiny.from_folder(tmp_path)


def test_a_tokenizer_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match="WordLevel"):
        tiny.from_folder(tmp_path)


def test_a_panic_in_the_library_is_an_error_of_ours() -> None:
    class PanicError(BaseException):
        pass

    def panic() -> None:
        raise PanicError("called `Option::unwrap()` on a `None` value")

    with pytest.raises(TokenizerError, match="unwrap"):
        vocabulary.guarded(panic, "reading")


def test_ctrl_c_is_not_taken_for_a_panic() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vocabulary.guarded(interrupt, "reading")


def test_mutated_tokenizer_json_loads_or_is_refused(tmp_path: Path) -> None:
    original = tiny.train_byte_level(pre_tokenizers.ByteLevel(), vocab_size=300)
    data = original.to_str().encode()
    rng = random.Random(5)
    refused = 0
    for _ in range(200):
        mutated = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        if rng.randrange(4) == 0:
            del mutated[rng.randrange(len(mutated)) :]
        (tmp_path / "tokenizer.json").write_bytes(mutated)
        try:
            tokenizer = tiny.from_folder(tmp_path)
            tokenizer.decode(tokenizer.encode("안녕 <|im_end|> abc"))
        except TokenizerError:
            refused += 1
    assert refused > 50
