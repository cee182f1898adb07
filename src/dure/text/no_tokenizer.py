"""NoTokenizer: what stands where a checkpoint has no tokenizer, for those who have token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from dure.errors import TokenizerError
from dure.formats.multimodal import language_config
from dure.text.tokenizer import Tokenizer, missing
from dure.text.vocabulary import Vocabulary, token_ids

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint


class NoTokenizer(Tokenizer):
    """Knows which ids end a generation, and no text: whoever asks for one gets a TokenizerError."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Read the ends of a checkpoint that carries no tokenizer."""
        reason = missing(checkpoint)
        self._encoder = _NoEncoder(reason)
        given = (
            language_config(checkpoint.config).get("eos_token_id"),
            checkpoint.generation_config.get("eos_token_id"),
            checkpoint.metadata.get("tokenizer.ggml.eos_token_id"),
        )
        ends = frozenset[int]().union(*map(token_ids, given))
        nothing = frozenset[int]()
        super().__init__(
            Vocabulary(
                kind="bytes",
                full=self._encoder,
                plain=self._encoder,
                texts={},
                added=nothing,
                special=nothing,
                unused=nothing,
                size=0,
                bos_id=None,
                eos_id=min(ends, default=None),
                eos_ids=ends,
                prefix=(),
                suffix=(),
                strips_space=False,
            )
        )

    def rows_without_token(self, rows: int) -> list[int]:  # noqa: ARG002
        """Return none of the rows: which of them have tokens is not known."""
        return []

    def decode(self, ids: Iterable[int], **_: bool) -> str:  # noqa: ARG002
        """Raise TokenizerError."""
        self._encoder.fail()

    def difference(self, other: Tokenizer) -> str:  # noqa: ARG002
        """Raise TokenizerError: without texts vocabularies cannot be compared."""
        self._encoder.fail()


class _NoEncoder:
    """An Encoder that raises."""

    cutter = None

    def __init__(self, reason: TokenizerError) -> None:
        self._reason = reason

    def fail(self) -> NoReturn:
        """Raise a TokenizerError that says what is missing."""
        raise TokenizerError(
            f"{self._reason.message}, so it takes token ids, and gives no text",
            hint=self._reason.hint,
        )

    def encode(self, text: str) -> list[int]:  # noqa: ARG002
        """Raise TokenizerError."""
        self.fail()

    def prepare_long(self) -> None:
        """Do nothing: there will be no text."""

    def token_to_id(self, text: str) -> int | None:  # noqa: ARG002
        """Return None: no token has a text."""
        return None
