"""Fill-in-the-middle: the tokens that ask a code model for what stands between two texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    from dure.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class InfillMarks:
    """How a family writes it: `before` PREFIX `hole` SUFFIX `after`."""

    before: str
    hole: str
    after: str
    start_markers: bool = False  # the text begins with BOS, as its makers trained it


FAMILIES = (
    InfillMarks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder
    InfillMarks(
        "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", start_markers=True
    ),  # DeepSeek coder
    InfillMarks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder and its followers
    InfillMarks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    InfillMarks("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)


_AFTERWARDS = ("<|fim_pad|>", "<fim_pad>", "<|file_sep|>", "<|repo_name|>", "<file_sep>")


def infill_marks(tokenizer: Tokenizer) -> InfillMarks | None:
    """Return the marks that the vocabulary has, or None if the model was not taught any."""
    for marks in FAMILIES:
        texts = (marks.before, marks.hole, marks.after)
        if all(tokenizer.token_id(text) is not None for text in texts):
            return marks
    return None


def infill_stops(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an infill beside those that end any answer.

    They are where another file, or another gap, would begin.
    """
    marks = infill_marks(tokenizer)
    texts = () if marks is None else (marks.before, marks.hole, marks.after, *_AFTERWARDS)
    ids = [tokenizer.token_id(text) for text in texts]
    return [each for each in ids if each is not None]


def infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Return the token ids that ask for what comes between `prefix` and `suffix`.

    InvalidRequestError where the vocabulary has no such tokens: a model that was not taught to fill
    a gap would only go on after it.
    """
    marks = infill_marks(tokenizer)
    if marks is None:
        raise InvalidRequestError(
            "This model has no tokens for filling in the middle, so it can take no suffix.",
            hint="leave suffix out, or take a model that was taught it, such as qwen2.5-coder",
        )
    ids = [tokenizer.bos_id] if marks.start_markers and tokenizer.bos_id is not None else []
    for mark, text in ((marks.before, prefix), (marks.hole, suffix), (marks.after, "")):
        ids += tokenizer.encode(mark, add_special=False)
        ids += tokenizer.encode(text, add_special=False, parse_special=False) if text else []
    return ids
