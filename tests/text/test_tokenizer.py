"""Tokenizers against transformers, tokenizers and sentencepiece, on texts that trip them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from nasty import SPECIALS, nasty_texts
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from dure.errors import InvalidRequestError, TokenizerError
from dure.text.pretokenizers import PRETOKENIZERS
from dure.text.tokenizer import Tokenizer

TEXTS = nasty_texts()


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _sequence(*parts: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*parts, last])


def _digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])


def _deepseek_v3() -> pre_tokenizers.PreTokenizer:
    signs = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    rest = (
        "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
        "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    )
    return _sequence(
        _split("\\p{N}{1,3}"), _split("[一-龥\u3040-ゟ゠-ヿ]+"), _split(f"{signs}|{rest}")
    )


def _deepseek_coder() -> pre_tokenizers.PreTokenizer:
    return _sequence(
        _split("[\r\n]"),
        _split("\\s?\\p{L}+"),
        _split("\\s?\\p{P}+"),
        _split("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
    )


def _llama3() -> pre_tokenizers.PreTokenizer:
    return _sequence(
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    )


def _gpt4o() -> pre_tokenizers.PreTokenizer:
    return _sequence(
        _split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    )


# The rules as the models' own tokenizer.json, or transformers' own class, spell them.
ORIGINALS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: GPT2Tokenizer()._tokenizer.pre_tokenizer,
    "smollm": _digits_then_gpt2,
    "qwen2": lambda: Qwen2Tokenizer()._tokenizer.pre_tokenizer,
    "deepseek-r1-qwen": lambda: Qwen2Tokenizer()._tokenizer.pre_tokenizer,
    "hunyuan": lambda: Qwen2Tokenizer()._tokenizer.pre_tokenizer,
    "qwen35": lambda: Qwen3_5Tokenizer()._tokenizer.pre_tokenizer,
    "llama-bpe": _llama3,
    "deepseek-v3": _deepseek_v3,
    "hunyuan-dense": _deepseek_v3,
    "deepseek-coder": _deepseek_coder,
    "minimax-m2": _gpt4o,
}


@pytest.fixture(scope="module", params=sorted(ORIGINALS))
def trained(request: pytest.FixtureRequest) -> tuple[str, HFTokenizer]:
    return request.param, tiny.train_byte_level(ORIGINALS[request.param]())


@pytest.fixture(scope="module")
def qwen() -> tuple[HFTokenizer, Tokenizer]:
    original = tiny.train_byte_level(ORIGINALS["qwen2"]())
    return original, tiny.from_metadata(tiny.gguf_metadata(original, "qwen2"))


def test_there_are_at_least_300_nasty_texts_and_they_never_change() -> None:
    assert len(set(TEXTS)) >= 300
    assert nasty_texts() == TEXTS


def test_a_gguf_gives_the_ids_of_the_tokenizer_it_was_made_from(
    trained: tuple[str, HFTokenizer],
) -> None:
    pre, original = trained
    tokenizer = tiny.from_metadata(tiny.gguf_metadata(original, pre))
    for text in TEXTS:
        assert original.encode(text, add_special_tokens=False).ids == tokenizer.encode(
            text, add_special=False
        ), text


def test_a_long_text_has_the_ids_of_its_paragraphs(trained: tuple[str, HFTokenizer]) -> None:
    """The long one is the library's, the short ones are ours; marks cut, so ids add up."""
    pre, original = trained
    tokenizer = tiny.from_metadata(tiny.gguf_metadata(original, pre))
    marks = [token.content for token in original.get_added_tokens_decoder().values()]
    texts = [mark + text for text in TEXTS for mark in marks]
    whole = "".join(texts) * 3
    assert len(whole) > 32_000
    parts = [tokenizer.encode(text, add_special=False) for text in texts]
    assert tokenizer.encode(whole, add_special=False) == [i for ids in parts for i in ids] * 3
    plain = [tokenizer.encode(text, add_special=False, parse_special=False) for text in (whole,)]
    assert tokenizer.decode(plain[0]) == whole


def test_every_text_comes_back_from_byte_level_ids(trained: tuple[str, HFTokenizer]) -> None:
    pre, original = trained
    tokenizer = tiny.from_metadata(tiny.gguf_metadata(original, pre))
    for text in TEXTS:
        for parse_special in (True, False):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert text == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        # Mistral's tokenizers cut where a small letter meets a capital one, and digit by digit.
        ("tekken", "camelCase's 2026//x\n", ["camel", "Case", "'s", " ", *"2026", "//", "x", "\n"]),
        ("gpt-4o", "camelCase's 2026\n", ["camel", "Case's", " ", "202", "6", "\n"]),
        # Seed-OSS's leave the end of a line apart from signs, which Qwen's do not.
        ("seed-coder", "it's 12!!\n", ["it", "'s", " ", "1", "2", "!!", "\n"]),
        ("solar-open", "it's 12!!\n", ["it", "'s", " ", "1", "2", "!!\n"]),
        ("minicpm5", "12345 a", ["123", "45", " a"]),
        ("lfm2", "12345 a", ["123", "45", " a"]),
        ("exaone4", "12345 a", ["12345", " a"]),
        # K-EXAONE's take words and the single spaces between them together.
        (
            "exaone-moe",
            "It's two words/\n/x  12",
            ["It", "'s", " two words", "/\n", "/x", " ", " ", "1", "2"],
        ),
    ],
)
def test_a_rule_cuts_where_the_model_s_own_tokenizer_does(
    pre: str, text: str, words: list[str]
) -> None:
    cutter = PRETOKENIZERS[pre].pre_tokenizer()
    assert [text[slice(*span)] for _, span in cutter.pre_tokenize_str(text)] == words


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
def test_every_rule_cuts_every_text_without_losing_a_character(pre: str) -> None:
    cutter = PRETOKENIZERS[pre].pre_tokenizer()
    decoder = decoders.ByteLevel()
    for text in TEXTS:
        words = [word for word, _ in cutter.pre_tokenize_str(text)]
        assert text == decoder.decode(words)


def test_the_guard_against_long_runs_of_spaces_changes_no_cut() -> None:
    rule = PRETOKENIZERS["deepseek-llm"]
    original = _sequence(*(_split(p.replace(r"(?<!\s)", "")) for p in rule.patterns))
    guarded = rule.pre_tokenizer()
    assert any(r"(?<!\s)" in pattern for pattern in rule.patterns)
    for text in TEXTS:
        assert original.pre_tokenize_str(text) == guarded.pre_tokenize_str(text)


def test_a_folder_without_a_tokenizer_json_says_what_to_do() -> None:
    checkpoint = SimpleNamespace(kind="safetensors", path=Path("model"), tokenizer_json=None)
    with pytest.raises(TokenizerError, match=r"model has no tokenizer\.json") as caught:
        Tokenizer.from_checkpoint(checkpoint)  # type: ignore[arg-type]
    assert "tokenizer.json beside" in caught.value.hint


def test_a_tokenizer_json_gives_the_ids_and_texts_of_transformers(tmp_path: Path) -> None:
    original = tiny.train_byte_level(ORIGINALS["deepseek-v3"]())
    original.normalizer = normalizers.NFC()
    original.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = tiny.from_folder(tmp_path)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)
        skipped = theirs.decode(ids, skip_special_tokens=True)
        assert skipped == ours.decode(ids, skip_special=True)


@pytest.mark.parametrize("form", ["gguf", "json"])
def test_special_tokens_in_a_users_text_stay_text(form: str, tmp_path: Path) -> None:
    original = tiny.train_byte_level(ORIGINALS["qwen2"]())
    original.save(str(tmp_path / "tokenizer.json"))
    gguf = tiny.from_metadata(tiny.gguf_metadata(original, "qwen2"))
    tokenizer = gguf if form == "gguf" else tiny.from_folder(tmp_path)
    added = {tokenizer.token_id(text) for text in tiny.CONTROL_TOKENS + tiny.USER_TOKENS}
    assert len(added) == 5
    assert None not in added
    for text in [*TEXTS, "".join(SPECIALS)]:
        assert added.isdisjoint(tokenizer.encode(text, parse_special=False))
    assert added <= set(tokenizer.encode("".join(tiny.CONTROL_TOKENS + tiny.USER_TOKENS)))


@pytest.mark.parametrize("form", ["gguf", "json"])
def test_a_control_token_that_looks_like_a_word_stays_text_too(form: str, tmp_path: Path) -> None:
    # llama-bpe takes words that are in the vocabulary whole, and this control token is one.
    original = tiny.train_byte_level(_llama3())
    vocabulary = original.get_vocab(with_added_tokens=False)
    merges = [
        tuple(m.split(" ")) for m in tiny.gguf_metadata(original, "")["tokenizer.ggml.merges"]
    ]
    vocabulary["ENDOFTURN"] = len(vocabulary)
    model = models.BPE(vocabulary, merges, ignore_merges=True)
    original.model = model
    rebuilt = HFTokenizer(model)
    rebuilt.pre_tokenizer, rebuilt.decoder = _llama3(), decoders.ByteLevel()
    rebuilt.add_special_tokens(["ENDOFTURN"])
    rebuilt.save(str(tmp_path / "tokenizer.json"))
    gguf = tiny.from_metadata(tiny.gguf_metadata(rebuilt, "llama-bpe"))
    tokenizer = gguf if form == "gguf" else tiny.from_folder(tmp_path)
    end = tokenizer.token_id("ENDOFTURN")
    assert [end] == tokenizer.encode("ENDOFTURN", add_special=False)
    plain = tokenizer.encode("ENDOFTURN", add_special=False, parse_special=False)
    assert end not in plain
    assert tokenizer.decode(plain) == "ENDOFTURN"


def test_sentencepiece_ids_and_texts_equal_sentencepieces_own() -> None:
    model = tiny.train_sentencepiece()
    tokenizer = tiny.from_metadata(tiny.sentencepiece_metadata(model))
    rng = random.Random(1)
    texts = [text for text in TEXTS if "<|im_end|>" not in text and "\x00" not in text]
    texts += ["".join(rng.choices("ab ", k=rng.randrange(60))) for _ in range(500)]
    texts += ["".join(rng.choices("the quick", k=rng.randrange(60))) for _ in range(500)]
    assert len(texts) > 1300
    for text in texts:
        ids = model.encode(text)
        assert ids == tokenizer.encode(text, add_special=False, parse_special=False)
        assert model.decode(ids) == tokenizer.decode(ids)


def test_sentencepiece_puts_bos_and_a_space_in_front_unless_told_otherwise() -> None:
    model = tiny.train_sentencepiece()
    tokenizer = tiny.from_metadata(tiny.sentencepiece_metadata(model))
    fox = model.encode("fox")
    assert [model.bos_id(), *fox] == tokenizer.encode("fox")
    assert tokenizer.decode(fox) == "fox"
    assert tokenizer.decode(fox, continues=True) == " fox"
    bare = tiny.from_metadata(
        tiny.sentencepiece_metadata(model, add_bos_token=False, add_space_prefix=False)
    )
    assert bare.decode(bare.encode(" fox")) == " fox"
    assert fox == bare.encode(" fox")


def test_sentencepiece_parses_special_tokens_and_prefixes_each_stretch_of_text() -> None:
    model = tiny.train_sentencepiece()
    tokenizer = tiny.from_metadata(tiny.sentencepiece_metadata(model))
    end = tokenizer.token_id("<|im_end|>")
    expected = [*model.encode("fox"), end, *model.encode("dog")]
    assert expected == tokenizer.encode("fox<|im_end|>dog", add_special=False)


def test_bos_and_eos_follow_the_gguf(qwen: tuple[HFTokenizer, Tokenizer]) -> None:
    original, tokenizer = qwen
    letter = tokenizer.encode("a")
    assert [original.token_to_id("a")] == letter
    flags = {"bos_token_id": original.token_to_id("<|endoftext|>"), "add_bos_token": True}
    both = tiny.from_metadata(tiny.gguf_metadata(original, "qwen2", **flags, add_eos_token=True))
    assert [both.bos_id, *letter, both.eos_id] == both.encode("a")
    assert letter == both.encode("a", add_special=False)
    assert (both.bos_token, both.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.bos_token == ""


def test_llama3_files_that_do_not_say_get_bos() -> None:
    original = tiny.train_byte_level(_llama3())
    bos = original.token_to_id("<|endoftext|>")
    metadata = tiny.gguf_metadata(original, "llama-bpe", bos_token_id=bos)
    assert bos == tiny.from_metadata(metadata).encode("a")[0]


def test_bos_and_eos_follow_tokenizer_config_then_the_post_processor(tmp_path: Path) -> None:
    original = tiny.train_byte_level(_llama3())
    start, end = (original.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    original.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    original.save(str(tmp_path / "tokenizer.json"))
    letter = original.token_to_id("a")
    names: dict[str, Any] = {
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|im_end|>", "special": True},
    }
    unsaid = tiny.from_folder(tmp_path, tokenizer_config=names)
    assert [start, letter] == unsaid.encode("a")
    assert [start] == unsaid.encode("")
    config = {**names, "add_bos_token": False, "add_eos_token": True}
    said = tiny.from_folder(tmp_path, tokenizer_config=config)
    assert [letter, end] == said.encode("a")


def test_eos_ids_hold_every_end_a_gguf_knows(qwen: tuple[HFTokenizer, Tokenizer]) -> None:
    original, tokenizer = qwen
    named = {original.token_to_id("<|im_end|>"), original.token_to_id("<|endoftext|>")}
    assert named == tokenizer.eos_ids
    more = tiny.gguf_metadata(original, "qwen2", eot_token_id=7, eom_token_id=9)
    assert named | {7, 9} == tiny.from_metadata(more).eos_ids


def test_eos_ids_hold_every_end_a_folder_knows(tmp_path: Path) -> None:
    original = tiny.train_byte_level(_llama3())
    original.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tiny.from_folder(
        tmp_path,
        generation_config={"eos_token_id": [3, 4]},
        config={"eos_token_id": 5},
        tokenizer_config={"eos_token": "<｜User｜>"},
    )
    ends = {original.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>", "<｜User｜>")}
    assert {3, 4, 5} | ends == tokenizer.eos_ids


def test_ids_without_a_token_decode_to_nothing(qwen: tuple[HFTokenizer, Tokenizer]) -> None:
    tokenizer = qwen[1]
    letter = tokenizer.encode("a")
    assert tokenizer.decode([*letter, tokenizer.vocab_size + 5, *letter]) == "aa"
    with pytest.raises(InvalidRequestError, match="-1 is not a token id"):
        tokenizer.decode([-1])


def test_bytes_that_are_no_text_decode_to_replacement_characters(
    qwen: tuple[HFTokenizer, Tokenizer],
) -> None:
    tokenizer = qwen[1]
    first, *_ = tokenizer.encode("\U0010ffff", add_special=False)
    assert tokenizer.token_bytes(first) == b"\xf4"
    assert tokenizer.decode([first, first]) == "\ufffd\ufffd"


def test_half_a_surrogate_pair_is_refused(qwen: tuple[HFTokenizer, Tokenizer]) -> None:
    with pytest.raises(InvalidRequestError, match="character 2"):
        qwen[1].encode("ab\ud800")


def test_a_file_saved_with_truncation_does_not_cut_texts(tmp_path: Path) -> None:
    original = tiny.train_byte_level(_llama3())
    original.enable_truncation(4)
    original.enable_padding(length=64)
    original.save(str(tmp_path / "tokenizer.json"))
    ids = tiny.from_folder(tmp_path).encode("q x z " * 20)
    assert tiny.from_folder(tmp_path).decode(ids) == "q x z " * 20


def test_rows_without_a_token_are_those_that_a_tokenizer_json_leaves_out(tmp_path: Path) -> None:
    trained = tiny.train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    written = json.loads(trained.to_str())
    size = trained.get_vocab_size(with_added_tokens=True)
    for token in written["added_tokens"]:
        token["id"] += 3
        written["model"]["vocab"][token["content"]] = token["id"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    tokenizer = tiny.from_folder(tmp_path, config={"eos_token_id": size + 7})
    added = len(written["added_tokens"])
    holes = list(range(size - added, size - added + 3))
    behind = [row for row in range(size + 3, size + 40) if row != size + 7]
    assert tokenizer.rows_without_token(size + 40) == [*holes, *behind]
    assert tokenizer.rows_without_token(holes[1]) == holes[:1]
    assert tokenizer.decode([*holes, *behind]) == ""


def test_rows_without_a_token_are_those_that_a_gguf_calls_unused() -> None:
    trained = tiny.train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    metadata = tiny.gguf_metadata(trained, "default")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    size = len(tokens)
    metadata["tokenizer.ggml.tokens"] = [*tokens, f"[PAD{size}]", f"[PAD{size + 1}]"]
    metadata["tokenizer.ggml.token_type"] = np.append(types, [5, 5]).astype(np.int32)
    tokenizer = tiny.from_metadata(metadata)
    assert tokenizer.rows_without_token(size + 2) == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == ""
    assert tokenizer.token_bytes(size) == b""


def test_pieces_that_sentencepiece_calls_unused_keep_their_texts() -> None:
    metadata = tiny.sentencepiece_metadata(tiny.train_sentencepiece())
    tokens = metadata["tokenizer.ggml.tokens"]
    piece = max(range(len(tokens)), key=lambda i: len(tokens[i]))
    metadata["tokenizer.ggml.token_type"][piece] = 5
    size = len(tokens)
    metadata["tokenizer.ggml.tokens"] = [*tokens, f"[PAD{size}]"]
    for key, value in (("token_type", 5), ("scores", -1e4)):
        metadata[f"tokenizer.ggml.{key}"] = [*metadata[f"tokenizer.ggml.{key}"], value]
    tokenizer = tiny.from_metadata(metadata)
    assert tokenizer.rows_without_token(size + 1) == [size]
    assert tokenizer.token_bytes(piece) == tokens[piece].replace("▁", " ").encode()
    assert tokenizer.token_bytes(size) == b""
