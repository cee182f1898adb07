"""Tokenizers small enough to train in a test, as a tokenizer.json and as GGUF metadata."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from nasty import nasty_texts
from tokenizers import decoders, models, pre_tokenizers, trainers

from dure.text.tokenizer import Tokenizer

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_TOKENS = ["<tool_call>", "<｜User｜>"]


def train_byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer, *, vocab_size: int = 1200
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer trained on half of the nasty texts, with five added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(nasty_texts()[::2] * 2, trainer)
    tokenizer.add_special_tokens(CONTROL_TOKENS)
    tokenizer.add_tokens(USER_TOKENS)
    return tokenizer


def gguf_metadata(tokenizer: tokenizers.Tokenizer, pre: str, **more: Any) -> dict[str, Any]:
    """What a GGUF converter writes for `tokenizer`."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=lambda token: ids[token])
    kinds = {
        token.content: 3 if token.special else 4
        for token in tokenizer.get_added_tokens_decoder().values()
    }
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([kinds.get(t, 1) for t in tokens], np.int32),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": ids.get("<|im_end|>"),
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }


def from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file with that metadata."""
    return Tokenizer.from_checkpoint(SimpleNamespace(kind="gguf", metadata=metadata))


def from_folder(folder: Path, **files: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a folder with a tokenizer.json, and configuration files as given."""
    checkpoint = SimpleNamespace(
        kind="safetensors",
        path=folder,
        metadata={},
        tokenizer_json=folder / "tokenizer.json",
        tokenizer_config=files.get("tokenizer_config", {}),
        generation_config=files.get("generation_config", {}),
        config=files.get("config", {}),
    )
    return Tokenizer.from_checkpoint(checkpoint)


def train_sentencepiece(vocab_size: int = 1000) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback, trained on 800 sentences of 20 words."""
    rng = random.Random(3)
    text = "the quick brown fox jumps over lazy dog aaa aaaa aaaaa abab ababab 12 345"
    words = [*text.split(), *["안녕하세요", "세계", "두레", "함께", "你好", "世界"]]
    sentences = [
        " ".join(rng.choice(words) + "  " * rng.randrange(2) for _ in range(rng.randrange(1, 12)))
        for _ in range(800)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<|im_end|>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(
    model: sentencepiece.SentencePieceProcessor, **more: Any
) -> dict[str, Any]:
    """What a GGUF converter writes for a SentencePiece model."""

    def kind(index: int) -> int:
        if model.is_unknown(index):
            return 2
        if model.is_control(index) or model.id_to_piece(index) == "<|im_end|>":
            return 3
        return 6 if model.is_byte(index) else 1

    ids = range(model.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.token_type": np.array([kind(i) for i in ids], np.int32),
        "tokenizer.ggml.scores": np.array([model.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }
