"""A Vocabulary from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece ("llama")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from dure.errors import TokenizerError
from dure.formats.string_array import StringArray
from dure.text import pretokenizers
from dure.text.bpe import Merges, Ranks, RanksOfTokens, WordEncoder
from dure.text.vocabulary import (
    END_TOKENS,
    MAX_MERGES,
    MAX_TOKEN_CHARS,
    MAX_TOKENS,
    Encoder,
    Kind,
    LibraryEncoder,
    Vocabulary,
    guarded,
    is_blank,
    takes_whole,
    twin_without_added,
)

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

Types = npt.NDArray[np.int64]

_KEY = "tokenizer.ggml."
_DAMAGED = "the file is damaged, or its tokenizer was written by a tool with a bug; fetch another"


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of a GGUF file's metadata.

    Raises TokenizerError when it is unsound, or of an unknown kind.
    """
    kind = metadata.get(_KEY + "model")
    if kind == "gpt2":
        return _byte_level(metadata)
    if kind in ("llama", "gemma4"):
        return _sentencepiece(metadata, lists_merges=kind == "gemma4")
    raise TokenizerError(
        f"the file's tokenizer is of kind {str(kind)[:40]!r}, which this version does not run",
        hint="known kinds are 'gpt2' (byte-level BPE), 'llama' and 'gemma4' (SentencePiece BPE)",
    )


def _byte_level(metadata: Mapping[str, Any]) -> Vocabulary:
    """Byte-level BPE: the file lists its merges, and names how words are cut."""
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    rule = pretokenizers.lookup(_string(metadata, "pre") or "default")
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    ranks = _ranks(metadata, tokens, ids)
    cutter = rule.pre_tokenizer()
    users = [tokens[i] for i in sorted(_of_kind(types, USER_DEFINED))]
    controls = [tokens[i] for i in sorted(_of_kind(types, CONTROL, UNKNOWN))]
    merges = ordinary = Merges(ids, ranks, takes_whole=rule.ignore_merges)
    kept = ids
    if rule.ignore_merges and takes_whole(cutter, controls + users):
        outside = {*controls, *users}
        kept = {token: index for token, index in ids.items() if token not in outside}
        ordinary = Merges(kept, _ranks(metadata, tokens, kept), takes_whole=True)
    blank = [user for user in users if is_blank(user)]

    full = WordEncoder(
        merges,
        cutter,
        ids,
        controls + users,
        for_long=lambda: _library(metadata, ids, controls + users, rule),
    )

    def plain_library() -> LibraryEncoder:
        """Share the other's tables where they are the same: they take half a second to build."""
        known = full.long_texts() if kept is ids else None
        model = known.library.model if isinstance(known, LibraryEncoder) else None
        return _library(metadata, kept, blank, rule, model=model)

    return _finish(
        metadata,
        kind="bytes",
        full=full,
        plain=WordEncoder(ordinary, cutter, ids, blank, for_long=plain_library),
        tokens=tokens,
        types=types,
        add_bos=rule.add_bos,
        strips_space=False,
    )


def _library(
    metadata: Mapping[str, Any],
    ids: Mapping[str, int],
    added: Sequence[str],
    rule: pretokenizers.PreTokenizer,
    *,
    model: models.Model | None = None,
) -> LibraryEncoder:
    """Return what encodes as a WordEncoder of these does, by `model` or the library's tables."""
    if model is None:
        merges = [tuple(line.split(" ")) for line in _texts(metadata, "merges") or ()]
        model = guarded(
            lambda: models.BPE(dict(ids), merges, ignore_merges=rule.ignore_merges),
            "reading the merges",
        )
    full = tokenizers.Tokenizer(model)
    full.pre_tokenizer = rule.pre_tokenizer()
    full.add_tokens([AddedToken(name, normalized=False) for name in added if name])
    return LibraryEncoder(full)


def _sentencepiece(metadata: Mapping[str, Any], *, lists_merges: bool) -> Vocabulary:
    """SentencePiece BPE: unknown characters fall back to bytes.

    lists_merges: whether the file has the merges, as Gemma 4's do; else they follow from the
    scores.
    """
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    ids = {token: index for index, token in enumerate(tokens)}
    if lists_merges:
        _ranks(metadata, tokens, ids)  # checks them
        merges = [_pair(line) for line in _texts(metadata, "merges") or ()]
    else:
        scores = _scores(metadata, len(tokens))
        merges = _merges_from_scores(tokens, types.tolist(), scores, ids)
    unknown = _token_id(metadata, "unknown_token_id", len(tokens))
    has_bytes = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    bpe = guarded(
        lambda: models.BPE(
            ids,
            merges,
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=has_bytes,
        ),
        "building merges from the scores",
    )
    full = tokenizers.Tokenizer(bpe)
    prefixed = _flag(metadata, "add_space_prefix", not lists_merges)
    spaces = normalizers.Replace(" ", "▁")
    # Every stretch of text between special tokens gets the space, as in SentencePiece's own use.
    full.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), spaces] if prefixed else [spaces]
    )
    full.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    _add_tokens(full, tokens, types)
    plain = twin_without_added(full, bpe)
    return _finish(
        metadata,
        kind="sentencepiece",
        full=LibraryEncoder(full),
        plain=LibraryEncoder(plain),
        tokens=tokens,
        types=types,
        add_bos=True,
        strips_space=prefixed,
    )


def _merges_from_scores(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return the merges, best first, that SentencePiece's scores stand for.

    It joins the neighbours whose union has the highest score, so every way to cut a token in two
    tokens is a merge, ranked by the token's score. Ties go as in transformers: longer left first.
    """
    mergeable = {NORMAL, UNUSED}
    order = [i for i, kind in enumerate(types) if kind in mergeable and len(tokens[i]) > 1]
    order.sort(key=lambda i: -scores[i])
    parts = {token: None for token, index in ids.items() if types[index] in mergeable}
    merges: list[tuple[str, str]] = []
    for _, group in groupby(order, key=lambda i: scores[i]):
        tied = [
            (token[:cut], token[cut:])
            for token in (tokens[i] for i in group)
            for cut in range(len(token) - 1, 0, -1)
            if token[:cut] in parts and token[cut:] in parts
        ]
        tied.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))
        merges.extend(tied)
        if len(merges) > MAX_MERGES:
            raise TokenizerError(
                f"the scores stand for more than {MAX_MERGES:,} merges", hint=_DAMAGED
            )
    return merges


def _finish(
    metadata: Mapping[str, Any],
    *,
    kind: Kind,
    full: Encoder,
    plain: Encoder,
    tokens: Sequence[str],
    types: Types,
    add_bos: bool,
    strips_space: bool,
) -> Vocabulary:
    """Return the Vocabulary, with the ids that begin and end a text read from the metadata."""
    count = len(tokens)
    bos = _token_id(metadata, "bos_token_id", count)
    eos = _token_id(metadata, "eos_token_id", count)
    ends = {_token_id(metadata, f"{name}_token_id", count) for name in ("eos", "eot", "eom")}
    controls = _of_kind(types, CONTROL, UNKNOWN)
    ends |= {i for i in controls if tokens[i] in END_TOKENS and types[i] == CONTROL}
    start_markers = bos is not None and _flag(metadata, "add_bos_token", add_bos)
    unused = frozenset(i for i in _of_kind(types, UNUSED) if _is_unused(tokens[i], i, kind))
    closes = eos is not None and _flag(metadata, "add_eos_token", False)
    return Vocabulary(
        kind=kind,
        full=full,
        plain=plain,
        texts={i: text for i, text in enumerate(tokens) if i not in unused},
        added=controls | _of_kind(types, USER_DEFINED),
        special=controls,
        unused=unused,
        size=count,
        bos_id=bos,
        eos_id=eos,
        eos_ids=frozenset(i for i in ends if i is not None),
        prefix=(bos,) if start_markers and bos is not None else (),
        suffix=(eos,) if closes and eos is not None else (),
        strips_space=strips_space,
    )


def _is_unused(text: str, index: int, kind: Kind) -> bool:
    """Return whether a token of the type "unused" only fills up the model's rows.

    Of SentencePiece that type also has pieces, which texts may come down to.
    """
    return kind == "bytes" or text == f"[PAD{index}]"


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Return the tokens by id, each within its limits."""
    tokens = _texts(metadata, "tokens")
    if not tokens:
        raise TokenizerError("the tokenizer has no list of tokens", hint=_DAMAGED)
    if len(tokens) > MAX_TOKENS:
        raise TokenizerError(
            f"the tokenizer has {len(tokens):,} tokens, above the limit of {MAX_TOKENS:,}",
            hint=_DAMAGED,
        )
    if set(map(type, tokens)) != {str} or max(map(len, tokens)) > MAX_TOKEN_CHARS:
        raise TokenizerError(
            f"a token is not a text of at most {MAX_TOKEN_CHARS:,} characters", hint=_DAMAGED
        )
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise TokenizerError("a token is not valid UTF-8", hint=_DAMAGED) from error
    return tokens


def _types(metadata: Mapping[str, Any], count: int) -> Types:
    """Return the type of each token; a file without types has normal tokens only."""
    types = metadata.get(_KEY + "token_type")
    if types is None:
        return np.full(count, NORMAL)
    if isinstance(types, str) or not hasattr(types, "__len__"):
        raise TokenizerError(f"{_KEY}token_type is not a list", hint=_DAMAGED)
    if len(types) != count:
        raise TokenizerError(
            f"the tokenizer has {count:,} tokens but {len(types):,} token types", hint=_DAMAGED
        )
    try:
        return np.asarray(types, np.int64)
    except (TypeError, ValueError, OverflowError):
        raise TokenizerError("a token's type is not a number", hint=_DAMAGED) from None


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    """Return the score of each token."""
    scores = metadata.get(_KEY + "scores")
    listed = hasattr(scores, "__len__") and not isinstance(scores, str)
    if scores is None or not listed or len(scores) != count:
        found = f"{len(scores):,}" if scores is not None and listed else "none"
        raise TokenizerError(
            f"the tokenizer has {count:,} tokens but {found} scores", hint=_DAMAGED
        )
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError, OverflowError):
        raise TokenizerError("a token's score is not a number", hint=_DAMAGED) from None
    if any(map(math.isnan, numbers)):
        raise TokenizerError("a token's score is NaN", hint=_DAMAGED)
    return numbers


def _of_kind(types: Types, *kinds: int) -> frozenset[int]:
    """Return the ids of the tokens that are of one of `kinds`."""
    return frozenset(np.flatnonzero(np.isin(types, kinds)).tolist())


def _ranks(metadata: Mapping[str, Any], tokens: list[str], ids: Mapping[str, int]) -> Ranks:
    """Return the places of the merges, whose unions are all in `ids`."""
    lines = _texts(metadata, "merges")
    if lines is None:
        raise TokenizerError("the tokenizer has no list of merges", hint=_DAMAGED)
    if len(lines) > MAX_MERGES:
        raise TokenizerError(
            f"the tokenizer has {len(lines):,} merges, above the limit of {MAX_MERGES:,}",
            hint=_DAMAGED,
        )
    if not set(map(type, lines)) <= {str}:
        raise TokenizerError("a merge is not a text", hint=_DAMAGED)
    if _are_pairs(lines):  # all at once: a step for each of 150,000 would double the time
        unions = "\n".join(lines).replace(" ", "").split("\n")
    else:
        merges = [line.split(" ") for line in lines]
        for index, merge in enumerate(merges):
            if len(merge) != 2 or not all(merge):
                raise TokenizerError(
                    f"merge {index:,} is not two tokens and a space", hint=_DAMAGED
                )
        unions = ["".join(merge) for merge in merges]
    first = ids.get(unions[0], 0) if unions else 0
    if len(ids) == len(tokens) and tokens[first : first + len(unions)] == unions:
        return RanksOfTokens(lines, ids, first)
    missing = next((union for union in unions if union not in ids), None)
    if missing is not None:
        raise TokenizerError(
            f"reading the merges, one makes {missing[:40]!r}, which is no token", hint=_DAMAGED
        )
    return dict(zip(lines, range(len(lines)), strict=True))


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right


def _are_pairs(lines: Sequence[str]) -> bool:
    """Return whether every line is two words with a space between (some line ends are missed)."""
    text = np.frombuffer("\n".join(lines).encode("utf-8", "surrogatepass"), np.uint8)
    signs = np.flatnonzero((text == ord(" ")) | (text == ord("\n")))
    return (
        signs.size == 2 * len(lines) - 1
        and bool((text[signs[::2]] == ord(" ")).all() and (text[signs[1::2]] == ord("\n")).all())
        and bool(signs[0] > 0 and signs[-1] < text.size - 1 and (np.diff(signs) > 1).all())
    )


def _add_tokens(full: tokenizers.Tokenizer, tokens: Sequence[str], types: Types) -> None:
    """Tell `full` which tokens stand outside ordinary text."""
    for special, kinds in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
        names = (tokens[i] for i in sorted(_of_kind(types, *kinds)))
        added = [AddedToken(name, special=special, normalized=False) for name in names if name]
        full.add_special_tokens(added) if special else full.add_tokens(added)


def _texts(metadata: Mapping[str, Any], name: str) -> list[Any] | None:
    """Return the list under that name, or None if there is none."""
    values = metadata.get(_KEY + name)
    return list(values) if isinstance(values, list | StringArray) else None


def _string(metadata: Mapping[str, Any], name: str) -> str | None:
    value = metadata.get(_KEY + name)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{_KEY}{name} is not a text", hint=_DAMAGED)
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_KEY + name)
    return default if value is None else bool(value)


def _token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    """Return the id under that name, or None. Raises TokenizerError when it names no token."""
    value = metadata.get(_KEY + name)
    if value is None:
        return None
    try:
        token_id = int(value)
    except (TypeError, ValueError, OverflowError) as error:  # the last of infinity
        raise TokenizerError(f"{_KEY}{name} is not a number", hint=_DAMAGED) from error
    # Old converters wrote -1 (as 2**32 - 1) for "none".
    if token_id in (-1, 2**32 - 1):
        return None
    if not 0 <= token_id < count:
        raise TokenizerError(
            f"{_KEY}{name} is {token_id}, but the tokenizer has {count:,} tokens", hint=_DAMAGED
        )
    return token_id
