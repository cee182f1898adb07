"""Plain: no calls that we can read; thoughts if the template or the vocabulary knows them."""

from __future__ import annotations

from dure.text.dialects.dialect import THINK, Dialect, HasToken

PLAIN = Dialect("plain")
"""Text that is all content: a completion without a template."""


def find(template: str, has_token: HasToken) -> Dialect:
    """Always a dialect."""
    thinks = THINK.close in template or has_token(THINK.close)
    return Dialect("plain", think=THINK) if thinks else PLAIN
