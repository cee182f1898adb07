"""A smaller model that guesses tokens for another: which file is it, and may it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dure import hub, models
from dure.batch import KVCacheSpec, StateSpec
from dure.errors import InvalidRequestError
from dure.formats.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.models import HeadedModel, Model
    from dure.text.tokenizer import Tokenizer

SETTINGS = ("auto", "off", "text", "heads")
"""What `speculate` may be beside the name of a model."""


@dataclass(frozen=True)
class DraftCheckpoint:
    """The files of a draft model that is not loaded yet."""

    name: str
    checkpoint: Checkpoint
    kv_cache_specs: tuple[KVCacheSpec, ...]

    def check_vocabulary(self, tokenizer: Tokenizer) -> None:
        """Raise InvalidRequestError if its tokens are others than those of `tokenizer`."""
        from dure.text.tokenizer import Tokenizer  # noqa: PLC0415  # 30 ms, behind the weights

        difference = tokenizer.difference(Tokenizer.from_checkpoint(self.checkpoint))
        if difference:
            raise InvalidRequestError(
                f"{self.name} cannot draft for this model, for their vocabularies differ: "
                f"{difference}.",
                hint="choose a smaller model of the same family, or --speculate text",
            )


def draft_name(speculate: str) -> str | None:
    """Return the model that `speculate` names; None where it is one of `SETTINGS`."""
    return None if speculate in SETTINGS else speculate


def head_specs(model: Model) -> tuple[KVCacheSpec, ...]:
    """Return what a model's draft heads cache of a token; () if it has none, or they are off."""
    specs: tuple[KVCacheSpec, ...] = getattr(model, "draft_cache_specs", ())
    return specs


def check_heads(name: str, model: Model) -> None:
    """Raise InvalidRequestError if the model came without draft heads."""
    if not head_specs(model):
        problem = cast("HeadedModel", model).draft_problem
        raise InvalidRequestError(
            f"{name} has no draft heads: {problem}.",
            hint="choose auto, text, or the name of a smaller model",
        )


def open_draft(
    name: str, download_progress: Callable[[hub.Progress], None] | None
) -> DraftCheckpoint:
    """Find a draft model's files, and download them first if they are not here.

    Raises as `load` does, and InvalidRequestError if the model has recurrent layers: their state
    cannot be taken back to before a wrong guess.
    """
    resolved = hub.resolve(name, progress=download_progress)
    checkpoint = open_checkpoint(resolved.path)
    specs = models.checked_model(checkpoint).kv_cache_specs
    attention = tuple(spec for spec in specs if not isinstance(spec, StateSpec))
    if len(attention) < len(specs):
        raise InvalidRequestError(
            f"{name} cannot draft: it has recurrent layers, whose state cannot be taken back to "
            "before a wrong guess.",
            hint="choose a draft model with attention alone, or --speculate text",
        )
    return DraftCheckpoint(name, checkpoint, attention)
