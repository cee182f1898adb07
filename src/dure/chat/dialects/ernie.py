"""ERNIE 4.5: calls as Hermes writes them; after reasoning the answer stands between delimiters."""

from __future__ import annotations

from dure.chat.dialects.dialect import Delimiters, Dialect, HasToken
from dure.chat.dialects.guessed import GuessedCalls
from dure.chat.dialects.hermes import FORM, HermesCalls

THINKING = Dialect(
    "ERNIE 4.5 Thinking",
    Delimiters("<think>", "</think>", "\n</think>\n\n\n"),
    HermesCalls(),
    wrapper=("<response>", "</response>"),
    call_ends_thinking=True,
    call_format=FORM,
)
PLAIN = Dialect("ERNIE 4.5", calls=HermesCalls(), fallback_parser=GuessedCalls(), call_format=FORM)


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of ERNIE's templates, or None."""
    if "think_mode" not in template and "<|begin_of_sentence|>" not in template:
        return None
    return THINKING if "think_mode" in template or "<think>" in template else PLAIN
