"""What a tokenizer file comes down to, whichever form it had, and the limits it must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import tokenizers

from dure.errors import TokenizerError

# Twice the largest vocabulary shipped so far (262,144), and half a million for merges of each.
MAX_TOKENS = 1 << 20
MAX_MERGES = 1 << 21
# The longest token of a shipped vocabulary is 256 characters (a run of spaces).
MAX_TOKEN_CHARS = 1024
# The largest tokenizer.json shipped so far is 33 MB.
MAX_FILE_BYTES = 128 << 20

# Tokens that end a turn or a document whenever they are control tokens. Files often name only one
# of them, and a model then talks past the end of its turn.
END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_sentence|>",
        "<｜end▁of▁sentence｜>",
        "<end_of_sentence>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<|EOT|>",
        "<EOT>",
        "[e~[",
        "<|eos|>",
        "<eos>",
        "</s>",
    }
)

Kind = Literal["bytes", "sentencepiece"]
T = TypeVar("T")


class Encoder(Protocol):
    """What turns texts into ids."""

    @property
    def cutter(self) -> Any:
        """The library's pre-tokenizer that cuts text into words, or None."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with nothing put around it."""

    def prepare_long(self) -> None:
        """Build what the first long text needs."""

    def token_to_id(self, text: str) -> int | None:
        """Return the id of the token written exactly so, or None."""


class LibraryEncoder:
    """An Encoder that is the tokenizers library's."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self.library = library

    @property
    def cutter(self) -> Any:
        """The library's pre-tokenizer that cuts text into words, or None."""
        return self.library.pre_tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, with nothing put around it."""
        # As a batch of one, because the library lets other threads run during a batch only.
        [encoding] = self.library.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def prepare_long(self) -> None:
        """Do nothing: long texts need no more than short ones."""

    def token_to_id(self, text: str) -> int | None:
        """Return the id of the token written exactly so, or None."""
        found: int | None = self.library.token_to_id(text)
        return found


@dataclass(frozen=True)
class Vocabulary:
    """Everything a Tokenizer needs to know.

    full splits text at special and user-defined tokens; plain shares its model and knows none of
    them, so that text from a user stays text. texts maps id -> the token as the file writes it;
    added ids are written as they are, others in the alphabet of `kind`. special ids are the ones
    that decode may skip. unused ids are below size and have no token. prefix and suffix are what
    add_special puts around a text. strips_space: decoding drops the one space that encoding put in
    front.
    """

    kind: Kind
    full: Encoder
    plain: Encoder
    texts: Mapping[int, str]
    added: frozenset[int]
    special: frozenset[int]
    unused: frozenset[int]
    size: int
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    strips_space: bool


def guarded(call: Callable[[], T], doing: str) -> T:
    """Return what `call` returns; anything the tokenizers library raises becomes TokenizerError.

    A panic in its Rust code arrives as PanicException, which is a BaseException and not an
    Exception, so it has to be told from Ctrl-C by hand.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TokenizerError(
            f"the tokenizer failed while {doing}: {reason}",
            hint="the file is damaged or of a newer form; fetch it again",
        ) from error


def token_ids(value: object) -> set[int]:
    """Return an id, a list of ids or nothing, as a set."""
    values = value if isinstance(value, list) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0}


def takes_whole(cutter: Any, texts: Iterable[str]) -> bool:
    """Return whether a pre-tokenizer, if there is one, leaves any of `texts` as one word.

    A model with ignore_merges takes a word it finds in its vocabulary whole, a control token's
    name too. Names such as <|im_end|> are no danger: they are cut at their signs.
    """
    return cutter is None or any(len(cutter.pre_tokenize_str(text)) == 1 for text in texts if text)


def is_blank(text: str) -> bool:
    """Return whether an added token is a run of spaces.

    Those do no harm in a user's text, and models expect them there.
    """
    return not text.strip(" \t\n\r▁")


def twin_without_added(
    full: tokenizers.Tokenizer, model: tokenizers.models.Model
) -> tokenizers.Tokenizer:
    """Return a tokenizer with the same rules as `full` over `model`, and no added tokens.

    Only `encode_special_tokens` would not do: it spares special tokens, and some files mark their
    turn markers as merely added (DeepSeek's <｜User｜>).
    """
    plain = tokenizers.Tokenizer(model)
    if full.normalizer is not None:
        plain.normalizer = full.normalizer
    if full.pre_tokenizer is not None:
        plain.pre_tokenizer = full.pre_tokenizer
    blank = [
        token
        for token in full.get_added_tokens_decoder().values()
        if not token.special and is_blank(token.content)
    ]
    if blank:
        plain.add_tokens(blank)
    return plain
