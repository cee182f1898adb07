"""Text to token ids and back, for every model family, from tokenizer.json or a GGUF file."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dure.errors import InvalidRequestError, TokenizerError
from dure.formats.multimodal import language_config
from dure.text.gguf_vocabulary import read_gguf_vocabulary
from dure.text.json_vocabulary import read_json_vocabulary
from dure.text.vocabulary import Vocabulary, guarded, is_blank

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

# A million tokens of context, the longest served so far, are 4 to 8 MB of text.
MAX_TEXT_CHARS = 32 << 20
# What GGUF files name their tokenizer that have none: nothing, or what llama.cpp's writer writes.
_NO_VOCABULARY = (None, "no_vocab", "none")
# Tokenising takes some 190 bytes of memory for each of the text's: longer texts take turns.
_LONG = 1 << 18  # characters


class Tokenizer:
    """One model's tokenizer. Immutable after construction, so threads may share it.

    Ids are those that transformers gives for the same file, or llama.cpp where transformers
    misreads a GGUF (SmolLM2's digits). Decoding what was encoded gives the text back, unless the
    file itself says otherwise: tokenizer.json may normalise (Qwen's does, to NFC), SentencePiece
    takes ▁ for a space, and a few small vocabularies lack a byte (SmolLM2's has no U+0004).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._bytes: dict[int, bytes] = {}
        self._long = threading.Lock()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """Return the tokenizer a checkpoint carries.

        Raises TokenizerError when it has none or a broken one.
        """
        return cls(read_vocabulary(checkpoint))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id. A model's logits may have more rows, for padding."""
        return self._vocabulary.size

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The id the file calls its end of sequence, or None; generation ends at any of eos_ids."""
        return self._vocabulary.eos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends a generation: end of sequence, of turn and of message."""
        return self._vocabulary.eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of control tokens, which decode(skip_special=True) leaves out."""
        return self._vocabulary.special

    @property
    def added_ids(self) -> frozenset[int]:
        """The ids of all tokens that are cut out of a text before it is tokenised: marks."""
        return self._vocabulary.added

    def rows_without_token(self, rows: int) -> list[int]:
        """Return the ids below `rows`, a model's rows of logits, that no token has.

        They lie behind the tokenizer's last id (safetensors pad the vocabulary) or between others.
        An id that ends a generation is none of them, even if only the model's config knows it.
        """
        behind = range(self.vocab_size, rows)
        between = (i for i in self._vocabulary.unused if i < rows)
        return sorted({*behind, *between} - self.eos_ids)

    @property
    def bos_token(self) -> str:
        """The text of bos_id, or an empty text."""
        return "" if self.bos_id is None else self._vocabulary.texts.get(self.bos_id, "")

    @property
    def eos_token(self) -> str:
        """The text of eos_id, or an empty text."""
        return "" if self.eos_id is None else self._vocabulary.texts.get(self.eos_id, "")

    @property
    def strips_leading_space(self) -> bool:
        """True where decode drops one leading space (SentencePiece put it there when encoding)."""
        return self._vocabulary.strips_space

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that `encode` puts before and after a text, where it adds any."""
        return self._vocabulary.prefix, self._vocabulary.suffix

    def token_id(self, text: str) -> int | None:
        """Return the id of the token written exactly so in the vocabulary, or None."""
        return self._vocabulary.full.token_to_id(text)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Return the ids of `text`.

        Raises InvalidRequestError for text that is too long or not Unicode.

        add_special puts BOS and EOS around it where the model's own tokenizer would.
        parse_special=False takes "<|im_end|>" and its like as ordinary text: use it for text that
        comes from a user.
        """
        if len(text) > MAX_TEXT_CHARS:
            raise InvalidRequestError(
                f"the text has {len(text):,} characters; the limit is {MAX_TEXT_CHARS:,}",
                hint="send it in parts",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the text has half a surrogate pair at character {error.start}",
                hint="decode the text with errors='replace' before sending it",
            ) from error
        encoder = self._vocabulary.full if parse_special else self._vocabulary.plain
        with self._long if len(text) > _LONG else nullcontext():
            ids = guarded(lambda: encoder.encode(text), "encoding a text")
        if not add_special:
            return ids
        return [*self._vocabulary.prefix, *ids, *self._vocabulary.suffix]

    def prepare_long(self) -> None:
        """Build what the first long text needs, which else stops all threads for half a second."""
        for encoder in (self._vocabulary.full, self._vocabulary.plain):
            guarded(encoder.prepare_long, "reading the merges")

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = False, continues: bool = False
    ) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Ids without a token (a model's padding rows) add nothing. continues=True keeps the leading
        space that SentencePiece tokenizers otherwise drop: the text goes on from an earlier one.
        """
        special = self._vocabulary.special if skip_special else frozenset()
        data = b"".join(self.token_bytes(i) for i in ids if i not in special)
        text = data.decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and not continues and text[:1] == " " else text

    def difference(self, other: Tokenizer) -> str:
        """Say in which token two vocabularies first differ; "" if they agree where they overlap."""
        for token_id in range(min(self.vocab_size, other.vocab_size)):
            one, two = self._spell(token_id), other._spell(token_id)
            if one != two and one and two:
                return f"token {token_id} is {one!r:.40} in one and {two!r:.40} in the other"
        return ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes one token stands for; empty for an id without a token."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._spell(operator.index(token_id))
        return found

    def _spell(self, token_id: int) -> bytes:
        """Return the bytes of a token, from the way the file writes it."""
        if token_id < 0:
            raise InvalidRequestError(f"{token_id} is not a token id", hint="ids start at 0")
        vocabulary = self._vocabulary
        text = vocabulary.texts.get(token_id, "")
        if token_id in vocabulary.added:
            # Gemma's runs of spaces are added tokens, and stand for spaces all the same.
            blank = vocabulary.kind == "sentencepiece" and is_blank(text)
            return (text.replace("▁", " ") if blank else text).encode()
        if vocabulary.kind == "sentencepiece":
            is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            try:
                return bytes([int(text[3:5], 16)]) if is_byte else text.replace("▁", " ").encode()
            except ValueError:
                return text.encode()
        try:
            return bytes([_BYTE_OF[letter] for letter in text])
        except KeyError:
            return text.encode()


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary a checkpoint carries.

    Raises TokenizerError when it has none or a broken one.
    """
    if is_missing(checkpoint):
        raise missing(checkpoint)
    if checkpoint.kind == "gguf":
        return read_gguf_vocabulary(checkpoint.metadata)
    return read_json_vocabulary(
        Path(checkpoint.tokenizer_json or ""),
        tokenizer_config=checkpoint.tokenizer_config,
        generation_config=checkpoint.generation_config,
        config=language_config(checkpoint.config),
    )


def is_missing(checkpoint: Checkpoint) -> bool:
    """Check whether a checkpoint carries no tokenizer, which is not to say a broken one."""
    if checkpoint.kind == "gguf":
        return checkpoint.metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY
    return checkpoint.tokenizer_json is None


def missing(checkpoint: Checkpoint) -> TokenizerError:
    """Return what to raise of a checkpoint that carries no tokenizer, if a text is asked for."""
    if checkpoint.kind == "gguf":
        return TokenizerError(
            "the file carries no tokenizer (tokenizer.ggml.model is missing)",
            hint="it may be a part of a split model; open the first part",
        )
    return TokenizerError(
        f"{Path(checkpoint.path).name} has no tokenizer.json",
        hint="put the model's tokenizer.json beside its weights (transformers makes one of "
        "a tokenizer.model), or take the model as a GGUF",
    )


def _byte_alphabet() -> dict[str, int]:
    """Return the letters GPT-2 writes bytes with: Latin-1 as itself, the rest from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    letters = {chr(byte): byte for byte in visible}
    letters.update({chr(0x100 + index): byte for index, byte in enumerate(hidden)})
    return letters


_BYTE_OF = _byte_alphabet()
