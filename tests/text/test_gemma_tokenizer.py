"""Gemma's tokenizers: ▁ for spaces, merges in a list, runs of spaces as added tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from nasty import nasty_texts
from tiny_gguf import write_folder
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from dure.errors import TokenizerError
from dure.formats.checkpoint import open_checkpoint
from dure.text.gguf_export import gguf_vocabulary
from dure.text.gguf_vocabulary import read_gguf_vocabulary
from dure.text.json_vocabulary import read_json_vocabulary
from dure.text.tokenizer import Tokenizer

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
TURNS = ["<|turn>", "<turn|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BLANKS = ["▁▁", "▁▁▁", "\n\n"]


@pytest.fixture(scope="module")
def original() -> tokenizers.Tokenizer:
    """A small BPE with Gemma's parts, trained on half of the nasty texts."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        limit_alphabet=200,
        special_tokens=[*CONTROL, *TURNS, *BYTES],
        show_progress=False,
    )
    trained.train_from_iterator(nasty_texts()[::2], trainer)
    found = json.loads(trained.to_str())
    found["added_tokens"] = []  # bytes are pieces of the model
    found["pre_tokenizer"] = json.loads(
        '{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",'
        ' "invert": false}'
    )
    made = tokenizers.Tokenizer.from_str(json.dumps(found))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL + TURNS])
    made.add_tokens([AddedToken(text, normalized=False) for text in BLANKS])
    return made


def metadata(original: tokenizers.Tokenizer) -> dict[str, Any]:
    """What llama.cpp's converter writes for Gemma 4."""
    ids = original.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    kinds = dict.fromkeys(CONTROL + TURNS, 3) | dict.fromkeys(BLANKS, 4) | dict.fromkeys(BYTES, 6)
    merges = json.loads(original.to_str())["model"]["merges"]
    found = {
        "model": "gemma4",
        "tokens": tokens,
        "token_type": np.array([kinds.get(token, 1) for token in tokens], np.int32),
        "merges": [" ".join(merge) for merge in merges],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "unknown_token_id": ids["<unk>"],
        "add_space_prefix": False,
        "add_bos_token": True,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


TEXTS = ["  a   b\n\n\n  c", " x", "<|turn>user\nHi<turn|>\n", *nasty_texts()[1::2]]


def test_a_gguf_gives_the_ids_and_texts_of_the_tokenizer_it_was_made_from(
    original: tokenizers.Tokenizer,
) -> None:
    ours = Tokenizer(read_gguf_vocabulary(metadata(original)))
    bos = original.token_to_id("<bos>")
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == [bos, *ids]
        # The library spells half a character another way; ▁ itself is a space in both.
        assert ours.decode(ids) == original.decode(ids, skip_special_tokens=False)
    assert ours.eos_ids == {original.token_to_id(text) for text in ("<eos>", "<turn|>")}


def test_runs_of_spaces_are_spaces_though_they_are_added_tokens(
    original: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    original.save(str(path))
    config = {"eos_token": "<eos>", "add_bos_token": False}
    folder = Tokenizer(
        read_json_vocabulary(path, tokenizer_config=config, generation_config={}, config={})
    )
    for ours in (folder, Tokenizer(read_gguf_vocabulary(metadata(original)))):
        ids = [original.token_to_id(text) for text in BLANKS]
        assert ours.decode(ids) == "     \n\n"
        text = "a   b\n\n  c"
        assert ours.decode(ours.encode(text)[-20:]).endswith(text)


def test_a_folders_tokenizer_is_written_with_its_merges(
    original: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, {"model_type": "gemma4_text"}, {"x": np.zeros(1, np.float32)})
    original.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, "add_bos_token": True}))
    size = original.get_vocab_size()
    found = gguf_vocabulary(open_checkpoint(folder), size + 3, lists_merges=True)
    expected = metadata(original)
    assert found["tokenizer.ggml.model"] == "gemma4"
    assert found["tokenizer.ggml.merges"] == expected["tokenizer.ggml.merges"]
    kinds = found["tokenizer.ggml.token_type"][:size]
    known = expected["tokenizer.ggml.token_type"]
    np.testing.assert_array_equal(kinds[4:], known[4:])  # before are those that control
    ours = Tokenizer(read_gguf_vocabulary(found))
    bos = original.token_to_id("<bos>")
    for text in TEXTS:
        assert ours.encode(text) == [bos, *original.encode(text, add_special_tokens=False).ids]


def test_a_merge_that_makes_no_token_is_refused(original: tokenizers.Tokenizer) -> None:
    damaged = metadata(original)
    damaged["tokenizer.ggml.merges"][0] = "<bos> <bos>"
    with pytest.raises(TokenizerError, match="no token"):
        read_gguf_vocabulary(damaged)
