"""Plain: a template that no family is known by; reasoning if it or the vocabulary can.

Where it has no place for tools, calls are asked for as Hermes writes them. One that has, shows a
form of its own, which we cannot read.
"""

from __future__ import annotations

from dure.chat.dialects.dialect import THINK, Dialect, HasToken, think_in
from dure.chat.dialects.guessed import GuessedCalls
from dure.chat.dialects.hermes import FORM, HermesCalls

PLAIN = Dialect("plain")
"""Text that is all content: a completion without a template."""


def find(template: str, has_token: HasToken) -> Dialect | None:
    """Return the dialect of any other template."""
    thinks = think_in(template, has_token)
    think = THINK if thinks else None
    if "tools" in template:
        return Dialect("plain", think=think)
    return Dialect(
        "plain", think=think, calls=HermesCalls(), fallback_parser=GuessedCalls(), call_format=FORM
    )
