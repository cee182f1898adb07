"""A Vocabulary from a Hugging Face tokenizer.json and the configuration files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from dure.errors import TokenizerError
from dure.text.vocabulary import (
    END_TOKENS,
    MAX_FILE_BYTES,
    MAX_TOKENS,
    Kind,
    LibraryEncoder,
    Vocabulary,
    guarded,
    takes_whole,
    token_ids,
    twin_without_added,
)


def read_json_vocabulary(
    path: Path,
    *,
    tokenizer_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json.

    Raises TokenizerError when it is missing or unsound.
    """
    data = _read(path)
    full = guarded(lambda: tokenizers.Tokenizer.from_buffer(data), f"reading {path.name}")
    # A file saved mid-training may cut or fill every text; both would be silent harm here.
    full.no_truncation()
    full.no_padding()
    bpe = isinstance(full.model, models.BPE)
    if not bpe and not isinstance(full.model, models.Unigram):
        raise TokenizerError(
            f"{path.name} is a {type(full.model).__name__} model, which this version does not run",
            hint="known kinds are BPE and Unigram",
        )
    if bpe and full.model.dropout:
        full.model.dropout = None  # training noise: it would make ids differ from run to run
    kind, strips_space = _decoding(full)
    added = full.get_added_tokens_decoder()
    texts = {token_id: text for text, token_id in full.get_vocab(with_added_tokens=True).items()}
    size = max(texts, default=-1) + 1
    if not 0 < size <= MAX_TOKENS:
        raise TokenizerError(
            f"{path.name} has ids up to {size:,}; the limit is {MAX_TOKENS:,}",
            hint="the file is damaged; fetch it again",
        )
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    bos = _named(full, tokenizer_config, config, "bos")
    eos = _named(full, tokenizer_config, config, "eos")
    prefix, suffix = _around(full, tokenizer_config, bos, eos)
    ends = {i for i in special if texts[i] in END_TOKENS}
    ends |= token_ids(generation_config.get("eos_token_id")) | token_ids(config.get("eos_token_id"))
    return Vocabulary(
        kind=kind,
        full=LibraryEncoder(full),
        plain=LibraryEncoder(twin_without_added(full, _plain_model(full, data))),
        texts=texts,
        added=frozenset(added),
        special=special,
        unused=frozenset(range(size)) - texts.keys() if len(texts) < size else frozenset(),
        size=size,
        bos_id=bos,
        eos_id=eos,
        eos_ids=frozenset(ends if eos is None else ends | {eos}),
        prefix=prefix,
        suffix=suffix,
        strips_space=strips_space,
    )


def _read(path: Path) -> bytes:
    """Return the file's bytes, if there are not too many."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path.name} has {size >> 20} MiB; the limit is {MAX_FILE_BYTES >> 20} MiB",
                hint="no tokenizer is that large; fetch the file again",
            )
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}", hint="fetch the model again"
        ) from error


def _plain_model(full: tokenizers.Tokenizer, data: bytes) -> tokenizers.models.Model:
    """Return the model for text without special tokens: the same one wherever that is sound."""
    model: tokenizers.models.Model = full.model
    if not (isinstance(model, models.BPE) and model.ignore_merges):
        return model
    hidden = {token.content for token in full.get_added_tokens_decoder().values()}
    known = [text for text in hidden if model.token_to_id(text) is not None]
    if not takes_whole(full.pre_tokenizer, known):
        return model
    parsed = json.loads(data)["model"]
    vocabulary = {text: i for text, i in parsed["vocab"].items() if text not in hidden}
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in parsed["merges"]]
    return guarded(
        lambda: models.BPE(
            vocabulary,
            merges,
            ignore_merges=True,
            byte_fallback=model.byte_fallback,
            fuse_unk=model.fuse_unk,
            unk_token=model.unk_token,
        ),
        "reading the merges",
    )


def _decoding(full: tokenizers.Tokenizer) -> tuple[Kind, bool]:
    """Return the alphabet of the tokens, and whether decoding drops one leading space."""
    if full.decoder is None:
        raise TokenizerError("tokenizer.json says nothing on how to decode", hint="fetch it again")
    state = guarded(lambda: json.loads(full.decoder.__getstate__()), "reading the decoder")
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        return "bytes", False
    if "Metaspace" in kinds:
        step = steps[kinds.index("Metaspace")]
        return "sentencepiece", step.get("prepend_scheme", "always") != "never"
    if "ByteFallback" in kinds:
        strip = [step for step in steps if step["type"] == "Strip"]
        return "sentencepiece", any(step.get("start", 0) > 0 for step in strip)
    raise TokenizerError(
        f"tokenizer.json decodes by {', '.join(kinds)[:80]}, which this version does not know",
        hint="known are ByteLevel, ByteFallback and Metaspace",
    )


def _around(
    full: tokenizers.Tokenizer,
    tokenizer_config: Mapping[str, Any],
    bos: int | None,
    eos: int | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids around a text, by tokenizer_config or else the post-processor."""
    before, after = _post_processed(full)
    # transformers 5 forgets add_bos_token for some classes (DeepSeek-V3's); the file's word counts.
    says_bos, says_eos = (tokenizer_config.get(f"add_{name}_token") for name in ("bos", "eos"))
    if says_bos is not None:
        before = (bos,) if says_bos and bos is not None else ()
    if says_eos is not None:
        after = (eos,) if says_eos and eos is not None else ()
    return before, after


def _post_processed(full: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor puts before and after a text."""
    bare = guarded(lambda: full.encode("a", add_special_tokens=False).ids, "encoding a letter")
    whole = guarded(lambda: full.encode("a").ids, "encoding a letter")
    extra = len(whole) - len(bare)
    for start in range(extra + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise TokenizerError("tokenizer.json's post-processor rewrites text", hint="fetch it again")


def _named(
    full: tokenizers.Tokenizer,
    tokenizer_config: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str,
) -> int | None:
    """Return the bos or eos id: by its text in tokenizer_config, else by config's id."""
    value = tokenizer_config.get(f"{name}_token")
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str):
        token_id: int | None = full.token_to_id(text)
        if token_id is not None:
            return token_id
    if f"{name}_token" in tokenizer_config and value is None:
        return None
    ids = sorted(token_ids(config.get(f"{name}_token_id")))
    return ids[0] if ids and full.id_to_token(ids[0]) is not None else None
