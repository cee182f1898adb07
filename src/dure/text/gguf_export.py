"""A folder's tokenizer as GGUF metadata: what `gguf_vocabulary` reads, from a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dure.errors import TokenizerError
from dure.text.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_gguf_vocabulary,
)
from dure.text.pretokenizers import PRETOKENIZERS
from dure.text.tokenizer import Tokenizer, read_vocabulary
from dure.text.vocabulary import Vocabulary, guarded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dure.formats.checkpoint import Checkpoint

_KEY = "tokenizer.ggml."

# What rules and vocabularies differ in: cases, contractions, digits, spaces, signs, scripts, code.
SAMPLE = (
    "Hello world!  It's 1234567 o'clock,\n\n\tDON'T we'LL?\r\n   x += 3.14_159; // naïve façade"
    " ¿Qué? 你好，世界 3月14日 こんにちは ｱｲｳ 한국어 조선 Привет Ελλάδα שלום مرحبا हिन्दी"
    " ไทย ١٢٣ ½ ² Ⅷ 🚀👩‍💻 <tag attr='v'>\u3000…—“x” ՀայerԵն ꙮ ǅ"
    " \u200bend   \n \n  def f(a):\n        return a"
)


def gguf_vocabulary(
    checkpoint: Checkpoint, vocab_size: int, *, lists_merges: bool = False
) -> dict[str, Any]:
    """Return a folder's tokenizer.* metadata, its tokens padded to the model's `vocab_size`.

    lists_merges: whether a SentencePiece vocabulary is written with its merges, as Gemma 4's.

    Raises TokenizerError if there is no tokenizer.json, or it does what GGUF cannot say: the
    metadata must give the ids that the folder gives, which is tried on a text first.
    """
    path = checkpoint.tokenizer_json
    vocabulary = read_vocabulary(checkpoint)
    assert path is not None  # or it would have been refused
    model = _model(path)
    if model.get("type") != "BPE":
        raise _cannot(checkpoint, f"is a {model.get('type')} model and no BPE")
    tokens, types = _tokens(vocabulary, max(vocab_size, vocabulary.size))
    merges = [_pair(merge) for merge in model["merges"]]
    metadata: dict[str, Any] = {}
    if vocabulary.kind == "bytes":
        rule = _rule(checkpoint, vocabulary, ignore_merges=bool(model.get("ignore_merges")))
        metadata |= {_KEY + "model": "gpt2", _KEY + "pre": rule}
        metadata[_KEY + "merges"] = [f"{left} {right}" for left, right in merges]
    else:
        metadata |= {_KEY + "model": "llama", _KEY + "pre": "default"}
        metadata[_KEY + "scores"] = _scores(tokens, merges)
        if lists_merges:
            del metadata[_KEY + "pre"]  # the model's name says it
            metadata[_KEY + "model"] = "gemma4"
            metadata[_KEY + "merges"] = [f"{left} {right}" for left, right in merges]
        types = [_of_sentencepiece(token, kind) for token, kind in zip(tokens, types, strict=True)]
        metadata[_KEY + "add_space_prefix"] = vocabulary.strips_space
    metadata |= {_KEY + "tokens": tokens, _KEY + "token_type": np.array(types, np.int32)}
    metadata |= _special_ids(checkpoint, vocabulary)
    if checkpoint.chat_template:
        metadata["tokenizer.chat_template"] = checkpoint.chat_template
    again = Tokenizer(read_gguf_vocabulary(metadata))
    if again.encode(SAMPLE) != Tokenizer(vocabulary).encode(SAMPLE):
        raise _cannot(checkpoint, "gives other ids than its tokens and merges explain")
    return metadata


def _model(path: Path) -> dict[str, Any]:
    parsed = guarded(lambda: json.loads(path.read_bytes()), f"reading {path.name}")
    model: dict[str, Any] = parsed["model"]  # tokenizers has read the same file before
    return model


def _tokens(vocabulary: Vocabulary, size: int) -> tuple[list[str], list[int]]:
    """Return the texts and types by id; ids that only pad the model's matrix are unused tokens."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for index, text in vocabulary.texts.items():
        tokens[index] = text
        outside = CONTROL if index in vocabulary.special else USER_DEFINED
        types[index] = outside if index in vocabulary.added else NORMAL
    return tokens, types


def _of_sentencepiece(token: str, kind: int) -> int:
    if token == "<unk>":
        return UNKNOWN
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return BYTE if kind == NORMAL and is_byte else kind


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """Return a score for each token: minus its rank among the merges, so the best joins first."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return np.array([-ranks.get(token, len(merges)) for token in tokens], np.float32)


def _pair(merge: Any) -> tuple[str, str]:
    """Return both ways to write a merge: "a b", and ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _rule(checkpoint: Checkpoint, vocabulary: Vocabulary, *, ignore_merges: bool) -> str:
    """Return the name of the rule that cuts words as the folder's tokenizer does."""
    cutter = vocabulary.full.cutter
    wanted = None if cutter is None else cutter.pre_tokenize_str(SAMPLE)
    for name, rule in PRETOKENIZERS.items():
        same = rule.ignore_merges == ignore_merges and name != "default"
        if same and rule.pre_tokenizer().pre_tokenize_str(SAMPLE) == wanted:
            return name
    raise _cannot(checkpoint, "cuts words by a rule that GGUF has no name for")


def _special_ids(checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the ids that begin, end and fill texts, and whether texts get them."""
    ids = {"bos": vocabulary.bos_id, "eos": vocabulary.eos_id}
    for key, name in (("padding", "pad"), ("unknown", "unk")):
        written = checkpoint.tokenizer_config.get(f"{name}_token")
        text = written.get("content") if isinstance(written, dict) else written
        ids[key] = vocabulary.full.token_to_id(text) if isinstance(text, str) else None
    # A folder may name several ends; GGUF has keys for two, and readers know more by their texts.
    others = sorted(vocabulary.eos_ids - {vocabulary.eos_id})
    if ids["eos"] is None and others:
        ids["eos"] = others.pop(0)
    ids["eot"] = others[0] if others else None
    return {
        **{f"{_KEY}{name}_token_id": number for name, number in ids.items() if number is not None},
        _KEY + "add_bos_token": bool(vocabulary.prefix),
        _KEY + "add_eos_token": bool(vocabulary.suffix),
    }


def _cannot(checkpoint: Checkpoint, what: str) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer.json of {checkpoint.path} {what}, so a GGUF would tokenise otherwise",
        hint="run the folder as it is: dure reads its tokenizer.json",
    )
